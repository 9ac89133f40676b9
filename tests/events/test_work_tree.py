"""The digest of a work tree: what counts, what does not, and the same from the disk as from a store's listing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from events.chunks import FILE_BYTES
from events.snapshots import SnapshotStore
from events.work_tree import Lines, digest_of, lines_in_listing, lines_on_disk, text_in_listing, text_on_disk
from tests.events.stores import add, draft, make_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def make(root: Path) -> Path:
    work = root / "workspace"
    work.mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/shared").write_text("shared")
    (work / "sub").mkdir()
    (work / "a.txt").write_text("alpha")
    (work / "empty").touch()
    (work / "sub/b.bin").write_bytes(bytes(range(256)) * 3000)
    (work / "link").symlink_to("/etc/passwd")
    (work / "hard").hardlink_to(work / "a.txt")
    (work / "far").hardlink_to(root / "etc/shared")
    (work / "sub/farther").hardlink_to(root / "etc/shared")
    with (work / "holes").open("wb") as file:
        file.truncate(3 * FILE_BYTES)
        file.seek(FILE_BYTES + 8192)
        file.write(b"in a hole")
    return root


def digest(root: Path) -> str:
    return digest_of(lines_on_disk(root))


def test_when_it_was_written_and_where_holes_are_does_not_count(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    content = (other / "workspace/holes").read_bytes()
    (other / "workspace/holes").unlink()
    (other / "workspace/holes").write_bytes(content)
    os.utime(other / "workspace/a.txt", (1, 1))
    (other / "etc/shared2").write_text("outside")
    assert lines_on_disk(one) == lines_on_disk(other)
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda work: (work / "a.txt").write_text("Alpha"),
        lambda work: (work / "empty").unlink(),
        lambda work: (work / "empty").write_bytes(b"\0"),
        lambda work: (work / "a.txt").chmod(0o600),
        lambda work: (work / "sub").chmod(0o700),
        lambda work: os.chown(work / "sub/b.bin", 5, 6),
        lambda work: ((work / "link").unlink(), (work / "link").symlink_to("/etc/shadow")),
        lambda work: ((work / "hard").unlink(), (work / "hard").write_text("alpha")),
        lambda work: (work / "sub").rename(work / "sup"),
        lambda work: os.truncate(work / "holes", 3 * FILE_BYTES + 1),
        lambda work: os.setxattr(work / "a.txt", "user.note", b"x"),
        lambda work: os.mkfifo(work / "pipe"),
    ],
)
def test_everything_else_does(tmp_path: Path, change: Callable[[Path], object]) -> None:
    root = make(tmp_path / "one")
    before = lines_on_disk(root)
    change(root / "workspace")
    assert digest_of(lines_on_disk(root)) != digest_of(before)


def test_a_listing_of_the_whole_tree_gives_the_same(tmp_path: Path) -> None:
    root = make(tmp_path / "one")
    store = SnapshotStore.open(str(tmp_path / "store"))
    add(store, draft("snap-1"), make_image(tmp_path / "image", pages=1), root)
    manifest, _ = store.manifest("snap-1")

    def listed() -> Lines:
        return lines_in_listing(lambda: store.lines(manifest), store.chunk(manifest))

    assert listed() == lines_on_disk(root)
    assert set(listed()) == {"", "a.txt", "empty", "far", "hard", "holes", "link", "sub", "sub/b.bin", "sub/farther"}


@pytest.mark.parametrize("what", ["nothing", "file", "link"])
def test_what_is_no_work_folder_is_an_empty_one_and_no_link_is_followed(tmp_path: Path, what: str) -> None:
    root, target = tmp_path / "root", tmp_path / "host"
    root.mkdir()
    target.mkdir()
    (target / "secret").write_text("of the host")
    if what == "file":
        (root / "workspace").write_text("no folder")
    elif what == "link":
        (root / "workspace").symlink_to(target)
    assert lines_on_disk(root) == {}
    store = SnapshotStore.open(str(tmp_path / "store"))
    add(store, draft("snap-1"), make_image(tmp_path / "image", pages=1), root)
    manifest, _ = store.manifest("snap-1")
    assert lines_in_listing(lambda: store.lines(manifest), store.chunk(manifest)) == {}


def test_texts_are_read_by_path_and_no_link_is_followed(tmp_path: Path) -> None:
    root = make(tmp_path / "one")
    (root / "workspace/way").symlink_to("sub")
    (root / "workspace/sub/note é").write_text("a\nb é")
    (root / "workspace/bad").write_bytes(b"\xff")
    os.mkfifo(root / "workspace/pipe")
    store = SnapshotStore.open(str(tmp_path / "store"))
    add(store, draft("snap-1"), make_image(tmp_path / "image", pages=1), root)
    manifest, _ = store.manifest("snap-1")

    def stored(path: str, most: int = 100) -> str | None:
        return text_in_listing(lambda: store.lines(manifest), store.chunk(manifest), path, most)

    for path, text in {"sub/note é": "a\nb é", "empty": "", "sub/b.bin": None, "bad": None, "pipe": None}.items():
        assert text_on_disk(root, path, 100) == text
        assert stored(path) == text
    assert text_on_disk(root, "sub/note é", 5) is None
    assert stored("sub/note é", 5) is None
    for path in ("link", "way/note é", "nowhere"):
        with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's affair
            text_on_disk(root, path, 100)
        assert stored(path) is None
    with pytest.raises(ValueError, match="no path of an entry"):
        text_on_disk(root, "../etc/shared", 100)
