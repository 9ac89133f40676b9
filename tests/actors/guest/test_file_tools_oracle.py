"""read, write, edit, glob and grep against the SDK's own, text for text."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.actors.guest.oracle import Pair, paired

LONG = "x" * 300
PATHS = [
    "a.txt",
    "d/b.txt",
    "d",
    "",
    ".",
    "./d/../a.txt",
    "d//b.txt",
    "new.txt",
    "new/er/file.txt",
    "a.txt/below",
    "crlf.txt",
    "latin.txt",
    "big.txt",
    "wide.txt",
    "empty",
    "bin",
    "pic.png",
    "pic.PNG",
    "huge.jpg",
    "doc.pdf",
    ".png",
    "x.",
    "link",
    "link_dir/b.txt",
    "dangling",
    "loop",
    "loop/x",
    "out",
    "out/hosts",
    "up",
    "up/{here}/a.txt",
    "../x",
    "../{here}/a.txt",
    "/etc/hosts",
    "{base}/{here}/a.txt",
    "{base}/{here}x/a.txt",
    "//etc/hosts",
    "deep_dangling/x",
    "nul\0",
    LONG,
    "naïve 😀.txt",
    "cr\nlf",
    "\ud800",
    "\udcff",
    "...",
    "~",
    "d/..",
    "d/../..",
    "link_to_link",
]
PATTERNS = [
    "*",
    "**",
    "**/*",
    "*.txt",
    "d/*",
    "*/b.txt",
    "**/*.txt",
    "",
    "/etc/*",
    "../*",
    "d/../*",
    "[",
    "[a-c]*",
    "link_dir/*",
    "out/*",
    "up/*",
    "loop/*",
    "nope*",
    "a\0b",
    "\ud800",
    "**/d/**",
    "?",
    "***",
    "a.txt",
    ".*",
    "dangling",
    "d/",
]
REGEXES = [
    "a",
    "^line",
    "beta$",
    "[",
    "(",
    "x{2",
    "é",
    "\ud800",
    "\\d+",
    "",
    ".",
    "needle",
    "a|b",
    "(?i)ALPHA",
    "\\",
    "^$",
    "\r",
    "😀",
]
TEXTS = [
    "",
    "a",
    "alpha",
    "beta",
    "alpha beta",
    "\n",
    "\r\n",
    "é",
    "😀",
    "x" * 3000,
    "nul\0",
    "\ud800",
    "aa",
    "line 3\n",
    "��",
]

paths = st.sampled_from(PATHS)
texts = st.sampled_from(TEXTS) | st.text(max_size=12)
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(-2, 2),
    st.just(10**400),
    st.just(1e300),
    texts,
    paths,
    st.sampled_from(["1", " 2 ", "+1", "1_0", "1.0", "1.5", "-0", "yes", "OFF", "T", "", "\ud800"]),
    st.lists(st.integers(-2, 5) | st.sampled_from(["1", 2.0, 2.5, None, True]), max_size=3),
    st.just({}),
)
lines = st.integers(-2, 8) | st.sampled_from([100, 5000, 40000, 10**6])
ranges = st.none() | st.lists(lines, max_size=3) | st.tuples(lines, lines).map(list)


def _call(tool: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.fixed_dictionaries(arguments).map(lambda given: (tool, given))


well_shaped = st.one_of(
    _call("read", file_path=paths, view_range=ranges),
    _call("write", file_path=paths, content=texts),
    _call(
        "edit", file_path=paths, old_string=texts, new_string=texts, replace_all=st.sampled_from([None, True, False])
    ),
    _call("glob", pattern=st.sampled_from(PATTERNS), path=st.none() | paths),
    _call("grep", pattern=st.sampled_from(REGEXES), path=st.none() | paths),
)
names = st.sampled_from(
    ["file_path", "view_range", "content", "old_string", "new_string", "replace_all", "pattern", "path", "extra"]
)
ill_shaped = st.tuples(
    st.sampled_from(["read", "write", "edit", "glob", "grep"]), st.dictionaries(names, odd, max_size=5)
)
calls = st.lists(st.one_of(well_shaped, well_shaped, ill_shaped), min_size=1, max_size=8)


def furnish(folder: Path) -> None:
    """A tree with something of everything."""
    files: dict[str, bytes] = {
        "a.txt": b"alpha\nbeta\nalpha beta\n",
        "d/b.txt": b"".join(b"line %d needle\n" % number for number in range(20)),
        "crlf.txt": b"alpha\r\nbeta\r\n",
        "latin.txt": b"caf\xe9\nalpha\n",
        "big.txt": b"".join(b"line %d of a file above the limit\n" % number for number in range(9000)),
        "wide.txt": b"alpha\n" + b"w" * 270_000 + b"\nbeta\n",
        "empty": b"",
        "bin": b"alpha\0beta",
        "pic.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "doc.pdf": b"%PDF-1.4 \xff",
        ".png": b"hidden",
        ".git/config": b"alpha",
        "node_modules/m.txt": b"alpha",
        "new.d/\udcff.txt": b"alpha\n",
    }
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    links = {
        "link": "a.txt",
        "link_dir": "d",
        "dangling": "nowhere/at/all",
        "loop": "loop",
        "out": "/etc",
        "up": "..",
        "deep_dangling": "d/../missing/../d",
        "link_to_link": "link",
    }
    for name, target in links.items():
        os.symlink(target, folder / name)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        # No ripgrep for either, wherever this machine may have one.
        patch.setenv("PATH", "/nowhere")
        with paired(tmp_path_factory.mktemp("files"), path="/nowhere") as pair:
            yield pair


def agree(pair: Pair, tool: str, given: dict[str, Any]) -> None:
    if tool == "glob":
        pair.fix_times()
    ours, theirs = pair.run(tool, given)
    assert ours == theirs


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls)
@example([("edit", {"file_path": "a.txt", "old_string": "", "new_string": "x", "replace_all": True})])
@example(
    [
        ("read", {"file_path": "big.txt", "view_range": [8999, 0]}),
        ("read", {"file_path": "wide.txt", "view_range": [2, 2]}),
    ]
)
@example(
    [
        ("read", {"file_path": "huge.jpg"}),
        ("read", {"file_path": "big.txt"}),
        ("edit", {"file_path": "big.txt", "old_string": "a", "new_string": "b"}),
    ]
)
@example(
    [("write", {"file_path": "dangling", "content": "through"}), ("write", {"file_path": "out/x", "content": "no"})]
)
@example([("grep", {"pattern": "line"}), ("glob", {"pattern": "**/*"})])
def test_the_file_tools_read_as_the_sdk_s(pair: Pair, sequence: list[tuple[str, dict[str, Any]]]) -> None:
    pair.renew()
    for folder in pair.folders:
        furnish(folder)
    for call in sequence:
        agree(pair, *call)
    assert pair.trees()[0] == pair.trees()[1]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(ill_shaped)
def test_ill_shaped_inputs_are_refused_alike(pair: Pair, call: tuple[str, dict[str, Any]]) -> None:
    agree(pair, *call)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60), ranges, st.integers(262_120, 262_160))
def test_view_ranges_around_the_limit(pair: Pair, start: bytes, view_range: list[int] | None, size: int) -> None:
    data = (start + b"\n").ljust(size, b"z") + b"\nend\n"
    for folder in pair.folders:
        (folder / "edge").write_bytes(data)
    agree(pair, "read", {"file_path": "edge", "view_range": view_range})


@pytest.mark.parametrize(("name", "limit"), [("p.jpg", 5 * 1024 * 1024 // 4 * 3), ("p.pdf", 20 * 1024 * 1024)])
@pytest.mark.parametrize("more", [0, 1])
def test_media_up_to_the_limit(pair: Pair, name: str, limit: int, more: int) -> None:
    pair.renew()
    for folder in pair.folders:
        (folder / name).write_bytes(b"\xff" * (limit + more))
    agree(pair, "read", {"file_path": name})


def test_a_fifo_is_not_waited_for(pair: Pair) -> None:
    pair.renew()
    for folder in pair.folders:
        os.mkfifo(folder / "fifo")
    agree(pair, "read", {"file_path": "fifo"})
    agree(pair, "edit", {"file_path": "fifo", "old_string": "a", "new_string": "b"})
    agree(pair, "grep", {"pattern": "a"})


def test_glob_names_the_newest_two_hundred(pair: Pair) -> None:
    pair.renew()
    for folder in pair.folders:
        for number in range(250):
            (folder / f"f{number}").touch()
    agree(pair, "glob", {"pattern": "f*"})


def test_grep_cuts_its_output(pair: Pair) -> None:
    pair.renew()
    for folder in pair.folders:
        (folder / "many").write_bytes(b"".join(b"needle %d\n" % number for number in range(9000)))
    agree(pair, "grep", {"pattern": "needle"})


def test_grep_passes_over_lines_too_long_to_search(pair: Pair) -> None:
    pair.renew()
    for folder in pair.folders:
        (folder / "long").write_bytes(
            b"n" * 1999 + b"\n" + b"n" * 2000 + b"\n" + b"n" * 70_000 + b"\nn\n" + b"n" * 2000
        )
    agree(pair, "grep", {"pattern": "n"})


FAKE_RG = """#!/bin/bash
printf '%s\\n' "$@" | sed 's/hglass\\|oracle/folder/'
case "$6" in one) exit 1;; two) echo "bad thing" >&2; exit 2;; flood) head -c 300000 /dev/zero | tr '\\0' x;; esac
"""


@pytest.mark.parametrize("pattern", ["plain", "one", "two", "flood", "-x", "", "a\0b"])
def test_ripgrep_is_run_as_the_sdk_runs_it(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    program = tools / "rg"
    program.write_text(FAKE_RG)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f"relative:{tools}:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    with paired(tmp_path / "base", path) as pair:
        agree(pair, "grep", {"pattern": pattern})


def test_ripgrep_in_the_working_directory_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/base/oracle")
    with paired(tmp_path / "base", f"{tmp_path}/base/hglass") as pair:
        for folder in pair.folders:
            program = folder / "rg"
            program.write_text("#!/bin/sh\necho taken over\n")
            program.chmod(0o755)
        agree(pair, "grep", {"pattern": "taken"})
