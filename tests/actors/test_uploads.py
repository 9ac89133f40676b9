"""Snapshots that are taken by themselves, put into the store, and dropped here: real machines and log, no Ray."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from actors import isolation, uploads
from actors.machines.drivers import make_driver
from actors.machines.exchange import Exchange
from actors.operations import Operations
from actors.pace import Pace
from actors.sandbox import Sandbox
from actors.snapshotting import policy_wants
from events import tree_reader
from events.sandbox import Phase
from events.snapshots import SnapshotStore
from events.types import SandboxSnapshotStored, SandboxSnapshotted
from tests.actors.test_pausing import KEPT, second_turn, served

if TYPE_CHECKING:
    from pathlib import Path

    from tests.actors.conftest import Service
    from tests.service import Installed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


THREE_CALLS = "long-output"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SnapshotStore:
    """One for all of these tests: the template is put into it once."""
    return SnapshotStore.open(str(tmp_path_factory.mktemp("store")))


@pytest.fixture
def storing(service: Service, store: SnapshotStore) -> Service:
    service.settings = service.settings.model_copy(update={"snapshot_store": store.shelf.url})
    return service


def taken(service: Service, sandbox: str) -> list[SandboxSnapshotted]:
    return [one.data for one in service.history(sandbox) if isinstance(one.data, SandboxSnapshotted)]


async def local(service: Service, sandbox: str) -> list[str]:
    """A sandbox's snapshots on the node, the oldest first."""
    found = await make_driver(service.settings).snapshots()
    mine = [one for one in found if f"sandbox-{one.sandbox_id}" == sandbox]
    return [one.snapshot_id for one in sorted(mine, key=lambda one: one.taken_at)]


async def stays(service: Service, sandbox: str, wanted: list[str]) -> None:
    """Wait until these are all that the node has of a sandbox."""
    for _ in range(400):
        found = await local(service, sandbox)
        if found == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{found}, and not {wanted}")


@pytest.mark.parametrize(
    ("policy", "after", "calls", "wanted"),
    [
        ("turn", "turn", 3, "turn"),
        ("turn", "call", 3, None),
        ("turn", "turn", 0, None),
        ("call", "call", 1, "call"),
        ("call", "turn", 1, None),
        ("every:3", "call", 2, None),
        ("every:3", "call", 3, "every"),
        ("every:3", "turn", 5, None),
        ("never", "turn", 9, None),
        ("never", "call", 9, None),
    ],
)
def test_when_a_snapshot_is_wanted(policy: str, after: Any, calls: int, wanted: str | None) -> None:
    assert policy_wants(policy, after, calls) == wanted


async def test_a_turn_ends_with_a_snapshot_that_the_store_gets(storing: Service, store: SnapshotStore) -> None:
    async with storing.up():
        session_id, sandbox = await served(storing)
        (event,) = await storing.recorded(sandbox, "sandbox.snapshot_stored")
        (snapshot,) = taken(storing, sandbox)
        assert snapshot.reason == "turn"
        assert isinstance(event.data, SandboxSnapshotStored)
        assert event.data.snapshot_id == snapshot.snapshot_id
        manifest, digest = store.manifest(snapshot.snapshot_id)
        assert (manifest.stream, manifest.version, digest) == (sandbox, snapshot.of_version, event.data.manifest)
        # Of the state after the turn's last call.
        history = storing.history(sandbox)
        assert history[snapshot.of_version - 1].type == "tool_call.completed"
        assert store.verify(snapshot.snapshot_id, set()) == []
        assert event.data.bytes > 100 * 1024**2
        assert await second_turn(storing, session_id) == KEPT
    kinds = storing.kinds(sandbox)
    assert kinds.count("sandbox.snapshotted") >= 3  # two turns, and the end


async def test_a_sandbox_comes_back_from_the_store_alone(storing: Service) -> None:
    async with storing.up():
        session_id, sandbox = await served(storing)
        await Operations(storing.hosts[0]).pause(session_id, True, False)
        await storing.recorded(sandbox, "sandbox.snapshot_stored", count=2)
        driver = make_driver(storing.settings)
        for one in await local(storing, sandbox):
            await driver.drop_snapshot(one)
        assert await local(storing, sandbox) == []
        assert await second_turn(storing, session_id) == KEPT


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> asyncio.Semaphore:
    """Who has the places of the snapshots; released once, there is one."""
    taken_up = asyncio.Semaphore(0)

    def held(places: int) -> Pace:
        pace = Pace(places)
        pace.snapshot = taken_up
        return pace

    monkeypatch.setattr(isolation, "Pace", held)
    return taken_up


async def test_one_that_finds_the_sandbox_in_use_is_taken_afterwards(
    service: Service, others: asyncio.Semaphore
) -> None:
    async with service.up():
        _, sandbox = await served(service)
        await service.recorded(sandbox, "sandbox.frozen")
        kept = service.hosts[0].kept[sandbox.removeprefix("sandbox-")].handle
        assert isinstance(kept, Sandbox)
        async with kept._call_turn:
            others.release()
            await asyncio.sleep(0.2)
            assert taken(service, sandbox) == []
        await service.recorded(sandbox, "sandbox.snapshotted")
        assert [one.reason for one in taken(service, sandbox)] == ["turn"]
        assert kept.state.phase is Phase.FROZEN


async def test_one_that_waits_for_others_keeps_nobody_awake_and_nobody_waiting(
    service: Service, others: asyncio.Semaphore
) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        await service.recorded(sandbox, "sandbox.frozen")
        assert await second_turn(service, session_id) == KEPT
        await service.recorded(sandbox, "sandbox.frozen", count=2)
        assert taken(service, sandbox) == []
        others.release()
        (event,) = await service.recorded(sandbox, "sandbox.snapshotted")
        assert isinstance(event.data, SandboxSnapshotted)
        # One for both turns, of the last call of the second: at rest it was as that call had left it.
        history = service.history(sandbox)
        of = event.data.of_version
        assert [one.type for one in history[of - 1 : of + 1]] == ["tool_call.completed", "sandbox.frozen"]
        assert [one.type for one in history].index("sandbox.snapshotted") > of
    assert [one.reason for one in taken(service, sandbox)] == ["turn", "suspend"]


async def test_older_ones_are_in_the_store_alone(storing: Service, store: SnapshotStore) -> None:
    storing.settings = storing.settings.model_copy(update={"snapshots": "call", "snapshots_local": 2})
    async with storing.up():
        _, sandbox = await served(storing, THREE_CALLS)
        calls = storing.kinds(sandbox).count("tool_call.completed")
        assert calls >= 3
        stored = await storing.recorded(sandbox, "sandbox.snapshot_stored", count=calls)
        snapshots = taken(storing, sandbox)
        assert {one.reason for one in snapshots[:calls]} == {"call"}
        await stays(storing, sandbox, [one.snapshot_id for one in snapshots[:calls]][-2:])
        assert all(store.has(one.data.snapshot_id) for one in stored)  # type: ignore[union-attr]
        # Each is of the state after its call, and before the next one.
        kinds = storing.kinds(sandbox)
        for number, one in enumerate(snapshots[:calls], start=1):
            before = kinds[: one.of_version]
            assert before.count("tool_call.started") == before.count("tool_call.completed") == number


async def test_without_a_store_the_newest_stay(service: Service) -> None:
    service.settings = service.settings.model_copy(update={"snapshots": "every:1", "snapshots_local": 1})
    async with service.up():
        _, sandbox = await served(service, THREE_CALLS)
        snapshots = taken(service, sandbox)
        assert {one.reason for one in snapshots} == {"every"}
        assert len(snapshots) >= 3
        assert await local(service, sandbox) == [snapshots[-1].snapshot_id]
    assert "sandbox.snapshot_stored" not in service.kinds(sandbox)


async def test_never_means_never(service: Service) -> None:
    service.settings = service.settings.model_copy(update={"snapshots": "never"})
    async with service.up():
        _, sandbox = await served(service)
        assert "sandbox.snapshotted" not in service.kinds(sandbox)


async def test_what_one_host_did_not_upload_the_next_one_does(
    storing: Service, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def blocked(self: Exchange, snapshot_id: str, *, stream: str, version: int) -> Any:
        begun.set()
        go_on.wait(30)
        raise OSError("as if the host had died here")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Exchange, "upload", blocked)
            async with storing.up():
                _, sandbox = await served(storing)
                assert await asyncio.to_thread(begun.wait, 30)
    finally:
        go_on.set()
    snapshots = [one.snapshot_id for one in taken(storing, sandbox)]
    assert len(snapshots) == 2  # of the turn, and of the stop
    assert not any(map(store.has, snapshots))
    async with storing.up():
        await storing.hosts[-1].recover()
        stored = await storing.recorded(sandbox, "sandbox.snapshot_stored", count=2)
        assert [one.data.snapshot_id for one in stored] == snapshots  # type: ignore[union-attr]
    assert [store.verify(one, set()) for one in snapshots] == [[], []]


async def test_a_store_that_fails_is_tried_again(
    storing: Service, store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(uploads, "_AGAIN_S", 0.2)
    place = tmp_path / "not-yet"
    place.write_text("in the way")
    storing.settings = storing.settings.model_copy(update={"snapshot_store": str(place)})
    async with storing.up():
        session_id, sandbox = await served(storing)
        while "not in the store yet" not in caplog.text:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.05)
        await storing.given_back()
        # Nobody waits for it.
        assert await second_turn(storing, session_id) == KEPT
        place.unlink()
        place.symlink_to(store.shelf.url)
        await storing.recorded(sandbox, "sandbox.snapshot_stored", count=2)


async def test_a_tree_that_is_refused_stays_here_and_holds_up_no_other(
    storing: Service, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """All of it works on the node; what a fork began with, and what somebody asked for, is kept."""
    storing.settings = storing.settings.model_copy(update={"snapshots_local": 1})
    async with storing.up():
        first, other = await served(storing)
        await storing.recorded(other, "sandbox.snapshot_stored")  # and so the template is there
        with monkeypatch.context() as patch:
            patch.setattr(tree_reader, "MOST_ENTRIES", 10)
            session_id, sandbox = await served(storing)
            operations = Operations(storing.hosts[0])
            asked = (await operations.snapshot(session_id))["snapshot_id"]
            await operations.pause(session_id, True, False)
            (child,) = (await operations.fork(session_id, 1))["children"]
            assert "error" not in child
            await storing.given_back()
            assert await second_turn(storing, session_id) == KEPT
            await storing.recorded(sandbox, "sandbox.snapshotted", count=4)
            by_turn, _, rest, by_second = [one.snapshot_id for one in taken(storing, sandbox)]
            while f"(snapshot {by_second})" not in caplog.text:  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.05)
            await stays(storing, sandbox, [asked, rest, by_second])
        assert "sandbox.snapshot_stored" not in storing.kinds(sandbox)
        whose = f"The file tree of the sandbox {sandbox.removeprefix('sandbox-')} is not stored"
        assert f"{whose} (snapshot {by_turn}): it has more than 10 entries. The sandbox is suspended" in caplog.text
        assert "Make its tree simpler" in caplog.text
        assert f"were given up sandbox_id={sandbox.removeprefix('sandbox-')} snapshots={by_turn}" in caplog.text
        assert caplog.text.count(f"{whose} (snapshot {by_turn})") == 1  # not again and again
        await second_turn(storing, first)
        await storing.recorded(other, "sandbox.snapshot_stored", count=2)


async def test_a_store_that_fails_for_long_costs_no_more_than_so_much(
    storing: Service, store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(uploads, "_AGAIN_S", 0.2)
    place = tmp_path / "not-yet"
    place.write_text("in the way")
    storing.settings = storing.settings.model_copy(
        update={"snapshot_store": str(place), "snapshots": "call", "snapshots_waiting": 1, "snapshots_local": 1}
    )
    async with storing.up():
        _, sandbox = await served(storing, THREE_CALLS)
        calls = storing.kinds(sandbox).count("tool_call.completed")
        assert calls >= 3
        await storing.recorded(sandbox, "sandbox.snapshotted", count=calls)
        names = [one.snapshot_id for one in taken(storing, sandbox)][:calls]
        # The one that is being tried, and the newest.
        await stays(storing, sandbox, [names[0], names[-1]])
        assert f"were given up sandbox_id={sandbox.removeprefix('sandbox-')} snapshots={names[1]}" in caplog.text
        place.unlink()
        place.symlink_to(store.shelf.url)
        stored = await storing.recorded(sandbox, "sandbox.snapshot_stored", count=2)
        assert [one.data.snapshot_id for one in stored] == [names[0], names[-1]]  # type: ignore[union-attr]
        await stays(storing, sandbox, names[-1:])


async def test_a_call_waits_for_no_more_than_the_part_that_is_held(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second turn is served whole while the first one's snapshot is being made durable."""
    from actors.machines.images import Images

    go_on = threading.Event()
    seal = Images.seal

    def slow(self: Images, fresh: Path, record_of: Any) -> Any:
        if fresh.name.startswith("turn-"):
            go_on.wait(30)
        return seal(self, fresh, record_of)

    monkeypatch.setattr(Images, "seal", slow)
    async with service.up():
        try:
            session_id, _ = await served(service)
            await service.given_back()
            assert await second_turn(service, session_id) == KEPT
            sandbox = service.sandbox_of(session_id)
            kinds = service.kinds(sandbox)
            assert kinds.count("tool_call.completed") == 2
            assert "sandbox.snapshotted" not in kinds
        finally:
            go_on.set()
        (first, *_) = await service.recorded(sandbox, "sandbox.snapshotted")
        history = service.history(sandbox)
        data = first.data
        assert isinstance(data, SandboxSnapshotted)
        assert [one.type for one in history[: data.of_version]].count("tool_call.completed") == 1
        assert first.version > data.of_version + 1
    assert "sandbox.crashed" not in service.kinds(sandbox)


def test_with_processes_of_their_own_a_turn_reaches_the_store_too(
    installed: Installed, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hourglass up` as users start it: the sandbox is a Ray actor, and its host puts the snapshot into the store."""
    monkeypatch.setenv("HOURGLASS_SNAPSHOT_STORE", store.shelf.url)
    installed.options = ["--isolation", "process"]
    with installed.up():
        session_id = installed.session("two-turns")
        sandbox = installed.sandbox_of(session_id)
        (event,) = installed.wait_for(sandbox, "sandbox.snapshot_stored")
        (snapshot,) = [one.data for one in installed.history(sandbox) if isinstance(one.data, SandboxSnapshotted)]
    assert isinstance(event.data, SandboxSnapshotStored)
    assert (event.data.snapshot_id, snapshot.reason) == (snapshot.snapshot_id, "turn")
    manifest, digest = store.manifest(snapshot.snapshot_id)
    assert (manifest.stream, manifest.version, digest) == (sandbox, snapshot.of_version, event.data.manifest)
    assert store.verify(snapshot.snapshot_id, set()) == []
