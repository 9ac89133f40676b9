"""Trees that lie: whatever a guest sends, nothing lands beside the destination, and nothing of it is followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from actors.guest import frames, trees
from actors.machines.protocol import GuestProtocolError
from actors.visits.copying import DEPTH_MAX, Copied, Landing
from actors.visits.serving import Judge
from actors.visits.wire import VisitRefused

OPEN, DATA, END = frames.OPEN, frames.DATA, frames.END
Sent = tuple[int, bytes]


def entry(kind: str, path: bytes, mode: int = 0o644) -> Sent:
    return OPEN, trees.entry(kind, mode, path)[frames.HEADER_BYTES :]


TOP = entry(trees.FOLDER, b"", 0o755)


def land(destination: Path, *sent: Sent) -> Copied:
    copied = Copied("sbx")
    with Landing(destination, copied) as landing:
        for kind, payload in sent:
            landing.take(kind, payload)
        landing.finish()
    return copied


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


LIES = {
    "a parent": (TOP, entry(trees.FILE, b"../out")),
    "a parent on the way": (TOP, entry(trees.FOLDER, b"a"), entry(trees.FILE, b"a/../../out")),
    "an absolute path": (TOP, entry(trees.FILE, b"/etc/out")),
    "itself again": (TOP, entry(trees.FOLDER, b".")),
    "an empty name": (TOP, entry(trees.FILE, b"a//b")),
    "a NUL": (TOP, entry(trees.FILE, b"a\0b")),
    "a name that is too long": (TOP, entry(trees.FILE, b"x" * 256)),
    "no beginning": (entry(trees.FILE, b"a"),),
    "two beginnings": (TOP, TOP),
    "content of nothing": (TOP, (DATA, b"x")),
    "another kind": (TOP, (OPEN, b'{"kind": "link", "mode": 0}\na')),
    "a set-user-id bit": (TOP, (OPEN, b'{"kind": "file", "mode": 2541}\na')),
    "a mode that is a truth": (TOP, (OPEN, b'{"kind": "file", "mode": true}\na')),
    "more than an entry": (TOP, (OPEN, b'{"kind": "file", "mode": 0, "to": "/"}\na')),
    "no JSON": (TOP, (OPEN, b"\xff\na")),
    "no path": (TOP, (OPEN, b'{"kind": "file", "mode": 0}')),
    "nests": (TOP, (OPEN, b"[" * 60_000 + b"\na")),
}


@pytest.mark.parametrize("name", LIES)
def test_what_is_no_tree_is_refused_at_both_ends(name: str, tmp_path: Path) -> None:
    with pytest.raises(VisitRefused):
        land(tmp_path / "to", *LIES[name])
    assert not [one for one in everything(tmp_path) if one not in ("to", "to/a")]
    with pytest.raises(GuestProtocolError):
        Judge(1000).judged(b"".join(frames.encode(kind, 0, payload) for kind, payload in LIES[name]))


def test_a_tree_lands_with_the_names_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "old").write_text("replaced")
    copied = land(
        tmp_path / "to",
        TOP,
        entry(trees.FOLDER, b"sealed", 0),
        entry(trees.FILE, b"sealed/-rf *\n\x1b", 0o755),
        (DATA, b"one "),
        (DATA, b"two"),
        entry(trees.FILE, b"old", 0o600),
        entry(trees.LEFT_OUT, b"link"),
        entry(trees.FILE, b"sealed/\xff", 0),
    )
    assert (tmp_path / "to" / "sealed" / "-rf *\n\x1b").read_text() == "one two"
    assert (tmp_path / "to" / "old").read_text() == ""
    assert os.listdir(os.fsencode(tmp_path / "to" / "sealed")) != []
    assert stat.S_IMODE((tmp_path / "to" / "sealed" / "-rf *\n\x1b").stat().st_mode) == 0o755
    assert (copied.left_out, copied.named) == (1, ["link"])


def test_links_that_are_there_already_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    to = tmp_path / "to"
    to.mkdir()
    (to / "folder").symlink_to(victim)
    (to / "file").symlink_to(victim / "file")
    land(to, TOP, entry(trees.FILE, b"file"), (DATA, b"new"))
    assert (to / "file").read_text() == "new"
    assert not (to / "file").is_symlink()
    for sent in (entry(trees.FILE, b"folder/file"), entry(trees.FOLDER, b"folder")):
        with pytest.raises(OSError, match="folder"):
            land(to, TOP, sent)
    assert (victim / "file").read_text() == "untouched"
    assert everything(victim) == ["file"]


def test_what_is_cut_off_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("whole")
    landing = Landing(tmp_path / "file", Copied("sbx"))
    with landing:
        landing.take(*entry(trees.FILE, b""))
        landing.take(DATA, b"half")
    assert everything(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "whole"
    with pytest.raises(IsADirectoryError):
        land(tmp_path, entry(trees.FILE, b""))


def test_a_tree_is_bounded(tmp_path: Path) -> None:
    deep = [entry(trees.FOLDER, b"/".join([b"d"] * depth)) for depth in range(1, DEPTH_MAX + 2)]
    with pytest.raises(VisitRefused, match="deep"):
        land(tmp_path / "to", TOP, *deep)
    judge = Judge(10)
    judge.judged(trees.entry(trees.FILE, 0o644, b"") + frames.encode(DATA, 0, bytes(10)))
    with pytest.raises(VisitRefused, match="more than 10 bytes"):
        judge.judged(frames.encode(DATA, 0, b"x"))
    for bytes_ in (frames.encode(frames.RESET, 0), frames.encode(DATA, 3, b"x"), b"\0" * 9):
        with pytest.raises(GuestProtocolError):
            Judge(10).judged(bytes_)
    with pytest.raises(GuestProtocolError, match="has no end"):
        judge.finished()
