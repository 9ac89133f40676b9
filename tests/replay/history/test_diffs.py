"""diff: of texts, of stored trees, of two versions; against what the file system and the patch itself say."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from events import snapshots as store_module
from events import types
from events.cli import build
from events.listing import Listing
from events.snapshots import SnapshotStore
from replay.history import tree_diff
from replay.history.comparing import compare
from replay.history.errors import FilesMayDiffer, NoTree
from replay.history.presence import Snapshots
from replay.history.target import parse
from replay.history.text_diff import _MOST_LINES, as_text, unified
from replay.history.tree_diff import FileChange, tree_changes
from tests.events.stores import add, draft, make_image
from tests.replay.history.boxes import A, B, C, begin, branched, call, created, cut, put, resumed, started, suspended
from tests.replay.history.worlds import EVIL, FIRST, SECOND, world

if TYPE_CHECKING:
    from pathlib import Path

    from events.sqlite_log import SqliteLog
    from replay.history.comparing import Comparison

BOX = f"sandbox-{A}"
HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


# Texts


def patched(old: str, hunks: list[str]) -> str:
    """What a unified diff makes of a text, as `patch` reads it: every line checked."""
    lines, out, at = old.split("\n"), [], 0
    ends = old.endswith("\n")
    lines = lines[:-1] if ends or not old else lines
    new_ends = ends
    number = 0
    while number < len(hunks):
        found = HUNK.fullmatch(hunks[number])
        assert found is not None
        begin_, count = int(found[1]), int(found[2] or 1)
        to, to_count = int(found[3]), int(found[4] or 1)
        first = begin_ - 1 if count else begin_
        out += lines[at:first]
        assert len(out) == (to - 1 if to_count else to)
        at = first
        number += 1
        while number < len(hunks) and not HUNK.fullmatch(hunks[number]):
            mark, line = hunks[number][0], hunks[number][1:]
            bare = number + 1 < len(hunks) and hunks[number + 1].startswith("\\")
            if mark in " -":
                assert lines[at] == line
                assert bare == (at == len(lines) - 1 and not ends)
                at += 1
            if mark in " +":
                out.append(line)
                new_ends = not bare
            number += 2 if bare else 1
    new_ends = ends if lines[at:] else new_ends
    out += lines[at:]
    return "\n".join(out) + ("\n" if new_ends and out else "")


LINES = st.lists(st.sampled_from(["a", "b", "", "same", "\r", "x" * 5]), max_size=40)


@given(old=LINES, new=LINES, ends=st.tuples(st.booleans(), st.booleans()), around=st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_a_diff_makes_the_one_of_the_other(
    old: list[str], new: list[str], ends: tuple[bool, bool], around: int
) -> None:
    frame = [f"line {number}" for number in range(around)]
    one = "\n".join([*frame, *old, *frame]) + ("\n" if ends[0] else "")
    other = "\n".join([*frame, *new, *frame]) + ("\n" if ends[1] else "")
    hunks = unified(one, other)
    assert hunks is not None
    assert patched(one, hunks) == other
    assert (hunks == []) == (one == other)


def test_a_diff_of_a_long_text_is_short() -> None:
    lines = [f"{number}\n" for number in range(100_000)]
    other = [*lines]
    other[50_000] = "changed\n"
    assert unified("".join(lines), "".join(other)) == [
        "@@ -49998,7 +49998,7 @@",
        " 49997",
        " 49998",
        " 49999",
        "-50000",
        "+changed",
        " 50001",
        " 50002",
        " 50003",
    ]


def test_what_can_not_be_compared_in_time_is_not() -> None:
    few = "".join(f"{number % 3}\n" for number in range(_MOST_LINES))
    many = "".join(f"{number % 2}\n" for number in range(_MOST_LINES + 3))
    assert unified(few, "x\n") is not None
    assert unified(many, "x\n") is None


def test_text_is_what_can_be_read() -> None:
    assert as_text(b"") == ""
    assert as_text("ä\n".encode()) == "ä\n"
    assert as_text(b"\xff") is None
    assert as_text(b"a\0") is None


# Trees


def trees(folder: Path, one: Path, other: Path) -> tuple[Listing, Listing]:
    store = SnapshotStore.open(str(folder / "store"))
    image = make_image(folder / "image", pages=1)
    for name, tree in (("snap-1", one), ("snap-2", other)):
        add(store, draft(name), image, tree)
    return Listing(store, store.manifest("snap-1")[0]), Listing(store, store.manifest("snap-2")[0])


NAME = st.sampled_from(["a", "b", "c", "a-b", "d%"])
KIND = st.sampled_from(["file:one", "file:two", "file:", "link:x", "link:y", "pipe:", "mode:600", "mode:755"])
TREE = st.dictionaries(st.lists(NAME, min_size=1, max_size=3).map(tuple), KIND, max_size=14)


def make(root: Path, entries: dict[tuple[str, ...], str]) -> dict[str, tuple[Any, ...]]:
    """A tree, and what can be seen of it."""
    root.mkdir()
    for names, told in entries.items():
        path = root.joinpath(*names)
        if any(parent.exists() and not parent.is_dir() for parent in path.parents) or path.is_symlink():
            continue
        if any(parent.is_symlink() for parent in path.parents if parent != root and root in parent.parents):
            continue
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        kind, _, value = told.partition(":")
        if kind == "file":
            path.write_text(value)
        elif kind == "link":
            path.symlink_to(value)
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.write_text("mode")
            path.chmod(int(value, 8))
    seen = {}
    for parent, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path_ = os.path.join(parent, name)
            status = os.lstat(path_)
            link = os.readlink(path_) if os.path.islink(path_) else ""
            content = ""
            if os.path.isfile(path_) and not link:
                with open(path_) as file:
                    content = file.read()
            seen["/" + os.path.relpath(path_, root).replace("%", "%25")] = (status.st_mode, link, content)
    return seen


@given(one=TREE, other=TREE, common=TREE)
@settings(max_examples=80, deadline=None)
def test_trees_differ_where_the_file_system_says_so(
    one: dict[tuple[str, ...], str],
    other: dict[tuple[str, ...], str],
    common: dict[tuple[str, ...], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("trees")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "_PAGE_ONE_IN", 3)
        before = make(folder / "one", common | one)
        after = make(folder / "other", common | other)
        found = list(tree_changes(*trees(folder, folder / "one", folder / "other")))
    assert {(change.path, change.change) for change in found} == {
        *((path, "removed") for path in before.keys() - after.keys()),
        *((path, "added") for path in after.keys() - before.keys()),
        *((path, "changed") for path in before.keys() & after.keys() if before[path] != after[path]),
    }
    for change in found:
        assert (change.before is None, change.after is None) == (change.change == "added", change.change == "removed")
        if change.diff is not None:
            assert patched(before[change.path][2], list(change.diff)) == after[change.path][2]


def only(changes: list[FileChange]) -> FileChange:
    [one] = changes
    return one


@pytest.mark.parametrize(("set_back", "told"), [(False, ["/a", "/b"]), (True, ["/a"])])
def test_a_changed_file_is_told_by_its_names(tmp_path: Path, set_back: bool, told: list[str]) -> None:
    for number, (name, text) in enumerate((("one", "x"), ("other", "y"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(text)
        (tmp_path / name / "b").hardlink_to(tmp_path / name / "a")
        os.utime(tmp_path / name / "a", ns=(0, 0 if set_back else number))
    changes = list(tree_changes(*trees(tmp_path, tmp_path / "one", tmp_path / "other")))
    assert [one.path for one in changes] == told


def test_a_name_that_becomes_a_file_of_its_own_is_the_same_while_it_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("x")
    (tmp_path / "one/b").hardlink_to(tmp_path / "one/a")
    (tmp_path / "other/b").write_text("x")
    assert list(tree_changes(*trees(tmp_path, tmp_path / "one", tmp_path / "other"))) == []


def test_zeros_and_a_hole_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "f").open("wb") as file:
            if name == "one":
                file.write(b"\0" * 5000 + b"x" + b"\0" * 5000)
            else:
                file.truncate(10_001)
                file.seek(4096)
                file.write(b"\0" * 904 + b"x" + b"\0" * 100)
    listings = trees(tmp_path, tmp_path / "one", tmp_path / "other")
    assert list(tree_changes(*listings)) == []
    monkeypatch.setattr(tree_diff, "_COMPARED_BYTES", 10)
    pieces = [listing.resolve("f")[1].pieces for listing in listings]
    assert bool(list(tree_changes(*listings))) == (pieces[0] != pieces[1])


def test_owners_and_attributes_are_changes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("x")
    os.chown(tmp_path / "other/f", 7, 8)
    os.setxattr(tmp_path / "other/f", "user.x", b"1")
    assert only(list(tree_changes(*trees(tmp_path, tmp_path / "one", tmp_path / "other")))).what == (
        "uid",
        "gid",
        "attributes",
    )


# Versions


@pytest.fixture
def last(log: SqliteLog, store: SnapshotStore, tmp_path: Path) -> int:
    return world(log, store, tmp_path)


def compared(log: SqliteLog, home: Path, a: str, b: str, **more: bool) -> Comparison:
    return compare(log, parse(log, a), parse(log, b), Snapshots.of(home), **more)


def test_files_calls_and_state_are_compared(log: SqliteLog, home: Path, last: int) -> None:
    found = compared(log, home, f"{A}@{FIRST}", f"{A}@{SECOND}")
    assert found.files is not None
    told = {one.path.removeprefix("/workspace/"): one for one in found.files.changes}
    assert {name: one.change for name, one in told.items()} == {
        "a.py": "changed",
        "data.bin": "changed",
        "gone.txt": "removed",
        "hard": "changed",
        "link": "changed",
        "mode.sh": "changed",
        "new": "added",
        "new/file.txt": "added",
    }
    assert {name: one.what for name, one in told.items() if one.what} == {
        "a.py": ("content",),
        "data.bin": ("content",),
        "hard": ("content",),
        "link": ("target",),
        "mode.sh": ("mode",),
    }
    assert told["a.py"].diff is not None
    assert told["a.py"].diff[4:6] == ("-line 15", "+changed")
    assert told["data.bin"].diff is None
    assert found.only_a == ()
    assert [(one.tool_use_id, one.status) for one in found.only_b] == [(f"c{n}", "completed") for n in (2, 3, 4)]
    assert found.only_b[2].content == [{"type": "text", "text": "1 passed"}]
    assert found.state == {"snapshot_id": ("", "turn-1"), "snapshot_version": (0, FIRST)}
    back = compared(log, home, f"{A}@{SECOND}", f"{A}@{FIRST}")
    assert [one.tool_use_id for one in back.only_a] == ["c2", "c3", "c4"]
    assert back.only_b == ()


def test_a_version_is_like_itself(log: SqliteLog, home: Path, last: int) -> None:
    found = compared(log, home, f"{A}@{SECOND}", f"{A}@{SECOND}")
    assert found.files is not None
    assert (found.files.changes, found.only_a, found.only_b, found.state) == ((), (), (), {})


def test_a_call_that_ends_in_between_is_told(log: SqliteLog, home: Path) -> None:
    put(log, A, [created(), started(), begin("c1"), cut("c1"), begin("c2")])
    found = compared(log, home, f"{A}@3", f"{A}@5", files=False)
    assert [(one.tool_use_id, one.status, one.is_error) for one in found.only_b] == [
        ("c1", "interrupted", True),
        ("c2", "started", False),
    ]
    assert found.files is None


def test_two_forks_part_where_they_were_made(log: SqliteLog, home: Path, last: int) -> None:
    forks = [types.SandboxForked(child=one, snapshot_id="turn-2") for one in (B, C)]
    put(log, A, forks)
    for name, id_ in ((B, "b1"), (C, "c1x")):
        put(log, name, [created(A, last), suspended("turn-2", "fork"), resumed("turn-2"), *call(id_, text=name)])
    found = compared(log, home, f"{B}@5", f"{C}@5", files=False)
    assert str(found.common) == f"{BOX}@{last}"
    assert [one.tool_use_id for one in found.only_a] == ["b1"]
    assert [one.tool_use_id for one in found.only_b] == ["c1x"]
    parent = compared(log, home, f"{A}@{FIRST}", f"{C}@5", files=False)
    assert str(parent.common) == f"{BOX}@{FIRST}"
    assert [one.tool_use_id for one in parent.only_b] == ["c2", "c3", "c4", "c5", "c6", "c1x"]


def test_a_branch_that_runs_a_call_again_has_its_own_result(log: SqliteLog, home: Path) -> None:
    put(log, A, [created(), started(), *call("c1"), *call("c2", text="old")])
    put(log, B, [branched(A, 6, "none"), started(), *call("c2", text="new")])
    found = compared(log, home, f"{A}@4", f"{B}@4", files=False)
    assert [(one.at.stream, one.content[0]["text"]) for one in found.only_b] == [
        (BOX, "old"),
        (f"sandbox-{B}", "new"),
    ]


def test_strangers_have_nothing_in_common(log: SqliteLog, home: Path, last: int) -> None:
    put(log, B, [created(), started(), *call("x1")])
    found = compared(log, home, f"{A}@{FIRST}", f"{B}@4", files=False)
    assert found.common is None
    assert [one.tool_use_id for one in found.only_a] == ["c1"]
    assert [one.tool_use_id for one in found.only_b] == ["x1"]


def test_files_that_are_not_to_be_had_are_an_error(log: SqliteLog, home: Path, last: int) -> None:
    with pytest.raises(FilesMayDiffer):
        compared(log, home, f"{A}@{FIRST}", f"{A}@9")
    with pytest.raises(NoTree):
        compared(log, home, f"{A}@2", f"{A}@{FIRST}")
    near = compared(log, home, f"{A}@{FIRST}", f"{A}@9", nearest=True)
    assert near.files is not None
    assert near.files.changes == ()
    assert "edit" in near.files.b.changed_by


# The command


def diff(*arguments: str) -> str:
    result = CliRunner().invoke(build(), ["diff", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_gives_json(last: int) -> None:
    told = json.loads(diff(f"{A}@{FIRST}", f"{A}@{SECOND}", "--json"))
    assert told["common"] == {"stream": BOX, "version": FIRST}
    assert told["files_of"]["b"] == {"stream": BOX, "version": SECOND}
    changed = {one["path"]: one for one in told["files"]}
    assert changed["/workspace/a.py"]["diff"][0] == "@@ -12,7 +12,7 @@"
    assert changed["/workspace/mode.sh"]["after"]["mode"] == "-rwxr-xr-x"
    assert [one["tool_use_id"] for one in told["calls"]["b"]] == ["c2", "c3", "c4"]
    assert told["state"]["snapshot_id"] == {"a": "", "b": "turn-1"}
    assert json.loads(diff(f"{A}@3", f"{A}@{SECOND}", "--no-files", "--json"))["files"] is None


def test_the_command_shows_what_differs(last: int) -> None:
    shown = diff(f"{A}@{FIRST}", f"{A}@{SECOND}")
    for text in (
        "2 added, 1 removed, 5 changed",
        "M /workspace/a.py",
        "-line 15",
        "+changed",
        "M /workspace/data.bin  content, 2.5 KiB to 2.5 KiB",
        "M /workspace/mode.sh  -rw-r--r-- to -rwxr-xr-x",
        "M /workspace/link  -> a.py to -> same.txt",
        "D /workspace/gone.txt",
        "A /workspace/new/file.txt  -rw-r--r-- 6 B",
        "1 passed",
    ):
        assert text in shown
    assert "the nearest snapshot" not in shown
    near = diff(f"{A}@6", f"{A}@9", "--nearest")
    assert "no difference" in near
    assert "1 call (the first is edit" in near


def test_the_command_obeys_nothing_and_cuts_what_is_long(log: SqliteLog, store: SnapshotStore, tmp_path: Path) -> None:
    put(log, A, [created(), started(), *call("c1"), *call(EVIL, "bash", {"command": EVIL}, EVIL)])
    put(log, A, [types.SandboxSnapshotted(snapshot_id="s2", node="n", image_bytes=1, seconds=0.1)])
    put(log, A, [types.SandboxSnapshotted(snapshot_id="s1", node="n", image_bytes=1, seconds=0.1, of_version=2)])
    image = make_image(tmp_path / "image", pages=1)
    for name, lines in (("s1", 10), ("s2", 400)):
        (tmp_path / name).mkdir()
        (tmp_path / name / EVIL).write_text(EVIL + "\n" + "".join(f"{EVIL}{n}\n" for n in range(lines)))
        (tmp_path / name / "l").symlink_to(EVIL + name)
        add(store, draft(name), image, tmp_path / name)
    for more in ((), ("--all",)):
        shown = diff(f"{A}@2", f"{A}@6", *more)
        assert all(char.isprintable() for char in shown.replace("\n", ""))
        assert ("--all shows them" in shown) == (not more)
        assert len(shown.splitlines()) > (400 if more else 60)
    assert len(diff(f"{A}@2", f"{A}@6").splitlines()) < 120
