"""Stored trees read without being made: each path as the kernel leads it within the tree, each byte as it was."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import listing as module
from events import snapshots
from events.entries import Entry, encoded
from events.listing import Key, Listing, NotThere, TooManyLinks, key_of
from events.manifest import Tree
from events.snapshots import SnapshotStore
from events.store_errors import ChunkBroken, ManifestBroken
from tests.events.stores import add, draft, make_image
from tests.events.test_trees import NAMES

if TYPE_CHECKING:
    from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_OPENAT2, _IN_ROOT = 437, 0x10


def listed(folder: Path, tree: Path) -> Listing:
    """A tree, added to a store of its own."""
    store = SnapshotStore.open(str(folder / "store"))
    add(store, draft("snap-1"), make_image(folder / "image", pages=1), tree)
    return Listing(store, store.manifest("snap-1")[0])


def in_root(root: Path, path: str, *, follow: bool) -> int | None:
    """The inode where the kernel leads a path within a root; None where it leads to nothing."""
    how = struct.pack("QQQ", os.O_PATH | (0 if follow else os.O_NOFOLLOW), 0, _IN_ROOT)
    base = os.open(root, os.O_PATH)
    try:
        fd = _LIBC.syscall(_OPENAT2, base, os.fsencode(path), how, len(how))
    finally:
        os.close(base)
    if fd < 0:
        return None
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some entries for each page, so that a small tree has many."""
    monkeypatch.setattr(snapshots, "_PAGE_ONE_IN", 3)
    monkeypatch.setattr(module, "_PAGES_KEPT", 2)


NAME = st.sampled_from(["a", "b", "a-b", "a\x01"])
STEP = st.sampled_from(["a", "b", "a", "b", "..", "..", ".", "", "a-b", "a\x01"])
PATH = st.lists(STEP, min_size=1, max_size=6).map("/".join)
TARGET = st.one_of(PATH, PATH.map(lambda path: "/" + path)).filter(bool)
FOLDERS = st.sampled_from(["a", "a/a", "a/b", "b", "b/a", "b/a/b"]).map(lambda path: path.split("/"))


def grow(root: Path, made: list[tuple[list[str], str]]) -> None:
    """Make a tree of the entries that can be made; no link is followed."""
    root.mkdir()
    for names, what in made:
        at = root
        for name in names[:-1]:
            at = at / name
            if not at.is_symlink() and not at.exists():
                at.mkdir()
            if at.is_symlink() or not at.is_dir():
                break
        else:
            at = at / names[-1]
            if at.is_symlink() or at.exists():
                continue
            if what == "file":
                at.write_text("x")
            elif what:
                at.symlink_to(what)
            else:
                at.mkdir()


@given(
    made=st.lists(
        st.one_of(
            st.tuples(FOLDERS, st.just("")),
            st.tuples(st.lists(NAME, min_size=1, max_size=4), st.one_of(st.just(""), st.just("file"), TARGET)),
        ),
        max_size=14,
    ),
    asked=st.lists(TARGET, min_size=10, max_size=20),
)
@settings(max_examples=80, deadline=None)
def test_a_path_leads_where_the_kernel_leads_it(
    made: list[tuple[list[str], str]], asked: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("listing")
    root = folder / "tree"
    grow(root, made)
    listing = listed(folder, root)
    every = {key: os.lstat(os.path.join(os.fsencode(root), *key)).st_ino for key, _ in listing.lines()}
    assert len(every) == listing.manifest.tree.entries
    assert list(every) == sorted(every)
    for path in asked:
        for follow in (True, False):
            found = in_root(root, path, follow=follow)
            try:
                assert every[listing.resolve(path, last=follow)[0]] == found
            except (NotThere, TooManyLinks):
                assert found is None
    for key in every:
        inner = sorted(one for one in every if len(one) == len(key) + 1 and one[: len(key)] == key)
        assert [one for one, _ in listing.children(key)] == inner
        found_entry = listing.entry(key)
        assert found_entry is not None
        assert key_of(found_entry.path) == key
    assert listing.entry((b"nowhere",)) is None
    assert listing.entry((b"\xff\xff",)) is None


@given(
    parts=st.lists(st.tuples(st.integers(0, 3 * 4096), st.binary(min_size=1, max_size=6000)), max_size=5),
    size=st.integers(0, 40_000),
)
@settings(max_examples=60, deadline=None)
def test_a_file_has_its_bytes_holes_and_all(
    parts: list[tuple[int, bytes]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("listing")
    (folder / "tree").mkdir()
    path = folder / "tree" / "f"
    with path.open("wb") as file:
        at = 0
        for hole, content in parts:
            at += hole
            file.seek(at)
            file.write(content)
            at += len(content)
        file.truncate(max(size, at))
    (folder / "tree" / "g").hardlink_to(path)
    listing = listed(folder, folder / "tree")
    for name in ("f", "g"):
        _, entry = listing.resolve(name)
        assert b"".join(listing.read(entry)) == path.read_bytes()
        assert listing.content_of(entry).size == path.stat().st_size


def test_odd_names_are_found(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in NAMES:
        with open(os.path.join(os.fsencode(tree), name), "wb") as file:
            file.write(name)
    listing = listed(tmp_path, tree)
    for name in NAMES:
        key, entry = listing.resolve(os.fsdecode(name))
        assert key == (name,)
        assert b"".join(listing.read(entry)) == name
    assert [key for key, _ in listing.children(())] == [(name,) for name in sorted(NAMES)]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("a")
    (tree / "many").symlink_to("many/many/many")
    listing = listed(tmp_path, tree)
    for path in ("a", "b/x", "many"):
        with pytest.raises(TooManyLinks):
            listing.resolve(path)
    assert listing.resolve("a", last=False)[1].kind == "link"


def test_a_page_that_both_have_is_not_read(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(40):
        (tree / f"f{number:02}").write_text("x")
    listing = listed(tmp_path, tree)
    pages = listing.manifest.tree.pages
    assert len(pages) > 5
    assert list(listing.lines(skip=set(pages))) == []
    some = list(listing.lines(skip={pages[2]}))
    assert 0 < len(some) < 41
    assert some == [one for one in listing.lines() if one in some]


def rewritten(listing: Listing, store: SnapshotStore, lines: list[str]) -> Listing:
    """The same with another listing, which no reader of trees has made."""
    with store.shelf.adding() as adding:
        pages = tuple(store.chunks.put(line.encode(), adding)[0] for line in lines)
    return Listing(store, listing.manifest.model_copy(update={"tree": Tree(entries=1, bytes=0, pages=pages)}))


def read(listing: Listing, key: Key) -> bytes:
    found = listing.entry(key)
    assert found is not None
    return b"".join(listing.read(found))


def entry(path: str, **more: object) -> str:
    told = {"path": path, "kind": "file", "mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0, **more}
    return Entry.model_validate(told).line()


def test_a_listing_that_is_none_is_broken(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_text("abc")
    listing = listed(tmp_path, tmp_path / "tree")
    store = SnapshotStore.open(str(tmp_path / "store"))
    [(_, chunk_line)] = [one for one in listing.lines() if one[0] == (b"f",)]
    chunk = Entry.model_validate_json(chunk_line).pieces[0][2]
    root = entry("", kind="folder")
    cases: list[tuple[str, Key, str]] = [
        ("no line", (b"x",), "no path"),
        ('{"path":"x","kind":"spoon"}', (b"x",), "can't be read"),
        ("\n", (b"x",), "is empty"),
        (entry("x", same_as="y"), (b"x",), "same file as y, which is none"),
        (entry("x", size=3, pieces=((0, 4, chunk),)), (b"x",), "do not fit"),
        (entry("x", size=9, pieces=((0, 3, chunk), (2, 3, chunk))), (b"x",), "do not fit"),
        (entry("x", size=9, pieces=((0, 4, chunk),)), (b"x",), "3 bytes and not 4"),
    ]
    for line, key, detail in cases:
        broken = rewritten(listing, store, [root, line])
        with pytest.raises(ManifestBroken, match=detail):
            read(broken, key)
    gone = rewritten(listing, store, [root, entry("x", size=3, pieces=((0, 3, "0" * 64),))])
    with pytest.raises(ChunkBroken, match="missing"):
        read(gone, (b"x",))
    with pytest.raises(NotThere):
        Listing(store, listing.manifest.model_copy(update={"tree": Tree(entries=0, bytes=0, pages=())})).resolve("/")


def test_a_key_is_the_bytes_of_its_names() -> None:
    assert key_of("") == ()
    assert key_of(f"a/{encoded(os.fsdecode(b'%41'))}/x") == (b"a", b"%41", b"x")
    assert key_of("%FF") == (b"\xff",)
