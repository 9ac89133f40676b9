"""Where the store puts its objects: what a power cut leaves of them, and marks where there are no locks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from events import marks
from events import shelf as shelves
from events.remote_shelf import RemoteShelf
from events.shelf import FolderShelf
from events.snapshots import SnapshotStore
from events.store_errors import MarkLost, StoreBusy
from tests.events.stores import add, draft, make_image, make_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIE = """
import os, sys
from events.snapshots import SnapshotStore
store = SnapshotStore.open(sys.argv[1])
with store.shelf.adding() as adding:
    for content in (b"content of 0\\n" * 20, b"content of 1\\n" * 20):
        store.chunks.put(content, adding)
    os.kill(os.getpid(), 9)
"""


def test_a_chunk_that_a_power_cut_tore_is_not_believed(tmp_path: Path) -> None:
    store = SnapshotStore.open(str(tmp_path / "store"))
    done = subprocess.run([sys.executable, "-c", _DIE, store.shelf.url], check=False)
    assert done.returncode == -9
    # Names are on the disk by now, and contents were not when the power went.
    torn = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(torn) == 2
    for path in torn:
        os.truncate(path, 0)
    add(store, draft("snap-1"), make_image(tmp_path / "image"), make_tree(tmp_path / "tree"))
    assert store.verify("snap-1", set()) == []
    # And what the dead one left does not stay.
    assert not any(map(os.path.lexists, torn))


def test_whenever_the_power_goes_what_has_a_name_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each flush, the disk as it is if no content since the last one has got there, and every name has."""
    store = SnapshotStore.open(str(tmp_path / "store"))
    monkeypatch.setattr(shelves, "_BATCH", 20)
    flush = shelves._syncfs
    durable: set[int] = set()
    cuts: list[Path] = []

    def files(folder: Path) -> list[Path]:
        return [path for path in folder.rglob("*") if path.is_file()]

    def flushing(fd: int) -> None:
        cuts.append(tmp_path / f"cut-{len(cuts)}")
        shutil.copytree(tmp_path / "store", cuts[-1])
        for path in files(tmp_path / "store"):
            if path.stat().st_ino not in durable:
                os.truncate(cuts[-1] / path.relative_to(tmp_path / "store"), 0)
        durable.update(path.stat().st_ino for path in files(tmp_path / "store"))
        flush(fd)

    monkeypatch.setattr(shelves, "_syncfs", flushing)
    image, tree = make_image(tmp_path / "image"), make_tree(tmp_path / "tree")
    add(store, draft("snap-1"), image, tree)
    assert len(cuts) > 4
    monkeypatch.setattr(shelves, "_syncfs", flush)
    named = 0
    for cut in cuts:
        left = SnapshotStore.open(str(cut))
        for name in left.chunks.names():
            left.chunks.get(name, "any")
        assert [left.verify(one, set()) for one in left.ids()] == [[]] * len(left.ids())
        named += len(left.ids())
        add(left, draft("snap-2"), image, tree)
        assert left.verify("snap-2", set()) == []
    assert named == 1


def test_what_is_written_is_there_when_it_is_settled(tmp_path: Path) -> None:
    shelf = FolderShelf(tmp_path)
    with shelf.adding() as adding:
        adding.write("chunks/ab/abc", b"whole")
        assert adding.has("chunks/ab/abc")
        assert not shelf.has("chunks/ab/abc")
        assert list(shelf.list("chunks")) == []
        adding.settle()
        assert shelf.read("chunks/ab/abc") == b"whole"
        adding.write("chunks/ab/abd", b"too")
    assert sorted(one.name for one in shelf.list("chunks")) == ["abc", "abd"]
    assert list((tmp_path / "new").iterdir()) == []
    interrupted = shelf.adding()
    interrupted.__enter__().write("chunks/ab/abe", b"never")
    assert not interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not shelf.has("chunks/ab/abe")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_next_one_alone_removes_what_a_dead_writer_left(tmp_path: Path) -> None:
    shelf = FolderShelf(tmp_path)
    left = tmp_path / "new/0123/1"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"ha")
    with shelf.adding() as adding:
        assert not left.exists()
        adding.write("chunks/ab/abc", b"whole")
        # Not alone: what it finds may be of one that lives.
        with shelf.adding():
            pass
        adding.settle()
    assert shelf.has("chunks/ab/abc")
    left.parent.mkdir()
    left.write_bytes(b"ha")
    with shelf.pruning():
        assert not left.exists()


# --- marks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[SnapshotStore]:
    """An object store."""
    shelf = RemoteShelf(f"memory://{tmp_path.name}", wait_seconds=0.3)
    yield SnapshotStore(shelf)
    shelf._fs.rm(f"/{tmp_path.name}", recursive=True)


def marks_of(store: SnapshotStore) -> list[str]:
    return [one.name for one in store.shelf.list("marks")]


def write(store: SnapshotStore, name: str, content: bytes) -> None:
    assert isinstance(store.shelf, RemoteShelf)
    store.shelf.write(name, content)


def in_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("mark ")]


def test_the_mark_of_one_that_died_does_not_stay_in_the_way(tmp_path: Path) -> None:
    shelf = RemoteShelf(f"local://{tmp_path}/store")
    shelf.write("marks/adding-of-the-dead", b'{"at": 12.0}')
    with shelf.pruning():
        assert [one.name for one in shelf.list("marks")] != ["adding-of-the-dead"]
    assert [one.name for one in shelf.list("marks")] == []


def test_one_that_stood_still_while_others_pruned_writes_no_manifest(remote: SnapshotStore, tmp_path: Path) -> None:
    image, tree = make_image(tmp_path / "image"), make_tree(tmp_path / "tree")
    add(remote, draft("snap-1"), image, tree)
    with remote.shelf.adding() as adding:
        (mark,) = marks_of(remote)
        write(remote, f"marks/{mark}", b'{"at": 12.0}')
        with RemoteShelf(f"memory://{tmp_path.name}", wait_seconds=0.3).pruning() as pruning:
            pruning.remove("manifests/snap-1.json")
            for name in remote.chunks.names():
                remote.chunks.remove(name, pruning)
        with pytest.raises(MarkLost, match="somebody removed it") as failed:
            remote.add(draft("snap-2"), image, tree, {}, adding)
    assert "does by itself" in failed.value.advice
    assert remote.ids() == []
    assert marks_of(remote) == []
    # Tried again, it is whole.
    add(remote, draft("snap-2"), image, tree)
    assert remote.verify("snap-2", set()) == []


def test_an_expired_mark_is_no_mark(remote: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, tree = make_image(tmp_path / "image"), make_tree(tmp_path / "tree")
    add(remote, draft("snap-1"), image, tree)
    before = remote.chunks.names()
    now = marks._now

    def later() -> tuple[float, float]:
        return now()[0] + 3500.0, now()[1]

    with remote.shelf.adding() as adding, monkeypatch.context() as patch:
        patch.setattr(marks, "_now", later)
        with pytest.raises(MarkLost, match="could not be renewed"):
            remote.add(draft("snap-2"), image, tree, {}, adding)
    with remote.shelf.pruning() as pruning, monkeypatch.context() as patch:
        patch.setattr(marks, "_now", later)
        with pytest.raises(MarkLost, match="could not be renewed"):
            remote.chunks.remove(next(iter(before)), pruning)
    assert remote.ids() == ["snap-1"]
    assert remote.chunks.names() == before


def test_a_mark_is_renewed_and_never_put_back(remote: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "_RENEW_SECONDS", 0.02)
    with remote.shelf.adding() as adding:
        (mark,) = marks_of(remote)
        write(remote, f"marks/{mark}", b"old")
        until = time.monotonic() + 10
        while remote.shelf.read(f"marks/{mark}") == b"old":
            assert time.monotonic() < until
            time.sleep(0.01)
        adding.settle()
        remote.shelf.remove(f"marks/{mark}")  # type: ignore[attr-defined]
        while in_threads():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert marks_of(remote) == []
        with pytest.raises(MarkLost, match="somebody removed it"):
            adding.settle()


def test_nothing_renews_a_mark_when_its_context_has_ended(
    remote: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in the middle of a renewal: the mark must not be there after all."""
    monkeypatch.setattr(marks, "_RENEW_SECONDS", 0.02)
    renewing, go_on = threading.Event(), threading.Event()
    writes = RemoteShelf.write

    def slow(self: RemoteShelf, name: str, content: bytes) -> None:
        if threading.current_thread() is not threading.main_thread():
            renewing.set()
            go_on.wait(10)
        writes(self, name, content)

    monkeypatch.setattr(RemoteShelf, "write", slow)
    with remote.shelf.adding():
        assert renewing.wait(10)
        threading.Timer(0.2, go_on.set).start()
    assert in_threads() == []
    assert marks_of(remote) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"at": null}', b'{"at": NaN}', b"\xff"])
def test_a_mark_that_can_not_be_read_is_respected_and_named(remote: SnapshotStore, content: bytes) -> None:
    write(remote, "marks/pruning-odd", content)
    with pytest.raises(StoreBusy, match="pruning-odd can't be read; remove it if nobody does"), remote.shelf.adding():
        pass
    assert marks_of(remote) == ["pruning-odd"]
    remote.shelf.remove("marks/pruning-odd")  # type: ignore[attr-defined]
    with remote.shelf.adding():
        pass
