"""Rebuilds in real machines: what comes back, what is said where it does not, and that nothing else is touched."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from events.types import SandboxCrashed, SandboxRecovered
from replay.history.planning import plan
from replay.rebuild.checks import Verdict
from replay.rebuild.errors import CallHung, NotReproducible, OtherDriver, SnapshotUnusable
from replay.rebuild.preparing import hiding
from replay.rebuild.rebuilding import Step, rebuild
from replay.rebuild.throwaway import Place, remove_kept
from tests.replay.history.boxes import call as told
from tests.replay.rebuild.live import everything

if TYPE_CHECKING:
    from actors.machines.gvisor import GvisorDriver
    from tests.replay.rebuild.conftest import NewLive

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_version_comes_back_with_memory_and_files_and_each_call_is_compared(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("counter=7; echo $counter > /workspace/count; hostname; cat /etc/machine-id")
    snapshot_id = await live.snapshot()
    await live.call("write", {"file_path": "a.py", "content": "print('hi')\n"})
    await live.call("read", {"file_path": "a.py"})
    await live.bash("counter=$((counter + 1)); echo $counter >> count; cat count; hostname; cat /etc/machine-id")
    await live.call("edit", {"file_path": "a.py", "old_string": "hi", "new_string": "ho"})
    await live.look()
    heard: list[Step] = []
    found = await rebuild(live.log, live.plan(), live.ground, heard=heard.append)
    assert found.plan.start.snapshot_id == snapshot_id
    assert [one.words for one in found.checks] == ["equal"] * 3
    assert found.tree.digest == live.digests[live.version]
    assert found.tree.verdict is None  # no snapshot is of this version
    assert found.verdict is Verdict.EQUAL
    assert [(step.done, step.total) for step in heard] == [(0, 3), (0, 3), (1, 3), (2, 3), (3, 3)]
    # From the template, all of it; and the tree is the snapshot's.
    first = live.plan(4)
    assert first.start.snapshot_id == snapshot_id
    found = await rebuild(live.log, first, live.ground)
    assert (found.checks, found.tree.verdict, found.tree.of) == ((), Verdict.EQUAL, snapshot_id)
    await live.driver.drop_snapshot(snapshot_id)
    found = await rebuild(live.log, live.plan(), live.ground)
    assert found.plan.start.kind == "template"
    assert [one.words for one in found.checks] == ["equal"] * 4
    assert found.tree.digest == live.digests[live.version]


async def test_what_differs_by_nature_is_told_apart_from_what_matters(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    await live.bash("date -Ins; sleep 0.3 & echo pid $!")
    await live.bash("mktemp; python3 -c 'import uuid; print(uuid.uuid4())'; date +%s.%N")
    at = await live.bash("echo 2 passed in 0.01s; cat note", content=[{"type": "text", "text": "3 passed in 0.20s\nx"}])
    found = await rebuild(live.log, live.plan(), live.ground)
    assert [one.verdict for one in found.checks] == [Verdict.ASIDE, Verdict.ASIDE, Verdict.DIFFERS]
    assert "clock" in found.checks[0].words
    assert "random" in found.checks[1].words
    assert found.verdict is Verdict.DIFFERS
    assert found.first is not None
    assert found.first.recorded.call.ended == at
    assert "-3 passed in <duration>" in found.first.diff
    assert "+2 passed in <duration>" in found.first.diff
    early = await rebuild(live.log, live.plan(), live.ground, stop_at_first=True)
    assert early.verdict is Verdict.DIFFERS


async def test_a_tree_that_is_another_is_told_by_its_paths(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("head -c 8 /dev/urandom > drawn; echo same > same")
    snapshot_id = await live.snapshot()
    made = plan(live.log, live.stream, 4, hiding(live.ground.snapshots.where, {snapshot_id}))
    found = await rebuild(live.log, made, live.ground)
    assert [one.words for one in found.checks] == ["equal"]
    assert (found.tree.verdict, found.tree.of, found.tree.changed) == (Verdict.DIFFERS, snapshot_id, ("~ drawn",))
    assert found.verdict is Verdict.DIFFERS


async def test_files_that_differ_by_nature_are_told_apart_from_those_that_matter(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    await live.bash("git init -q .; git config user.email a@b.c; git config user.name a; echo x > x; git add x")
    await live.bash("git commit -qm one; sleep 1.1; date -Ins > when; git log --format=%H")
    snapshot_id = await live.snapshot()
    hidden = hiding(live.ground.snapshots.where, {snapshot_id})
    found = await rebuild(live.log, plan(live.log, live.stream, live.version, hidden), live.ground)
    assert [one.words for one in found.checks] == ["equal", "equal but for random"]
    assert (found.tree.verdict, found.tree.of, found.tree.changed) == (Verdict.ASIDE, snapshot_id, ())
    assert "~ when (clock)" in found.tree.aside
    assert "~ .git/index (clock)" in found.tree.aside
    assert found.verdict is Verdict.ASIDE


async def test_the_live_sandbox_its_log_and_its_snapshots_stay_as_they_are_beside_two_rebuilds(
    new_live: NewLive,
) -> None:
    live = await new_live()
    await live.bash("(while :; do sleep 0.05; done) & echo $! > pid; echo one > log")
    snapshot_id = await live.snapshot()
    await live.bash("echo two >> log")
    await live.look()
    log_file = live.log.path
    image = live.driver.volumes.snapshots / snapshot_id
    before = everything(log_file, image)
    rebuilds = [rebuild(live.log, live.plan(), live.ground, keep=keep) for keep in (False, True, False)]
    one, kept, third = await asyncio.gather(*rebuilds)
    assert len({one.sandbox_id, kept.sandbox_id, third.sandbox_id, live.sandbox_id}) == 4
    for found in (one, kept, third):
        assert found.verdict is Verdict.EQUAL
        assert found.tree.digest == live.digests[live.version]
    assert everything(log_file, image) == before
    assert await live.look() == one.tree.digest
    assert await live.bash("kill -0 $(cat pid) && cat log") == live.version
    # The kept one is a sandbox of its own, until it is removed.
    place = Place(live.driver.storage)
    assert kept.kept is not None
    assert kept.kept in place.kept()
    await rebuild(live.log, live.plan(4), live.ground)  # the next one lets it be
    assert {one.snapshot_id for one in await live.driver.snapshots()} >= {kept.kept.snapshot_id}
    assert live.driver.tree(kept.sandbox_id) is not None
    assert await remove_kept(live.driver, place, kept.sandbox_id[:-2]) == kept.sandbox_id
    assert live.driver.tree(kept.sandbox_id) is None
    assert kept.kept not in place.kept()


async def test_what_can_not_be_as_it_was_is_refused_and_nothing_started(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    crashed = live.put(
        SandboxCrashed(reason="exited"),
        SandboxRecovered(machine_id=live.machine.machine_id, node="node-a", kept="files", seconds=0.1),
    )
    await live.bash("echo after")
    with pytest.raises(NotReproducible) as caught:
        await rebuild(live.log, live.plan(), live.ground)
    assert f"its machine crashed (exited) ({live.stream}@{crashed - 1})" in str(caught.value)
    assert "before it can be" in caught.value.advice
    found = await rebuild(live.log, live.plan(), live.ground, anyway=True)
    assert found.checks == ()


async def test_a_snapshot_that_went_or_broke_names_the_nearest_left_and_its_cost(
    new_live: NewLive, driver: GvisorDriver
) -> None:
    live = await new_live()
    older = await live.snapshot()
    await live.bash("sleep 0.2; echo work")
    newer = await live.snapshot()
    made = live.plan()
    pages = max((driver.volumes.snapshots / newer / "image").iterdir(), key=lambda path: path.stat().st_size)
    with pages.open("r+b") as file:
        file.write(b"damaged!")
    with pytest.raises(SnapshotUnusable) as caught:
        await rebuild(live.log, made, live.ground)
    assert "is not what it was" in str(caught.value)
    assert f"The nearest that is left is {older} of {live.stream}@2: 1 calls to run again, which took 0." in (
        caught.value.advice
    )
    assert f"--without {newer}" in caught.value.advice
    await driver.drop_snapshot(newer)
    with pytest.raises(SnapshotUnusable, match="is not on this node"):
        await rebuild(live.log, made, live.ground)
    found = await rebuild(live.log, live.plan(), live.ground)
    assert found.plan.start.snapshot_id == older


async def test_a_call_that_hangs_ends_in_its_time_and_is_named(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    at = await live.call(
        "bash",
        {"command": "test -e /tmp/once && sleep 60; echo quick", "timeout_ms": 1500},
    )
    await live.bash("touch /tmp/once; echo made")
    # As it is run again, the file that makes it wait is there.
    live.put(
        *told("twice", "bash", {"command": "test -e /tmp/once && sleep 60; echo quick", "timeout_ms": 1500}, "quick")
    )
    with pytest.raises(CallHung) as caught:
        await rebuild(live.log, live.plan(), live.ground)
    assert caught.value.tool_use_id == "twice"
    assert 1 < caught.value.seconds < 15
    assert f"bash at {live.stream}@{at + 3} did not end within" in str(caught.value)


async def test_a_sandbox_of_another_driver_is_refused(new_live: NewLive, monkeypatch: pytest.MonkeyPatch) -> None:
    live = await new_live()
    monkeypatch.setattr(live.driver, "name", "qemu")
    with pytest.raises(OtherDriver, match="driver gvisor, and here is qemu"):
        await rebuild(live.log, live.plan(), live.ground)


async def test_a_cancelled_rebuild_leaves_nothing(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    await live.bash("sleep 3")
    reached = asyncio.Event()

    def heard(step: Step) -> None:
        if step.doing.startswith("bash"):
            reached.set()

    task = asyncio.create_task(rebuild(live.log, live.plan(), live.ground, heard=heard))
    await reached.wait()
    running: list[Any] = [one for one in await live.driver.running() if one.startswith("rebuild-")]
    assert len(running) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert live.driver.tree(running[0]) is None
    assert running[0] not in await live.driver.running()
    assert not list(Place(live.driver.storage).folder.glob(f"{running[0]}*"))
