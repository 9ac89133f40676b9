"""Verification of whole histories: leg by leg, the failures collected, and what was found recorded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from actors.machines.gvisor import GvisorDriver
from events.snapshots import SnapshotStore
from events.sqlite_log import SqliteLog
from events.types import ReplayDiverged, ReplayVerified, SandboxCrashed, SandboxRecovered
from replay.rebuild.findings import stream_of
from replay.rebuild.verifying import Status, legs, verify
from tests.replay.history.boxes import call as told
from tests.replay.rebuild.live import Live
from tests.replay.rebuild.test_commands import hourglass

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.replay.rebuild.conftest import NewLive

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SnapshotStore:
    return SnapshotStore.open(str(tmp_path_factory.mktemp("store")))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def storing(driver: GvisorDriver, store: SnapshotStore) -> AsyncIterator[GvisorDriver]:
    """The driver of another process of the node, with a store."""
    made = GvisorDriver(driver.storage, volumes=driver.volumes, store=store)
    yield made
    await made.close()


async def history(live: Live) -> list[str]:
    """Two snapshots, calls around them; the snapshots' ids."""
    await live.bash("n=1; echo $n > n")
    first = await live.snapshot()
    await live.bash("n=$((n + 1)); echo $n >> n; date -Ins")
    await live.call("read", {"file_path": "n"})
    second = await live.snapshot()
    await live.bash("cat n; echo $n")
    return [first, second]


async def test_a_history_is_verified_from_each_snapshot_to_the_next(new_live: NewLive) -> None:
    live = await new_live()
    first, second = await history(live)
    parts = legs(live.log, live.stream, live.version, live.ground)
    assert [(leg.plan.start.kind, leg.plan.start.snapshot_id, leg.calls) for leg in parts] == [
        ("template", "", 1),
        ("snapshot", first, 1),
        ("snapshot", second, 1),
    ]
    found = await verify(live.log, live.stream, live.version, live.ground)
    assert (found.status, found.calls, found.aside, found.lost, found.detail) == (
        Status.VERIFIED,
        3,
        {"clock": 1},
        0,
        "",
    )
    assert found.tree_digest == await live.look()
    assert isinstance(found.event(), ReplayVerified)


async def test_what_no_rebuild_repeats_is_counted_and_the_rest_verified(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("echo one")
    live.put(
        SandboxCrashed(reason="exited"),
        SandboxRecovered(machine_id=live.machine.machine_id, node="node-a", kept="files", seconds=0.1),
    )
    await live.bash("echo after")
    await live.snapshot()
    await live.bash("echo two")
    found = await verify(live.log, live.stream, live.version, live.ground)
    assert (found.status, found.calls, found.lost) == (Status.VERIFIED, 2, 1)
    assert "its machine crashed" in found.because[0]


async def test_the_first_call_that_differs_is_named_and_no_other_is_run(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    await live.bash("echo same")
    at = await live.bash("echo real; echo more", content=[{"type": "text", "text": "recorded\nmore"}])
    await live.bash("echo never run")
    found = await verify(live.log, live.stream, live.version, live.ground)
    assert (found.status, found.calls, found.at) == (Status.DIVERGED, 2, f"{live.stream}@{at - 1}")
    assert "-recorded\n+real" in found.detail
    event = found.event()
    assert isinstance(event, ReplayDiverged)
    assert event.tool_use_id == found.tool_use_id
    assert event.recorded != event.rebuilt


async def test_a_work_tree_that_is_not_reached_diverges_at_the_snapshot(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("head -c 9 /dev/urandom > drawn")
    second = await live.snapshot()
    found = await verify(live.log, live.stream, live.version, live.ground)
    assert (found.status, found.tool_use_id) == (Status.DIVERGED, "")
    assert f"the work tree is not that of {second}:\n~ drawn" in found.detail


async def test_a_call_that_hangs_diverges_and_nothing_raises(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    live.put(*told("hangs", "bash", {"command": "sleep 60", "timeout_ms": 500}, "quick"))
    found = await verify(live.log, live.stream, live.version, live.ground)
    assert (found.status, found.tool_use_id) == (Status.DIVERGED, "hangs")
    assert "did not end within" in found.detail
    empty = await new_live()
    assert (await verify(empty.log, empty.stream, empty.version, empty.ground)).status is Status.NOTHING


async def test_from_the_store_alone(new_live: NewLive, storing: GvisorDriver, store: SnapshotStore) -> None:
    live = await new_live(store, storing)
    for one in await history(live):
        await storing.store_snapshot(one, stream=live.stream, version=1)
        await storing.drop_snapshot(one)
    assert live.plan().start.where == ("store",)
    found = await verify(live.log, live.stream, live.version, live.ground)
    assert (found.status, found.calls) == (Status.VERIFIED, 3), found.detail


async def test_the_command_goes_on_after_a_failure_and_records_each(new_live: NewLive) -> None:
    good, bad, broken = await new_live(), await new_live(), await new_live()
    await good.bash("echo good")
    await bad.bash("echo bad", content=[{"type": "text", "text": "good"}])
    await broken.bash("echo x")
    page = max(
        (good.driver.volumes.snapshots / await broken.snapshot() / "image").iterdir(), key=lambda p: p.stat().st_size
    )
    await broken.bash("echo y")
    with page.open("r+b") as file:
        file.write(b"damaged!")
    good.log.close()  # nobody writes it: we may
    code, out, err = await hourglass(good, "verify", "--all", "--json")
    assert code == 1, err
    said: dict[str, Any] = json.loads(out)
    by_stream = {one["stream"]: one for one in said["sandboxes"]}
    assert (said["verified"], said["diverged"], said["failed"]) == (1, 1, 1)
    assert by_stream[good.stream]["status"] == "verified"
    assert by_stream[bad.stream]["status"] == "diverged"
    assert "The nearest that is left is the template base" in by_stream[broken.stream]["detail"]
    assert all(one["not_recorded"] is None for one in said["sandboxes"])
    with SqliteLog(good.log.path, read_only=True) as log:
        assert [event.type for event in log.read(stream_of(good.stream))] == ["replay.verified"]
        [event] = log.read(stream_of(bad.stream))
        assert isinstance(event.data, ReplayDiverged)
        assert "-good\n+bad" in event.data.detail
        assert event.correlation_id == "sesn_01history"
        assert not list(log.read(stream_of(broken.stream)))
        assert log.version(good.stream) == good.version
        assert log.verify() is None
    code, out, _ = await hourglass(good, "verify", good.sandbox_id, bad.sandbox_id, "--no-record")
    assert code == 1
    assert f"{bad.stream} differs at {bad.stream}@3" in out
    assert "verified" in out
    with SqliteLog(good.log.path, read_only=True) as log:
        assert log.version(stream_of(good.stream)) == 1
    for arguments, message in (((), "none was named"), (("nobody",), "no session or sandbox 'nobody'")):
        code, out, err = await hourglass(good, "verify", *arguments)
        assert code == 1
        assert message in err
