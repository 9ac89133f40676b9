"""ls and cat at a version: what the nearest snapshot has, bounded; nothing hostile obeyed, nothing followed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from events import types
from events.cli import build
from events.listing import Listing
from events.store_errors import ChunkBroken
from replay.history import show_files
from replay.history.errors import FileRefused, FilesMayDiffer, NoSuchFile, NoTree
from replay.history.planned import Version
from replay.history.presence import Snapshots
from replay.history.target import parse
from replay.history.trees import FileTree, tree_at
from tests.events.stores import add, draft, make_image
from tests.replay.history.boxes import A, B, begin, call, created, put, resumed, started, suspended, taken
from tests.replay.history.worlds import EVIL, FIRST, SECOND, world
from tests.terminal import in_terminal

if TYPE_CHECKING:
    from pathlib import Path

    from events.snapshots import SnapshotStore
    from events.sqlite_log import SqliteLog

BOX = f"sandbox-{A}"


@pytest.fixture
def last(log: SqliteLog, store: SnapshotStore, tmp_path: Path) -> int:
    return world(log, store, tmp_path)


def at(log: SqliteLog, home: Path, text: str, *, nearest: bool = False) -> FileTree:
    return tree_at(log, parse(log, text), Snapshots.of(home), nearest=nearest)


def ls(target: str, *more: str) -> Any:
    return json.loads(CliRunner().invoke(build(), ["ls", target, "--json", *more]).stdout)


def cat(target: str, *more: str) -> bytes:
    result = CliRunner().invoke(build(), ["cat", target, *more])
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


# Which version it is


@pytest.mark.parametrize(
    ("version", "of"), [(FIRST, FIRST), (5, FIRST), (6, FIRST), (7, FIRST), (8, FIRST), (SECOND, SECOND), (14, SECOND)]
)
def test_a_version_that_nothing_has_changed_since_its_snapshot_has_its_files(
    log: SqliteLog, home: Path, last: int, version: int, of: int
) -> None:
    tree = at(log, home, f"{A}@{version}")
    assert (tree.of, tree.asked, tree.changed_by) == (Version(BOX, of), Version(BOX, version), "")


@pytest.mark.parametrize(("version", "what"), [(9, "1 call "), (10, "1 call "), (16, "bash at")])
def test_a_version_whose_files_may_differ_is_refused(
    log: SqliteLog, home: Path, last: int, version: int, what: str
) -> None:
    of = FIRST if version < SECOND else SECOND
    with pytest.raises(FilesMayDiffer, match=f"is of {BOX}@{of}, and after it .*{what}") as error:
        at(log, home, f"{A}@{version}")
    assert f"{BOX}@{of}" in error.value.advice
    assert "--nearest" in error.value.advice
    tree = at(log, home, f"{A}@{version}", nearest=True)
    assert tree.of == Version(BOX, of)
    assert what in tree.changed_by


def test_what_a_person_did_counts_and_a_crash_does_not(
    log: SqliteLog, home: Path, store: SnapshotStore, tmp_path: Path
) -> None:
    world(log, store, tmp_path)
    put(log, B, [created(A, SECOND + 1), suspended("turn-2", "fork"), resumed("turn-2")])
    put(log, B, [types.SandboxCrashed(reason="exited")])
    assert at(log, home, B).of == Version(f"sandbox-{B}", 1)
    put(log, B, [types.SandboxFileCopied(path="/x", direction="in", bytes=None)])
    with pytest.raises(FilesMayDiffer, match=r"what happened at .*@5 \(sandbox.file_copied\)"):
        at(log, home, B)


def test_without_a_snapshot_there_are_no_files(log: SqliteLog, home: Path, last: int) -> None:
    with pytest.raises(NoTree, match="has no snapshot of") as error:
        at(log, home, f"{A}@{FIRST - 1}")
    assert f"turn-1 of {BOX}@{FIRST}" in error.value.advice
    put(log, B, [created(), started(), *call("c1"), taken("here-1"), begin("c2")])
    with pytest.raises(NoTree) as error:
        at(log, home, f"{B}@4")
    assert "hourglass plan" in error.value.advice
    folder = home / "storage/pool/snapshots/here-1"
    folder.mkdir(parents=True)
    (folder / "snapshot.json").write_text("{}")
    with pytest.raises(NoTree) as error:
        at(log, home, f"{B}@4")
    assert "lies on this node alone" in error.value.advice
    with pytest.raises(NoTree):
        tree_at(log, parse(log, f"{A}@{FIRST}"), Snapshots())


# ls


def test_ls_lists_a_folder(last: int) -> None:
    told = ls(f"{A}@{FIRST}:/workspace")
    assert told["of"] == {"stream": BOX, "version": FIRST, "snapshot_id": "turn-1"}
    assert told["path"] == "/workspace"
    assert told["changed_by"] is None
    entries = {one["path"].removeprefix("/workspace/"): one for one in told["entries"]}
    assert entries["a.py"]["kind"] == "file"
    assert entries["a.py"]["mode"] == "0644"
    assert entries["sparse"]["size"] == 3_000_000
    assert entries["link"]["target"] == "a.py"
    assert entries["hard"]["same_as"] == "/workspace/data.bin"
    assert entries["hard"]["size"] == 2560
    assert entries["pipe"]["kind"] == "pipe"
    assert entries["%FF%25"]["size"] == 5
    assert "/workspace/a.py" not in json.dumps([one["path"] for one in ls(f"{A}@{FIRST}")["entries"]])


def test_ls_takes_a_path_as_the_guest_would(last: int) -> None:
    for path in ("bin/", "/bin", "usr/../bin/.", "/../usr/bin", "workspace/../bin"):
        assert [one["path"] for one in ls(f"{A}@{FIRST}:{path}")["entries"]] == ["/usr/bin/tool"], path
    assert ls(f"{A}@{FIRST}:workspace/link")["entries"][0]["kind"] == "link"
    assert ls(f"{A}@{FIRST}:workspace/nowhere")["entries"][0]["target"] == "/no/such/file"
    [one] = ls(f"{A}@{FIRST}:workspace/escape")["entries"]
    assert one["path"] == "/workspace/escape"


def test_ls_is_a_table_that_obeys_nothing(last: int) -> None:
    result = CliRunner().invoke(build(), ["ls", f"{A}@{FIRST}:/workspace"])
    assert "-rw-r--r--" in result.stdout
    assert "lrwxrwxrwx" in result.stdout
    assert "prw-r--r--" in result.stdout
    assert "link -> a.py" in result.stdout
    assert "hard = /workspace/data.bin" in result.stdout
    assert "[red]" in result.stdout
    assert all(char.isprintable() for char in result.stdout.replace("\n", ""))
    assert result.stderr == ""


def test_a_note_says_of_which_version_it_is(last: int) -> None:
    result = CliRunner().invoke(build(), ["ls", f"{A}@6:/workspace"])
    assert f"note: of {BOX}@{FIRST}, the nearest snapshot; no call has changed it since" in result.stderr
    result = CliRunner().invoke(build(), ["ls", f"{A}@9:/tmp", "--nearest"])
    assert "1 call (the first is edit at" in result.stderr
    assert "is its memory" in result.stderr


def test_times_that_no_calendar_has_are_shown(log: SqliteLog, store: SnapshotStore, home: Path, tmp_path: Path) -> None:
    world(log, store, tmp_path)
    tree = at(log, home, f"{A}@{FIRST}")
    _, entry = tree.find("workspace/a.py")
    for mtime in (-(2**62), 2**62, 10**30):
        assert show_files._row(tree, (b"x",), entry.model_copy(update={"mtime_ns": mtime}))
    device = entry.model_copy(update={"kind": "block", "device": os.makedev(8, 1)})
    assert show_files._row(tree, (b"x",), device)[3] == "8, 1"


# cat


def test_cat_gives_the_bytes(last: int, tmp_path: Path) -> None:
    work = tmp_path / "first/workspace"
    for name in ("a.py", "data.bin", "hard", "sparse", "same.txt", EVIL):
        assert cat(f"{A}@{FIRST}:/workspace/{name}") == (work / name).read_bytes()
    assert cat(f"{A}@{FIRST}:workspace/link") == (work / "a.py").read_bytes()
    assert cat(f"{A}@{SECOND}:workspace/link") == b"the same\n"


def test_cat_never_leaves_the_tree(last: int) -> None:
    assert cat(f"{A}@{FIRST}:workspace/escape") == b"guest\n"


def test_cat_gives_json(last: int) -> None:
    told = json.loads(cat(f"{A}@{FIRST}:workspace/a.py", "--json"))
    assert told["encoding"] == "utf-8"
    assert told["content"].startswith("line 1\n")
    told = json.loads(cat(f"{A}@{FIRST}:workspace/hard", "--json"))
    assert (told["encoding"], told["size"], told["path"]) == ("base64", 2560, "/workspace/hard")
    assert base64.b64decode(told["content"]) == bytes(range(256)) * 10


def test_bytes_of_names_are_taken_as_they_are(last: int, home: Path) -> None:
    program = [sys.executable, "-m", "events", "cat", f"{A}@{FIRST}:workspace/" + os.fsdecode(b"\xff%")]
    done = subprocess.run(program, capture_output=True, check=True, env={**os.environ, "HOURGLASS_HOME": str(home)})
    assert done.stdout == b"bytes"
    assert done.stderr == b""


def test_a_terminal_is_shown_text_and_obeys_nothing(last: int, home: Path) -> None:
    environment = {**os.environ, "HOURGLASS_HOME": str(home), "TERM": "xterm"}
    program = [sys.executable, "-m", "events", "cat"]
    with in_terminal([*program, f"{A}@{FIRST}:workspace/{EVIL}"], environment, rows=24, columns=100) as terminal:
        shown = terminal.until("second")
        assert terminal.wait() == 0
    assert "\\x1b]0;owned\\x07[red]\\u202e" in shown
    assert "\x1b" not in shown
    with in_terminal([*program, f"{A}@{FIRST}:workspace/data.bin"], environment, rows=24, columns=200) as terminal:
        assert "it is binary, and this is a terminal" in terminal.until("next: ")
        assert terminal.wait() == 1


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/workspace", FileRefused, "it is no file but a folder"),
        ("/workspace/pipe", FileRefused, "it is no file but a pipe"),
        ("/workspace/nowhere", NoSuchFile, "/no is not there"),
        ("/workspace/none", NoSuchFile, "/workspace/none is not there"),
        ("/workspace/a.py/x", NoSuchFile, "/workspace/a.py is not there, or is no folder"),
        ("", FileRefused, "a folder"),
    ],
)
def test_what_is_no_file_is_refused(last: int, path: str, error: type[Exception], message: str) -> None:
    result = CliRunner().invoke(build(), ["cat", f"{A}@{FIRST}:{path}"])
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert "hourglass ls" in result.exception.advice  # type: ignore[attr-defined]


def test_what_is_too_large_is_refused(log: SqliteLog, home: Path, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_files, "_JSON_BYTES", 1000)
    result = CliRunner().invoke(build(), ["cat", f"{A}@{FIRST}:workspace/sparse", "--json"])
    assert "too many for JSON" in str(result.exception)
    monkeypatch.setattr(show_files, "_MOST_BYTES", 2_000_000)
    result = CliRunner().invoke(build(), ["cat", f"{A}@{FIRST}:workspace/sparse"])
    assert "it claims to have 3,000,000 bytes" in str(result.exception)


def test_a_circle_of_links_is_no_file(log: SqliteLog, store: SnapshotStore, home: Path, tmp_path: Path) -> None:
    (tmp_path / "first/workspace").mkdir(parents=True)
    (tmp_path / "first/workspace/round").symlink_to("round")
    (tmp_path / "first/workspace").rename(tmp_path / "kept")
    (tmp_path / "first").rmdir()
    put(log, A, [created(), started(), taken("turn-1")])
    add(store, draft("turn-1", A, version=2), make_image(tmp_path / "image", pages=1), tmp_path / "kept")
    with pytest.raises(NoSuchFile, match="lead in a circle"):
        at(log, home, A).find("round/x")


def test_a_chunk_that_is_gone_is_said(last: int, home: Path) -> None:
    before = {path for path in (home / "snapshots/chunks").rglob("*") if path.is_file()}
    manifest = json.loads((home / "snapshots/manifests/turn-1.json").read_text())
    listing_chunks = set(manifest["tree"]["pages"])
    for path in before:
        if path.name not in listing_chunks:
            path.unlink()
    assert ls(f"{A}@{FIRST}:/workspace")["entries"]
    result = CliRunner().invoke(build(), ["cat", f"{A}@{FIRST}:/workspace/a.py"])
    assert isinstance(result.exception, ChunkBroken)


def test_looking_changes_nothing(log: SqliteLog, last: int, home: Path) -> None:
    log.close()

    def seen() -> dict[str, bytes]:
        files = [*(home / "snapshots").rglob("*"), home / "log.db"]
        return {str(one): one.read_bytes() for one in files if one.is_file()}

    before = seen()
    ls(f"{A}@{FIRST}:/workspace")
    cat(f"{A}@{FIRST}:/workspace/a.py")
    assert seen() == before


def test_a_listing_is_of_its_snapshot(log: SqliteLog, home: Path, last: int) -> None:
    tree = at(log, home, f"{A}@{SECOND}")
    assert isinstance(tree.listing, Listing)
    assert tree.listing.manifest.version == SECOND
