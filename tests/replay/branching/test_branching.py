"""Branches in real machines: what they begin with, what is said where that can't be, and that the parent stays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from actors.machines.gvisor import GvisorDriver
from actors.machines.protocol import MachineSpec
from events.sandbox import Phase, SandboxState
from events.snapshots import SnapshotStore
from events.sqlite_log import SqliteLog
from events.types import (
    EgressClosed,
    EgressConnected,
    EgressPolicyChanged,
    EgressRefused,
    SandboxCrashed,
    SandboxRecovered,
)
from events.usage import usage_of
from events.work_tree import digest_of, lines_on_disk
from replay.branching.branching import branch
from replay.branching.errors import NotTheSame, RestNotRepeatable
from replay.branching.what_if import Replacement, what_if
from replay.history.comparing import compare
from replay.history.planned import Fate
from replay.history.planning import plan
from replay.history.states import state_at
from replay.history.target import Target
from replay.history.trees import tree_at
from replay.parcel.packing import export_session
from replay.parcel.unpacking import import_session
from replay.rebuild.checks import Verdict
from replay.rebuild.errors import CallHung, NotReproducible, SnapshotUnusable
from replay.rebuild.preparing import hiding
from replay.rebuild.rebuilding import rebuild
from replay.rebuild.verifying import Status, verify
from tests.conformance import drivers
from tests.replay.history.boxes import call as told
from tests.replay.rebuild.live import LIMITS, Live, everything

if TYPE_CHECKING:
    from pathlib import Path

    from replay.branching.branching import Branch
    from tests.replay.rebuild.conftest import NewLive

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("ended")]


def state_of(live: Live, made: Branch) -> SandboxState:
    state = state_at(live.log, f"sandbox-{made.sandbox_id}")
    assert isinstance(state, SandboxState)
    return state


async def digest(live: Live, made: Branch) -> str:
    """Of the work tree in a branch's own snapshot."""

    def read() -> str:
        with live.driver.volumes.view(live.driver.volumes.snapshots / made.snapshot_id) as tree:
            return digest_of(lines_on_disk(tree))

    return await asyncio.to_thread(read)


async def ask(live: Live, made: Branch, command: str) -> str:
    """What a command prints in it, started as a host starts it."""
    state = state_of(live, made)
    machine = await live.driver.start(
        MachineSpec(made.sandbox_id, state.template, LIMITS), snapshot_id=state.snapshot_id, fresh=not state.machine_id
    )
    try:
        result = await machine.guest.run_tool("asked", "bash", {"command": command}, timeout=20)
    finally:
        await machine.kill()
    return str(result.content[0]["text"])


async def test_at_a_snapshot_it_is_a_copy_with_an_identity_of_its_own_and_the_parent_stays(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("(while :; do sleep 0.05; done) & echo $! > pid; echo one > a; export KEPT=yes")
    snapshot_id = await live.snapshot()
    await live.look()
    at = live.version
    image = live.driver.volumes.snapshots / snapshot_id
    history = [event.hash for event in live.log.read(live.stream)]
    before = everything(image)
    made = await branch(live.log, live.plan(), live.ground)
    assert made.rebuilt is None
    assert [event.type for event in live.log.read(f"sandbox-{made.sandbox_id}")] == [
        "sandbox.branched",
        "sandbox.snapshotted",
        "sandbox.suspended",
    ]
    state = state_of(live, made)
    assert (state.phase, state.session_id, state.parent, state.snapshot_id) == (
        Phase.SUSPENDED,
        "",
        live.sandbox_id,
        made.snapshot_id,
    )
    assert await digest(live, made) == live.digests[at]
    own = plan(live.log, state.stream, made.version, live.ground.snapshots.where)
    assert (own.start.snapshot_id, own.reproducible, own.of(Fate.AGAIN)) == (made.snapshot_id, True, [])
    # It is itself, and goes on where its parent was.
    said = await ask(live, made, "hostname; kill -0 $(cat pid) && echo $KEPT; cat a; echo two > a; cat /etc/machine-id")
    hostname, kept, one, machine_id = said.split()
    assert (hostname, kept, one) == (made.sandbox_id, "yes", "one")
    assert await live.bash(f"hostname; test $(cat a) = one && test $(cat /etc/machine-id) != {machine_id}")
    *_, last = live.log.read_data(live.stream)
    assert last.content[0]["text"].strip() == live.sandbox_id  # type: ignore[union-attr]
    assert last.is_error is False  # type: ignore[union-attr]
    assert everything(image) == before
    assert [event.hash for event in live.log.read(live.stream)][: len(history)] == history


async def test_what_it_asked_of_the_network_is_no_state_of_a_machine_and_no_branch_may_ask_it(
    new_live: NewLive,
) -> None:
    live = await new_live()
    refused = EgressRefused(host="evil.example", protocol="dns", reason="not_allowed")
    closed = EgressClosed(host="a.example", port=443, connections=1, bytes_sent=1, bytes_received=1, seconds=0.0)
    live.put(EgressPolicyChanged(allow=["a.example"], settings=["a.example"], by="settings"))
    await live.bash(
        "echo one > a",
        [EgressConnected(host="a.example", port=443, address="93.184.216.34", rule="a.example"), refused],
    )
    snapshot_id = await live.snapshot()
    # Told after the snapshot, of what was before; and from here on nothing was let through.
    live.put(closed, EgressPolicyChanged(allow=["a.example", "b.example"], settings=["a.example"], by="ann"))
    await live.bash("cat a; echo two >> a", [refused])
    live.put(refused)
    await live.look()
    again = await rebuild(live.log, live.plan(), live.ground)
    assert (again.verdict, again.plan.start.snapshot_id) == (Verdict.EQUAL, snapshot_id)
    assert again.tree.digest == live.digests[live.version]
    # The call of the first leg can't be repeated, and is nothing to the second.
    outcome = await verify(live.log, live.stream, live.version, live.ground)
    assert (outcome.status, outcome.calls, outcome.lost) == (Status.VERIFIED, 1, 1), outcome
    made = await branch(live.log, live.plan(), live.ground)
    assert await digest(live, made) == live.digests[live.version]
    # And at the snapshot, whatever was told since: a copy.
    copied = await branch(live.log, live.plan(live.version - 4), live.ground)
    assert copied.rebuilt is None
    for one in (made, copied):
        assert (state_of(live, one).egress, state_of(live, one).egress_settings) == ((), None)
        assert not [event for event in live.log.read(f"sandbox-{one.sandbox_id}") if event.type.startswith("egress.")]


async def test_calls_run_again_and_are_compared_and_all_that_looks_back_works_on_it(
    new_live: NewLive, tmp_path: Path
) -> None:
    store = SnapshotStore.open(str(tmp_path / "store"))
    volumes = drivers.node_volumes()
    driver = GvisorDriver(volumes.storage, volumes=volumes, store=store)
    live = await new_live(store, driver)
    await live.bash("echo one > a")
    snapshot_id = await live.snapshot()
    await driver.store_snapshot(snapshot_id, stream=live.stream, version=live.version - 1)
    at = await live.bash("echo two >> a; date +%s.%N")
    await live.look()
    await live.bash("echo three >> a")
    in_store = everything(tmp_path / "store")
    one, other = await asyncio.gather(*(branch(live.log, live.plan(at), live.ground) for _ in range(2)))
    assert one.sandbox_id != other.sandbox_id
    for made in (one, other):
        assert made.rebuilt is not None
        assert [check.words for check in made.rebuilt.checks] == ["equal but for clock"]
        assert await digest(live, made) == live.digests[at] == made.rebuilt.tree.digest
        assert (made.not_stored, store.has(made.snapshot_id), made.version) == ("", True, 4)
    # The store has all that it had.
    assert in_store.items() <= everything(tmp_path / "store").items()
    stream = f"sandbox-{one.sandbox_id}"
    tree = tree_at(live.log, Target(stream, one.version), live.ground.snapshots)
    _, entry = tree.find("/workspace/a")
    assert b"".join(tree.listing.read(entry)) == b"one\ntwo\n"
    found = compare(live.log, Target(live.stream, at), Target(stream, one.version), live.ground.snapshots, nearest=True)
    assert str(found.common) == f"{live.stream}@{at}"
    assert (found.only_a, found.only_b) == ((), ())
    rebuilt = await rebuild(live.log, plan(live.log, stream, one.version, live.ground.snapshots.where), live.ground)
    assert (rebuilt.verdict, rebuilt.checks) == (Verdict.EQUAL, ())
    # A branch of a branch, from its parent's parent's snapshot where its own is as if gone.
    hidden = hiding(live.ground.snapshots.where, {one.snapshot_id})
    second = await branch(live.log, plan(live.log, stream, 1, hidden), live.ground)
    assert second.rebuilt is not None
    assert len(second.rebuilt.checks) == 1
    assert state_of(live, second).parent == one.sandbox_id
    assert await digest(live, second) == live.digests[at]
    # Elsewhere, from a file, with all that led to it.
    done = export_session(live.log, one.sandbox_id, tmp_path / "x.hourglass", None)
    assert set(done.streams) == {live.stream, stream}
    import_session(done.path, tmp_path / "log.db", None)
    with SqliteLog(tmp_path / "log.db", read_only=True) as imported:
        there = plan(imported, stream, one.version, live.ground.snapshots.where)
        assert there.start.snapshot_id == one.snapshot_id
        assert usage_of(one.sandbox_id, imported.read(stream), 0).session_id == ""
    await driver.close()


async def test_what_would_begin_with_something_else_is_refused_and_nothing_is_left(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    at = await live.bash("cat b", content=[{"type": "text", "text": "there"}], is_error=False)
    streams, trees = live.log.streams(), live.driver.volumes.sandboxes()
    with pytest.raises(NotTheSame) as caught:
        await branch(live.log, live.plan(), live.ground)
    assert f"bash at {live.stream}@{at - 1} gave something else" in str(caught.value)
    assert caught.value.found is not None
    assert "-there" in caught.value.found.checks[0].diff
    assert (live.log.streams(), live.driver.volumes.sandboxes()) == (streams, trees)
    made = await branch(live.log, live.plan(), live.ground, anyway=True)
    assert state_of(live, made).phase is Phase.SUSPENDED
    crashed = live.put(
        SandboxCrashed(reason="exited"),
        SandboxRecovered(machine_id=live.machine.machine_id, node="node-a", kept="files", seconds=0.1),
    )
    with pytest.raises(NotReproducible) as refused:
        await branch(live.log, live.plan(crashed), live.ground)
    assert f"{live.stream}@{at} before it can be" in refused.value.advice


async def test_a_snapshot_that_went_names_the_nearest_left_with_a_copy_too(new_live: NewLive) -> None:
    live = await new_live()
    older = await live.snapshot()
    await live.bash("echo work")
    newer = await live.snapshot()
    made = live.plan()
    assert made.of(Fate.AGAIN) == []
    await live.driver.drop_snapshot(newer)
    with pytest.raises(SnapshotUnusable) as caught:
        await branch(live.log, made, live.ground)
    assert f"The nearest that is left is {older} of {live.stream}@2: 1 calls to run again" in caught.value.advice


async def test_a_call_that_hangs_on_the_way_is_named(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("touch /tmp/once")
    await live.snapshot()
    asked = {"command": "test -e /tmp/once && sleep 60; echo quick", "timeout_ms": 1000}
    at = live.put(*told("hangs", "bash", asked, "quick"))
    with pytest.raises(CallHung, match=f"bash at {live.stream}@{at - 1} did not end"):
        await branch(live.log, live.plan(), live.ground)


async def test_another_call_in_place_of_one_and_where_the_results_part(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("echo 1 > n; hostname > who")
    await live.snapshot()
    await live.bash("cat n; hostname")
    replaced = await live.bash("echo 2 > n; echo wrote")
    same = await live.bash("hostname; echo same")
    looked = await live.call("read", {"file_path": "n"})
    await live.bash("ten=$(( $(cat n) * 10 )); echo $ten > n; cat n")
    last = live.version
    await live.look()
    history = [event.hash for event in live.log.read(live.stream)]
    planned = what_if(live.log, live.stream, last, [Replacement(replaced, {"command": "echo 3 > n; echo wrote"})])
    assert planned.begin.version == replaced - 2
    made = await branch(live.log, live.plan(planned.begin.version), live.ground, what_if=planned)
    assert made.rebuilt is not None
    assert [one.words for one in made.rebuilt.checks] == ["equal"]
    # They ran under its own name, which is by nature another one.
    assert [one.check.words for one in made.runs] == ["equal", "equal but for random", "differs", "differs"]
    assert made.diverged is not None
    assert made.diverged.check.recorded.call.ended == looked
    assert [line[-1] for line in made.diverged.check.diff.splitlines() if line[0] in "+-"][2:] == ["2", "3"]
    stream = f"sandbox-{made.sandbox_id}"
    types = [event.type for event in live.log.read(stream)]
    calls = ["tool_call.started", "tool_call.completed"] * 4
    assert types == ["sandbox.branched", "sandbox.started", *calls, "sandbox.snapshotted", "sandbox.suspended"]
    state = state_of(live, made)
    asked = [event.data.input for event in live.log.read(stream) if event.type == "tool_call.started"]  # type: ignore[union-attr]
    assert asked[0] == {"command": "echo 3 > n; echo wrote"}
    assert len(state.calls) == 4
    results = [event.data.content[0]["text"] for event in live.log.read(stream) if event.type == "tool_call.completed"]  # type: ignore[union-attr]
    assert results[1].split() == [made.sandbox_id, "same"]
    assert results[3].strip() == "30"
    assert await digest(live, made) != live.digests[last]
    assert [event.hash for event in live.log.read(live.stream)] == history
    # Its own calls can be rebuilt, and be replaced again.
    hidden = hiding(live.ground.snapshots.where, {made.snapshot_id})
    rebuilt = await rebuild(live.log, plan(live.log, stream, len(types) - 2, hidden), live.ground)
    assert [one.words for one in rebuilt.checks] == ["equal but for random", *["equal"] * 3]
    assert (rebuilt.tree.of, rebuilt.tree.verdict) == (made.snapshot_id, Verdict.EQUAL)
    again = what_if(live.log, stream, len(types), [Replacement(9, {"command": "rm n"})])
    second = await branch(live.log, plan(live.log, stream, again.begin.version, hidden), live.ground, what_if=again)
    assert [one.call.replaced for one in second.runs] == [True]
    assert await ask(live, second, "ls; hostname") == f"who\n{second.sandbox_id}"
    assert same < looked


async def test_what_comes_after_a_replaced_call_must_be_repeatable_unless_it_is_left_out(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    at = await live.bash("echo one")
    crashed = live.put(
        SandboxCrashed(reason="exited"),
        SandboxRecovered(machine_id=live.machine.machine_id, node="node-a", kept="files", seconds=0.1),
    )
    await live.bash("echo two")
    planned = what_if(live.log, live.stream, live.version, [Replacement(at, {"command": "false"})])
    with pytest.raises(RestNotRepeatable) as caught:
        await branch(live.log, live.plan(planned.begin.version), live.ground, what_if=planned)
    assert f"its machine crashed (exited) ({live.stream}@{crashed - 1})" in str(caught.value)
    assert f"{live.stream}@{crashed - 2} can be." in caught.value.advice
    made = await branch(live.log, live.plan(planned.begin.version), live.ground, what_if=planned, anyway=True)
    assert [one.completed.is_error for one in made.runs] == [True]
