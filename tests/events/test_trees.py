"""File trees as a guest leaves them: links out of the tree, devices, odd names, many names of one file, great depth."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from events import tree_reader
from events.chunks import Chunks
from events.entries import Entry, encoded, name_of, parse, parts_of, path_of
from events.shelf import FolderShelf
from events.snapshots import SnapshotStore
from events.store_errors import TreeNotRestored, TreeRefused
from events.tree_reader import read_tree
from events.tree_writer import write_tree
from tests.events.stores import add, as_told, draft, make_image, make_tree, put

if TYPE_CHECKING:
    from pathlib import Path

    from events.tree_reader import Seen

NAMES = (
    b"plain",
    b"with space",
    b"100%",
    b"%41",
    b"\xff\xfe bytes",
    "ärger".encode(),
    b"a\nb",
    b'"quoted"',
    b"\\",
    b"-rf",
    "\u202egnp.exe".encode(),
    "\u2028".encode(),
    b"x" * 255,
    b".hidden",
    b"$(reboot)",
    b"{}",
    b"\x1b[31m",
)


@pytest.fixture
def chunks(tmp_path: Path) -> Chunks:
    return Chunks(FolderShelf(tmp_path / "chunks"))


def look(root: Path, chunks: Chunks, known: dict[str, Seen] | None = None) -> dict[str, Seen]:
    with chunks.shelf.adding() as adding:
        return dict(read_tree(root, known or {}, lambda content: chunks.put(content, adding)[0]))


def rebuild(root: Path, seen: dict[str, Seen], chunks: Chunks, present: dict[str, Seen] | None = None) -> None:
    lines = {path: one.line for path, one in (present or {}).items()}
    write_tree(root, lines, [one.line for one in seen.values()], lambda name: chunks.get(name, "snap"))


def hostile(root: Path) -> Path:
    """A tree with all that a guest can leave in one."""
    make_tree(root, files=20)
    secret = root.parent / "secret"
    secret.write_text("of the host")
    (root / "out").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../../secret")
    (root / "folder-out").symlink_to("/etc")
    (root / "nowhere").symlink_to(b"\xff\xfe\n")
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(root / "socket"))
    os.link(root / "d0/f0", root / "d1/again")
    os.link(root / "d0/f0", root / "a-first")
    odd = root / "odd"
    odd.mkdir()
    for name in NAMES:
        (odd / os.fsdecode(name)).write_bytes(name)
    (root / "d2/f2").chmod(0o4755)
    os.chown(root / "d3/f3", 1234, 4321)
    os.chown(root / "out", 12, 34, follow_symlinks=False)
    os.setxattr(root / "d4/f4", "user.note", b"\x00\xffbytes")
    os.setxattr(root / "d4", "user.folder", b"too")
    (root / "shut").mkdir(mode=0o000)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    for path, moment in (("d0/f0", 1), ("d5", 2), ("out", 3), ("pipe", 123456789123456789)):
        os.utime(root / path, ns=(moment, moment), follow_symlinks=False)
    return root


def test_a_hostile_tree_comes_back_as_it_was_and_nothing_of_the_host(tmp_path: Path, chunks: Chunks) -> None:
    tree = hostile(tmp_path / "a/tree")
    seen = look(tree, chunks)
    back = tmp_path / "b"
    back.mkdir()
    rebuild(back, seen, chunks)
    assert as_told(back) == as_told(tree)
    assert (back / "a-first").stat().st_ino == (back / "d1/again").stat().st_ino
    # Again, and the listing is the same, whatever the inodes are.
    assert [one.line for one in look(back, chunks).values()] == [one.line for one in seen.values()]
    text = "\n".join(one.line for one in seen.values())
    assert text.isprintable() or text.replace("\n", "").isprintable()
    assert "\u202e" not in text
    kept = b"".join(chunks.get(name, "snap") for name in chunks.names())
    assert b"of the host" not in kept
    assert b"root:" not in kept


def test_one_tree_is_made_from_another(tmp_path: Path, chunks: Chunks) -> None:
    """What a template has already is kept, what it has too much goes, what differs is made anew."""
    template, tree = make_tree(tmp_path / "template"), tmp_path / "tree"
    os.link(template / "d0/f0", template / "d0/linked")
    (template / "turns").mkdir()
    (template / "turns/inner").write_text("x")
    (template / "file-turns").write_text("x")
    (template / "gone").mkdir()
    (template / "gone/deep").write_text("x")
    shutil.copytree(template, tree, symlinks=True)
    (tree / "d0/linked").unlink()
    os.link(tree / "d0/f0", tree / "d0/linked")
    (tree / "d0/f0").write_text("both names, new content")
    shutil.rmtree(tree / "turns")
    (tree / "turns").symlink_to("/etc")
    (tree / "file-turns").unlink()
    (tree / "file-turns").mkdir()
    (tree / "file-turns/now").write_text("a folder")
    shutil.rmtree(tree / "gone")
    (tree / "d1").chmod(0o700)
    present, wanted = look(template, chunks), look(tree, chunks)
    same = (template / "d2/f2").stat().st_ino
    rebuild(template, wanted, chunks, present)
    assert as_told(template) == as_told(tree)
    assert (template / "d2/f2").stat().st_ino == same


def test_names_of_one_file_follow_it_even_where_they_look_the_same(tmp_path: Path, chunks: Chunks) -> None:
    template, tree = tmp_path / "template", tmp_path / "tree"
    for root in (template, tree):
        root.mkdir()
        (root / "a").write_text("old" if root is template else "new")
        os.link(root / "a", root / "b")
        os.utime(root / "a", ns=(5, 5))
        os.utime(root, ns=(5, 5))
    present, wanted = look(template, chunks), look(tree, chunks)
    assert present["b"].line == wanted["b"].line
    rebuild(template, wanted, chunks, present)
    assert [(template / name).read_text() for name in "ab"] == ["new", "new"]


def test_a_tree_that_is_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SnapshotStore.open(str(tmp_path / "store"))
    image = make_image(tmp_path / "image")
    tree = tmp_path / "tree"
    tree.mkdir()
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(tree_reader.MOST_LEVELS + 5):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(TreeRefused, match="folders lie more than 128 deep"):
        add(store, draft("snap-1"), image, tree)
    monkeypatch.setattr(tree_reader, "MOST_ENTRIES", 20)
    with pytest.raises(
        TreeRefused, match=r"of the sandbox sbx-a is not stored \(snapshot snap-2\): it has more than 20 ent"
    ):
        add(store, draft("snap-2"), image, make_tree(tmp_path / "wide"))
    with monkeypatch.context() as patch:
        patch.setattr(tree_reader, "MOST_LISTING_BYTES", 1000)
        with pytest.raises(TreeRefused, match="its listing is longer than"):
            add(store, draft("snap-2"), image, make_tree(tmp_path / "long", files=10))
    monkeypatch.setattr(tree_reader, "MOST_PIECES", 3)
    (tmp_path / "holes").mkdir()
    with (tmp_path / "holes/file").open("wb") as file:
        for place in range(6):
            file.seek(place * 1024**3)
            file.write(b"x")
    with pytest.raises(TreeRefused, match="file is in more than 3 pieces"):
        add(store, draft("snap-3"), image, tmp_path / "holes")
    assert store.ids() == []


def test_of_a_folder_with_too_many_names_few_are_read(
    tmp_path: Path, chunks: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(5000):
        (tree / f"{number:0200}").touch()
    monkeypatch.setattr(tree_reader, "MOST_ENTRIES", 100)
    tracemalloc.start()
    try:
        with pytest.raises(tree_reader.TooMuch, match="more than 100 entries"):
            look(tree, chunks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The names alone are 1.2 MB.
    assert peak < 300_000


@pytest.mark.parametrize("path", ["../x", "a/../b", "/a", "a//b", ".", "a/%2E%2E", "a%2Fb", "a%00", "x" * 256])
def test_no_line_leads_out_of_the_tree(path: str, tmp_path: Path, chunks: Chunks) -> None:
    with pytest.raises(ValueError, match="no path of an entry"):
        parts_of(path)
    line = Entry(path=path, kind="folder", mode=0o755, uid=0, gid=0, mtime_ns=0).line()
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(ValueError, match="no path of an entry"):
        write_tree(root, {}, [line], lambda name: chunks.get(name, "snap"))
    assert list(root.iterdir()) == []


def test_an_entry_below_a_link_is_refused_by_the_kernel(tmp_path: Path) -> None:
    store = SnapshotStore.open(str(tmp_path / "store"))
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    lines = [
        Entry(path="", kind="folder", mode=0o755, uid=0, gid=0, mtime_ns=0).line(),
        Entry(path="a", kind="link", mode=0o777, uid=0, gid=0, mtime_ns=0, target=str(outside)).line(),
        Entry(path="a/b", kind="file", mode=0o644, uid=0, gid=0, mtime_ns=0).line(),
    ]
    page = put(store.chunks, "\n".join(lines).encode())
    made = draft("snap-1")
    made = made.model_copy(update={"tree": made.tree.model_copy(update={"pages": (page,)})})
    with pytest.raises(TreeNotRestored, match="of snap-1 can't be made again"):
        store.fetch_tree(made, root, {})
    assert list(outside.iterdir()) == []


def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, chunks: Chunks) -> None:
    name = put(chunks, b"four")
    for pieces in (((0, 5, name),), ((2, 4, name),)):
        entry = Entry(path="f", kind="file", mode=0o644, uid=0, gid=0, mtime_ns=0, size=5, pieces=pieces)
        root = tmp_path / f"root{pieces[0][0]}"
        root.mkdir()
        with pytest.raises(OSError, match="does not fit"):
            write_tree(root, {}, [entry.line()], lambda name: chunks.get(name, "snap"))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printable_in_a_line_and_comes_back(name: bytes) -> None:
    told = encoded(os.fsdecode(name))
    assert told.isprintable()
    assert os.fsencode(name_of(told)) == name
    line = Entry(path=told, kind="file", mode=0o644, uid=0, gid=0, mtime_ns=0).line()
    assert path_of(line) == told
    assert parse(line).path == told


def test_a_line_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="can't be read"):
        parse('{"path":"a","kind":"door"}')
    with pytest.raises(ValueError, match="has no path"):
        path_of("{}")
