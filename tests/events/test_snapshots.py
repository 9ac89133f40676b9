"""The snapshot store: what was added comes back, what is broken is never used, and what is shared is kept once."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from events import shelf as shelves
from events.chunks import FILE_BYTES, IMAGE_BYTES
from events.entries import Entry
from events.manifest import decode
from events.shelf import open_shelf
from events.snapshots import SnapshotStore, default_store
from events.store_errors import (
    ChunkBroken,
    ManifestBroken,
    SnapshotNotStored,
    StoreBusy,
    StoreUnavailable,
)
from tests.events.stores import PAGE, add, as_told, draft, make_image, make_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from events.shelf import Adding

KINDS = ("folder", "memory", "file-url", "moved")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SnapshotStore]:
    """A store of each kind: a folder, an object store, a URL of a folder, and fsspec on what is not atomic."""
    url = {
        "folder": str(tmp_path / "store"),
        "memory": f"memory://{tmp_path.name}",
        "file-url": f"file://{tmp_path}/store",
        "moved": f"local://{tmp_path}/store",
    }[request.param]
    yield SnapshotStore.open(url)
    if request.param == "memory":
        made = open_shelf("memory://")
        made._fs.rm(f"/{tmp_path.name}", recursive=True)  # type: ignore[attr-defined]


@pytest.fixture
def folder_store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore.open(str(tmp_path / "store"))


def fetch(store: SnapshotStore, snapshot_id: str, folder: Path) -> Path:
    manifest, _ = store.manifest(snapshot_id)
    (folder / "image").mkdir(parents=True)
    (folder / "tree").mkdir()
    store.fetch_image(manifest, folder / "image")
    store.fetch_tree(manifest, folder / "tree", {})
    return folder


def test_what_was_added_comes_back(store: SnapshotStore, tmp_path: Path) -> None:
    image, tree = make_image(tmp_path / "image"), make_tree(tmp_path / "tree")
    kept, seen = add(store, draft("snap-1"), image, tree)
    assert store.ids() == ["snap-1"]
    assert store.has("snap-1")
    assert store.knows("snap-1", kept.digest)
    assert not store.knows("snap-1", "0" * 64)
    manifest, digest = store.manifest("snap-1")
    assert (digest, manifest.version, manifest.stream) == (kept.digest, 7, "sandbox-sbx-a")
    assert manifest.tree.entries == len(seen) == 50 + 7 + 1
    assert kept.bytes == manifest.image_bytes + sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    back = fetch(store, "snap-1", tmp_path / "back")
    for file in image.iterdir():
        assert (back / "image" / file.name).read_bytes() == file.read_bytes()
    assert as_told(back / "tree") == as_told(tree)
    assert store.verify("snap-1", set()) == []


def test_what_is_shared_is_kept_once(store: SnapshotStore, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", files=2000)
    first, seen = add(store, draft("snap-1"), make_image(tmp_path / "1", b"a"), tree)
    before = store.chunks.names()
    (tree / "d3/f3").write_text("something else\n")
    second, _ = add(store, draft("snap-2"), make_image(tmp_path / "2", b"b"), tree, seen)
    new = store.chunks.names().keys() - before.keys()
    # The changed file, its page and the image's last chunk and state; the folder's page, where its time changed.
    assert 4 <= len(new) <= 5
    assert second.new_bytes < first.new_bytes / 3
    again, _ = add(store, draft("snap-3"), tmp_path / "2", tree)
    assert store.chunks.names().keys() - before.keys() == new
    assert again.digest != second.digest
    assert again.bytes == second.bytes


def test_what_nobody_touched_is_not_read_again(folder_store: SnapshotStore, tmp_path: Path) -> None:
    store, tree = folder_store, make_tree(tmp_path / "tree")
    image = make_image(tmp_path / "image")
    _, seen = add(store, draft("snap-1"), image, tree)
    changed = tree / "d0/f0"
    status = changed.stat()
    # As a guest would that wants it to go unseen: same size, same time.
    changed.write_text("CONTENT OF 0\n" * 20)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    read: list[bytes] = []
    put = store.chunks.put

    def reading(content: bytes, adding: Adding) -> tuple[str, int]:
        read.append(content)
        return put(content, adding)

    store.chunks.put = reading  # type: ignore[method-assign]
    add(store, draft("snap-2"), image, tree, seen)
    files = [one for one in read if one.lower().startswith(b"content of")]
    assert files == [changed.read_bytes()]
    assert (fetch(store, "snap-2", tmp_path / "back") / "tree/d0/f0").read_text().startswith("CONTENT OF 0")
    assert (fetch(store, "snap-1", tmp_path / "older") / "tree/d0/f0").read_text().startswith("content of 0")


def test_an_interrupted_upload_is_never_used(
    folder_store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelves, "_BATCH", 4)
    store, tree, image = folder_store, make_tree(tmp_path / "tree"), make_image(tmp_path / "image")
    put, left = store.chunks.put, [10]

    def dying(content: bytes, adding: Adding) -> tuple[str, int]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return put(content, adding)

    store.chunks.put = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        add(store, draft("snap-1"), image, tree)
    assert store.ids() == []
    assert len(store.chunks.names()) == 8
    assert list((tmp_path / "store/new").iterdir()) == []
    with pytest.raises(SnapshotNotStored, match="no snapshot snap-1"):
        store.manifest("snap-1")
    store.chunks.put = put  # type: ignore[method-assign]
    # The next try finds again what the first one left, and is whole.
    add(store, draft("snap-1"), image, tree)
    assert as_told(fetch(store, "snap-1", tmp_path / "back") / "tree") == as_told(tree)


def test_a_chunk_that_is_gone_comes_back_with_the_next_snapshot(folder_store: SnapshotStore, tmp_path: Path) -> None:
    store, tree, image = folder_store, make_tree(tmp_path / "tree"), make_image(tmp_path / "image")
    _, seen = add(store, draft("snap-1"), image, tree)
    (line,) = [one.line for one in seen.values() if '"path":"d3/f3"' in one.line]
    (gone,) = [chunk for _, _, chunk in Entry.model_validate_json(line).pieces]
    (tmp_path / f"store/chunks/{gone[:2]}/{gone}").unlink()
    assert len(store.verify("snap-1", set())) == 1
    # Nobody touched the file since, and what was seen of it would name a chunk that is not there.
    add(store, draft("snap-2"), image, tree, seen)
    assert store.verify("snap-2", set()) == store.verify("snap-1", set()) == []


def test_a_flipped_and_a_missing_chunk_are_told_by_name(folder_store: SnapshotStore, tmp_path: Path) -> None:
    store, tree, image = folder_store, make_tree(tmp_path / "tree"), make_image(tmp_path / "image")
    add(store, draft("snap-1"), image, tree)
    manifest, _ = store.manifest("snap-1")
    folder = tmp_path / "store/chunks"
    (flipped, missing, *_) = [chunk for file in manifest.image for _, _, chunk in file.pieces]
    path = folder / flipped[:2] / flipped
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (folder / missing[:2] / missing).unlink()
    # Whole frames of something else, and of something that would fill the memory.
    page = manifest.tree.pages[0]
    (folder / page[:2] / page).write_bytes(store.chunks._packer.compress(b"other"))
    with pytest.raises(ChunkBroken, match=f"chunk {flipped} of snap-1 .* is damaged"):
        fetch(store, "snap-1", tmp_path / "back")
    bad = store.verify("snap-1", set())
    assert {getattr(one, "chunk", "") for one in bad} == {flipped, missing, page}
    assert any("it is missing" in str(one) for one in bad)
    assert any("it is not what was written" in str(one) for one in bad)
    assert all("hourglass snapshots verify" in one.advice for one in bad)


def test_a_chunk_that_grows_without_end_is_not_read(folder_store: SnapshotStore, tmp_path: Path) -> None:
    store = folder_store
    add(store, draft("snap-1"), make_image(tmp_path / "image"), make_tree(tmp_path / "tree", files=1))
    manifest, _ = store.manifest("snap-1")
    page = manifest.tree.pages[0]
    bomb = store.chunks._packer.compress(bytes(100 * 1024**2))
    assert len(bomb) < 10_000 + 100 * 1024
    (tmp_path / "store/chunks" / page[:2] / page).write_bytes(bomb)
    with pytest.raises(ChunkBroken, match="larger than any chunk"):
        list(store.lines(manifest))
    with pytest.raises(ChunkBroken, match="no chunk's name"):
        store.chunks.get("../../manifests/snap-1.json", "snap-1")


def test_a_manifest_that_was_changed_is_not_used(folder_store: SnapshotStore, tmp_path: Path) -> None:
    store = folder_store
    add(store, draft("snap-1"), make_image(tmp_path / "image"), make_tree(tmp_path / "tree", files=1))
    path = tmp_path / "store/manifests/snap-1.json"
    whole = path.read_text()
    for changed, why in (
        (whole.replace('"version": 7', '"version": 8'), "not what was written"),
        (whole[:100], "is damaged"),
        (whole.replace('"format": 1', '"format": 2'), "newer Hourglass"),
        ("[]", "no manifest"),
    ):
        path.write_text(changed)
        with pytest.raises(ManifestBroken, match=why):
            store.manifest("snap-1")
        assert not store.knows("snap-1", decode(whole.encode())[1])
        assert [type(one) for one in store.verify("snap-1", set())] == [ManifestBroken]
    path.write_text(whole)
    path.rename(path.with_name("snap-2.json"))
    with pytest.raises(ManifestBroken, match="it is that of snap-1"):
        store.manifest("snap-2")
    with pytest.raises(SnapshotNotStored):
        store.manifest("../manifests/snap-2")


def test_sparse_and_empty_files_stay_sparse(folder_store: SnapshotStore, tmp_path: Path) -> None:
    store, tree = folder_store, tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as file:
        file.truncate(5 * 1024**4)
        file.seek(3 * 1024**4 + 17)
        file.write(b"in the middle of nowhere")
    (tree / "zeros").write_bytes(bytes(3 * FILE_BYTES))
    (tree / "empty").touch()
    (tree / "large").write_bytes(os.urandom(2 * FILE_BYTES + 5))
    kept, _ = add(store, draft("snap-1"), make_image(tmp_path / "image"), tree)
    assert kept.bytes < 3 * FILE_BYTES + 64 * PAGE + PAGE + 1000
    back = fetch(store, "snap-1", tmp_path / "back") / "tree"
    assert (back / "sparse").stat().st_size == 5 * 1024**4
    assert (back / "sparse").stat().st_blocks * 512 < 1024**2
    with (back / "sparse").open("rb") as file:
        file.seek(3 * 1024**4 + 17)
        assert file.read(30).rstrip(b"\0") == b"in the middle of nowhere"
    assert (back / "zeros").stat().st_blocks == 0
    for name in ("zeros", "empty", "large"):
        assert (back / name).read_bytes() == (tree / name).read_bytes()


def test_adding_and_pruning_exclude_each_other(store: SnapshotStore) -> None:
    shelf = store.shelf
    shelf._wait_seconds = 0.3  # type: ignore[attr-defined]
    with shelf.adding():
        with shelf.adding():  # any number at once
            pass
        with pytest.raises(StoreBusy, match="a snapshot is being added"), shelf.pruning():
            pass
    with shelf.pruning():
        with pytest.raises(StoreBusy, match="it is being pruned"), shelf.adding():
            pass
        with pytest.raises(StoreBusy), shelf.pruning():
            pass
    began = threading.Event()
    shelf._wait_seconds = 30.0  # type: ignore[attr-defined]
    order: list[str] = []

    def add_something() -> None:
        with shelf.adding():
            began.set()
            order.append("added")

    thread = threading.Thread(target=add_something)
    with shelf.pruning():
        thread.start()
        assert not began.wait(0.3)
        order.append("pruned")
    thread.join()
    assert order == ["pruned", "added"]
    with shelf.pruning():
        pass


def test_a_store_that_can_not_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = SnapshotStore.open(str(tmp_path / "file/store"))
    with pytest.raises(StoreUnavailable, match="Not a directory"):
        add(store, draft("snap-1"), make_image(tmp_path / "image"), make_tree(tmp_path / "tree"))
    with pytest.raises(StoreUnavailable, match=r"nosuch"):
        SnapshotStore.open("nosuch://bucket/store")
    assert store.ids() == []


def test_where_the_store_is_when_nobody_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOURGLASS_SNAPSHOT_STORE", raising=False)
    assert default_store(tmp_path) == str(tmp_path / "snapshots")
    monkeypatch.setenv("HOURGLASS_SNAPSHOT_STORE", "s3://bucket/x")
    assert default_store(tmp_path) == "s3://bucket/x"


def test_chunks_are_cut_at_pages() -> None:
    assert IMAGE_BYTES % PAGE == FILE_BYTES % PAGE == 0


def test_what_a_protocols_own_library_raises_is_a_failure_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentials(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise NoCredentials("no credentials")

    shelf = open_shelf("memory://errors")
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", fail)
    with pytest.raises(StoreUnavailable, match="no credentials"):
        shelf.read("chunks/ab/abc")
