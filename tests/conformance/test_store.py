"""Snapshots through the store, for every driver: gone from the node, then back, with memory and files as they were."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors.machines import images
from actors.machines.gvisor import GvisorDriver
from actors.machines.machine import GvisorMachine
from actors.machines.protocol import (
    FileRecord,
    MachineSpec,
    SnapshotBroken,
    SnapshotForeign,
    SnapshotMissing,
    SnapshotRecord,
)
from events import snapshots, tree_reader
from events.pruning import Choice, prune
from events.shelf import FolderShelf
from events.snapshots import SnapshotStore
from events.sqlite_log import SqliteLog
from events.store_errors import StoreBusy, TemplateRefused
from replay import export_session, import_session
from tests.conformance import drivers
from tests.conformance.conftest import NewSandbox
from tests.replay.history.boxes import call, created, put, started, taken

pytestmark = [pytest.mark.conformance, pytest.mark.asyncio(loop_scope="module")]

BEGIN = r"""
name=remembered
(while :; do date +%s%N > /tmp/tick; sleep 0.02; done) &
cd /workspace; exec 7>>log; echo one >&7; echo in memory > /tmp/file
mkdir -p odd/deep; ln -s /etc/passwd odd/out; ln log odd/hard; mkfifo odd/pipe; printf x > "odd/$(printf 'a\nb\377')"
truncate -s 3G odd/sparse; echo end >> odd/sparse; chmod 4750 odd/hard; chown 12:34 odd/deep
rm /usr/bin/jq; echo changed >> /etc/hosts; mv /usr/share/doc /usr/share/docs; touch -d @12 odd/deep
python3 -c '
import socket
socket.socket(socket.AF_UNIX).bind("odd/socket")
'
"""
LOOK = """
echo $name; cat /tmp/file; kill -0 %1 && echo ticking; tail -c 4 odd/sparse; stat -c '%a %u %h' odd/hard
stat -c '%u %g %Y' odd/deep; ls odd | wc -l; readlink odd/out; stat -c %F odd/pipe odd/socket
which jq || echo no jq; tail -n 1 /etc/hosts; ls -d /usr/share/docs; test -e /usr/share/doc || echo no doc
echo two >&7; cat log
"""
SEEN = """remembered
in memory
ticking
end
4750 0 2
12 34 12
8
/etc/passwd
fifo
socket
no jq
changed
/usr/share/docs
no doc
one
two"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SnapshotStore:
    return SnapshotStore.open(str(tmp_path_factory.mktemp("store")))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other(driver: GvisorDriver, new_sandbox: NewSandbox, store: SnapshotStore) -> AsyncIterator[GvisorDriver]:
    """The driver of another process of the node, with the store; its machines are counted as the first one's."""
    del new_sandbox
    made = drivers.make(f"gvisor-{driver.volumes.kind}", store)
    made._slots._lay_out = driver._slots._lay_out  # type: ignore[method-assign]
    yield made
    await made.close()


async def bash(machine: GvisorMachine, command: str) -> str:
    result = await machine.guest.run_tool(secrets.token_hex(8), "bash", {"command": command}, timeout=60)
    assert not result.is_error, result
    return "".join(str(block["text"]) for block in result.content)


async def begun(other: GvisorDriver, spec: MachineSpec) -> GvisorMachine:
    machine = await other.start(spec)
    await bash(machine, BEGIN)
    return machine


async def kept(other: GvisorDriver, machine: GvisorMachine) -> str:
    """A suspended machine whose snapshot is in the store, and on the node."""
    taken = await machine.snapshot(f"snap-{secrets.token_hex(8)}", hold=True)
    await machine.kill()
    stream = f"sandbox-{machine.sandbox_id}"
    told = await other.store_snapshot(taken.snapshot_id, stream=stream, version=3)
    assert told.snapshot_id == taken.snapshot_id
    return taken.snapshot_id


async def test_memory_and_files_come_back_from_the_store(
    other: GvisorDriver, new_sandbox: NewSandbox, store: SnapshotStore
) -> None:
    spec = new_sandbox()
    snapshot = await kept(other, await begun(other, spec))
    manifest, _ = store.manifest(snapshot)
    assert (manifest.stream, manifest.version) == (f"sandbox-{spec.sandbox_id}", 3)
    assert store.verify(snapshot, set()) == []
    # The listing is there to be read with no machine.
    hosts = [line for line in store.lines(manifest) if '"path":"etc/hosts"' in line]
    assert len(hosts) == 1
    await other.remove(spec.sandbox_id)
    assert snapshot not in {one.snapshot_id for one in await other.snapshots()}
    machine = await other.start(spec, snapshot_id=snapshot)
    assert await bash(machine, LOOK) == SEEN
    # And on: another snapshot of what came back, in the store and back again.
    again = await kept(other, machine)
    for one in (snapshot, again):
        await other.drop_snapshot(one)
    machine = await other.start(spec, snapshot_id=again)
    assert await bash(machine, "echo $name; cat log; kill -0 %1 && echo ticking") == "remembered\none\ntwo\nticking"
    await machine.kill()
    await other.remove(spec.sandbox_id)


async def test_a_session_that_was_exported_lives_again_elsewhere(
    driver: GvisorDriver, other: GvisorDriver, new_sandbox: NewSandbox, store: SnapshotStore, tmp_path: Path
) -> None:
    """Out of one home's log and store as a file, into another's, and from there into a machine."""
    if driver.volumes.kind == "overlay":
        pytest.skip("the file is the same whatever the volumes are")
    spec = new_sandbox()
    snapshot = await kept(other, await begun(other, spec))
    await other.remove(spec.sandbox_id)
    with SqliteLog(tmp_path / "log.db", durability="normal") as log:
        put(log, spec.sandbox_id, [created(), started(), *call("c1"), taken(snapshot, 3)])
        export_session(log, spec.sandbox_id, tmp_path / "x.hourglass", store)
    elsewhere = SnapshotStore.open(str(tmp_path / "elsewhere/snapshots"))
    import_session(tmp_path / "x.hourglass", tmp_path / "elsewhere/log.db", elsewhere)
    there = drivers.make(f"gvisor-{driver.volumes.kind}", elsewhere)
    there._slots._lay_out = driver._slots._lay_out  # type: ignore[method-assign]
    try:
        machine = await there.start(spec, snapshot_id=snapshot)
        assert await bash(machine, LOOK) == SEEN
        await machine.kill()
        await there.remove(spec.sandbox_id)
    finally:
        await there.close()


async def test_little_is_new_after_a_small_call(other: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    machine = await begun(other, spec)
    sizes = []
    for turn in range(3):
        await bash(machine, f"echo {turn} > small")
        taken = await machine.snapshot(f"snap-{secrets.token_hex(8)}")
        told = await other.store_snapshot(taken.snapshot_id, stream="sandbox-x", version=turn + 1)
        sizes.append(told.new_bytes / told.bytes)
        await other.drop_snapshot(taken.snapshot_id)
    assert max(sizes[1:]) < 0.05
    await machine.kill()


async def test_no_prune_comes_between_what_the_store_has_and_what_needs_it(
    other: GvisorDriver, new_sandbox: NewSandbox, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = new_sandbox()
    machine = await begun(other, spec)
    first = (await machine.snapshot(f"snap-{secrets.token_hex(8)}")).snapshot_id
    await other.store_snapshot(first, stream="sandbox-x", version=1)
    second = await kept(other, machine)
    machine = await other.start(spec, snapshot_id=second)
    last = (await machine.snapshot(f"snap-{secrets.token_hex(8)}", hold=True)).snapshot_id
    await machine.kill()
    knows = SnapshotStore.knows
    refused: list[StoreBusy] = []

    def pruned(self: SnapshotStore, snapshot_id: str, digest: str) -> bool:
        """All of it, by another process, as soon as it was said what is there."""
        known = knows(self, snapshot_id, digest)
        another = SnapshotStore(FolderShelf(Path(store.shelf.url), wait_seconds=0))
        try:
            prune(another, Choice(ids=(second,)), known=[], needs=lambda _: {})
        except StoreBusy as error:
            refused.append(error)
        return known

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotStore, "knows", pruned)
        await other.store_snapshot(last, stream="sandbox-x", version=3)
    assert len(refused) == 2  # of the template, and of the sandbox
    assert store.verify(last, set()) == []
    await other.remove(spec.sandbox_id)


async def test_a_broken_local_snapshot_is_mended_from_the_store(other: GvisorDriver, new_sandbox: NewSandbox) -> None:
    spec = new_sandbox()
    snapshot = await kept(other, await begun(other, spec))
    pages = other.volumes.snapshots / snapshot / "image" / "pages.img"
    content = bytearray(pages.read_bytes())
    content[len(content) // 2] ^= 1
    pages.write_bytes(content)
    machine = await other.start(spec, snapshot_id=snapshot)
    assert await bash(machine, LOOK) == SEEN
    await machine.kill()
    mended = other._node.images.verified(snapshot, "gvisor", other._node.driver_version())
    assert mended.sandbox_id == spec.sandbox_id
    # What is broken here does not get into the store either.
    pages.write_bytes(content)
    with pytest.raises(SnapshotBroken, match="not what it was when it was taken; it is not stored"):
        await other.store_snapshot(snapshot, stream="sandbox-x", version=1)
    await other.remove(spec.sandbox_id)


async def test_a_broken_chunk_leaves_nothing_and_the_last_good_state(
    other: GvisorDriver, new_sandbox: NewSandbox, store: SnapshotStore
) -> None:
    spec = new_sandbox()
    machine = await begun(other, spec)
    older = (await machine.snapshot(f"snap-{secrets.token_hex(8)}")).snapshot_id
    await bash(machine, "head -c 300000 /dev/urandom > unlike-any-other")
    snapshot = await kept(other, machine)
    manifest, _ = store.manifest(snapshot)
    lines = [line for line in store.lines(manifest) if "unlike-any-other" in line]
    chunk = lines[0].partition('"pieces":[[0,262144,"')[2][:64]
    path = Path(store.shelf.url) / "chunks" / chunk[:2] / chunk
    whole = path.read_bytes()
    await other.drop_snapshot(snapshot)
    for broken in (None, whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2]):
        path.unlink(missing_ok=True)
        if broken is not None:
            path.write_bytes(broken)
        with pytest.raises(SnapshotBroken, match=f"{snapshot} can't be had from the store: The chunk {chunk}.*verify"):
            await other.start(spec, snapshot_id=snapshot)
        left = [one.name for one in other.volumes.snapshots.iterdir() if one.name.startswith(snapshot)]
        assert left == []
        assert spec.sandbox_id not in await other.running()
    machine = await other.start(spec, snapshot_id=older)
    assert await bash(machine, LOOK) == SEEN
    await machine.kill()
    path.write_bytes(whole)
    machine = await other.start(spec, snapshot_id=snapshot)
    assert await bash(machine, "wc -c < unlike-any-other") == "300000"
    await machine.kill()
    await other.remove(spec.sandbox_id)


async def test_what_another_release_took_is_refused(
    other: GvisorDriver, new_sandbox: NewSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = new_sandbox()
    snapshot = await kept(other, await begun(other, spec))
    await other.drop_snapshot(snapshot)
    with monkeypatch.context() as patch:
        patch.setattr(other._node, "driver_version", lambda: "runsc 19990101")
        with pytest.raises(SnapshotForeign, match="this node has gvisor runsc 19990101: memory can't be brought back"):
            await other.start(spec, snapshot_id=snapshot)
    with pytest.raises(SnapshotMissing, match="not on this node, and not in the store"):
        await other.start(spec, snapshot_id="snap-nowhere")
    await other.remove(spec.sandbox_id)


async def test_several_starts_of_one_snapshot_get_it_once(
    other: GvisorDriver, new_sandbox: NewSandbox, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = new_sandbox()
    snapshot = await kept(other, await begun(other, parent))
    await other.drop_snapshot(snapshot)
    finished: list[str] = []
    seal = images.Images.seal

    def counting(
        self: images.Images, fresh: Path, record_of: Callable[[dict[str, FileRecord]], SnapshotRecord]
    ) -> SnapshotRecord:
        record = seal(self, fresh, record_of)
        finished.append(record.snapshot_id)
        return record

    monkeypatch.setattr(images.Images, "seal", counting)
    children = await asyncio.gather(*(other.start(new_sandbox(), snapshot_id=snapshot, fresh=True) for _ in range(3)))
    assert finished == [snapshot]
    assert await asyncio.gather(*(bash(child, LOOK) for child in children)) == [SEEN] * 3
    for child in children:
        await child.kill()
    await other.drop_snapshot(snapshot)


async def test_a_node_that_never_had_the_template_makes_it_from_the_store(
    other: GvisorDriver, new_sandbox: NewSandbox, store: SnapshotStore
) -> None:
    spec = new_sandbox()
    snapshot = await kept(other, await begun(other, spec))
    volumes, root = other.volumes, store.manifest(snapshot)[0].template_root
    hidden = volumes.templates / "hidden"
    await other.remove(spec.sandbox_id)
    listing = other.storage / "listings" / root
    listing.unlink()
    (volumes.templates / root).rename(hidden)
    try:
        machine = await other.start(spec, snapshot_id=snapshot)
        assert await bash(machine, LOOK) == SEEN
        await machine.kill()
        await other.remove(spec.sandbox_id)
        volumes.drop_root(root)
    finally:
        hidden.rename(volumes.templates / root)
        listing.unlink(missing_ok=True)


async def test_a_template_root_that_goes_while_it_is_needed_is_got_again(
    other: GvisorDriver, new_sandbox: NewSandbox, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = new_sandbox()
    snapshot = await kept(other, await begun(other, spec))
    volumes, root = other.volumes, store.manifest(snapshot)[0].template_root
    hidden, compose = volumes.templates / "hidden", volumes.compose
    await other.remove(spec.sandbox_id)

    def gone(folder: Path, template_root: Path, disk_bytes: int) -> AbstractContextManager[Path]:
        """As if another process had refreshed the template, with this snapshot not whole yet."""
        if not hidden.exists():
            template_root.rename(hidden)
        return compose(folder, template_root, disk_bytes)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(volumes, "compose", gone)
            machine = await other.start(spec, snapshot_id=snapshot)
        assert hidden.exists()
        assert await bash(machine, LOOK) == SEEN
        await machine.kill()
        # And with the snapshot whole on the node.
        other._node.remove_tree(spec.sandbox_id)
        volumes.drop_root(root)
        machine = await other.start(spec, snapshot_id=snapshot)
        assert await bash(machine, LOOK) == SEEN
        await machine.kill()
        # Where the store does not have it neither, the error says what is missing.
        other._node.remove_tree(spec.sandbox_id)
        volumes.drop_root(root)
        with monkeypatch.context() as patch:
            patch.setattr("actors.machines.exchange.template_id", lambda name: f"template-no-{name}")
            with pytest.raises(SnapshotBroken, match=f"needs the template root {root}, .* no snapshot template-no-"):
                await other.start(spec, snapshot_id=snapshot)
        await other.remove(spec.sandbox_id)
    finally:
        if hidden.exists():
            volumes.drop_root(root)
            hidden.rename(volumes.templates / root)


async def test_a_template_that_is_refused_is_looked_at_once(
    driver: GvisorDriver, new_sandbox: NewSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await driver.start(new_sandbox())
    taken = await machine.snapshot(f"snap-{secrets.token_hex(8)}", hold=True)
    await machine.kill()
    empty = SnapshotStore.open(str(tmp_path / "store"))
    storing = GvisorDriver(driver.storage, volumes=driver.volumes, store=empty)
    looks: list[Path] = []
    read_tree = tree_reader.read_tree

    def counting(root: Path, *rest: Any) -> Any:
        looks.append(root)
        return read_tree(root, *rest)

    monkeypatch.setattr(snapshots, "read_tree", counting)
    monkeypatch.setattr(tree_reader, "MOST_ENTRIES", 10)
    for _ in range(2):
        with pytest.raises(TemplateRefused, match=r"The template root base-\w+ is not stored.* more than 10 entries"):
            await storing.store_snapshot(taken.snapshot_id, stream="sandbox-x", version=1)
    assert len(looks) == 1
    assert empty.ids() == []
    await storing.close()
