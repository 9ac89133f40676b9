"""bash against the SDK's own, text for text."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from actors.guest.shell import OUTPUT_LIMIT
from tests.actors.guest.conftest import alive
from tests.actors.guest.oracle import Pair, paired

Given = dict[str, Any]

ENDS = ["exit 0", "exit 7", "kill -9 $$", "set -e; false", ")", "if", "echo a; exec true", "{ fi", "kill -TERM $$"]
"""Commands after which there is no shell."""
HANGS = [
    "echo 'open",
    "sleep 30",
    "echo {",
    "cat <<X",
    "while true; do :; done",
    "echo a\\",
    "(sleep 30; echo x) | cat",
]
PLAIN = [
    "true",
    "false",
    "echo hello",
    "echo a >&2; echo b",
    "printf 'no newline'",
    "printf '\\n\\nblank\\n\\n\\n'",
    "cat",
    'read x; echo "[$x]$?"',
    "nope_no_such_command",
    "ls /nope",
    "exit_code() { return 3; }; exit_code",
    "(exit 5)",
    "cd / && pwd",
    "pwd | sed 's/hglass\\|oracle/folder/'",
    "mkdir -p q && cd q",
    "export A=1 B=2",
    'echo "$A-$B"',
    "A=5",
    "printf '\\x1b[31mred\\x1b[0m\\n'",
    "printf 'caf\\xe9 \\xff\\n'",
    "printf '\\0nul\\n'",
    "echo 😀 naïve",
    "echo one\necho two",
    "# only a comment",
    "echo a; # comment",
    "set -v",
    "set +v",
    "set -u; echo $UNSET_X",
    "f() { echo in f; }; f",
    "f",
    "$(",
    "cat <<X\nhere $A\nX",
    "echo $((2**62))",
    "let 0",
    "seq 3 | tail -1",
    "for i in 1 2 3; do echo $i; done",
    "trap 'echo on exit' EXIT",
    "test -t 0 || echo no terminal",
    "echo $PS1$PS2$TERM",
    "type f",
    'echo "$0"',
    "echo $LINENO",
    "echo '__HG_CALL_'",
    "printf '\\n__HG_CALL_00'",
    "printf '\\r\\n'",
    "   ",
    "echo trailing   ",
    "umask",
    "ulimit -c",
    "echo $-",
    "env | grep -c ANTHROPIC",
    "printf 'x%.0s' {1..100}",
    "alias ll=ls; ll /",
    "history",
    "jobs",
    "wait",
    "echo to file > made.txt",
    "unset A",
    "return 3",
    "break",
    "(",
    "echo done &\nwait",
    "time true 2>/dev/null",
    "\n\n",
    "!",
]

commands = st.sampled_from(PLAIN + PLAIN + PLAIN + ENDS)
restarts: st.SearchStrategy[Given] = st.just({"restart": True}) | st.just({"restart": "yes", "command": "echo not run"})
shapes: st.SearchStrategy[Given] = st.one_of(
    st.builds(lambda command: {"command": command}, commands),
    st.builds(lambda command: {"command": command}, commands),
    st.builds(lambda a, b: {"command": f"{a}\n{b}"}, commands, commands),
    restarts,
    st.sampled_from(
        [
            {},
            {"command": ""},
            {"command": None},
            {"command": 3},
            {"restart": False},
            {"restart": "maybe"},
            {"timeout_ms": 1},
            {"command": "echo x", "timeout_ms": "60000"},
            {"command": "echo x", "timeout_ms": 1.5},
            {"cmd": "echo"},
            {"command": "echo x", "timeout_ms": 0},
            {"command": "\ud800"},
            {"command": "echo a\0b"},
        ]
    ),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with paired(tmp_path_factory.mktemp("bash")) as pair:
        yield pair


def begin(pair: Pair) -> None:
    pair.renew()
    agree(pair, {"restart": True})


def agree(pair: Pair, given: Given) -> None:
    ours, theirs = pair.run("bash", given)
    assert ours == theirs


@settings(max_examples=70, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(shapes, min_size=1, max_size=7))
@example([{"command": command} for command in PLAIN])
@example(list(itertools.chain.from_iterable(({"command": end}, {"command": "echo x"}, {"restart": 1}) for end in ENDS)))
def test_bash_reads_as_the_sdk_s(pair: Pair, sequence: list[Given]) -> None:
    begin(pair)
    for given_ in sequence:
        agree(pair, given_)
    assert pair.trees()[0] == pair.trees()[1]


@pytest.mark.parametrize("command", HANGS)
def test_a_command_that_hangs_times_out_and_takes_the_shell_along(pair: Pair, command: str) -> None:
    begin(pair)
    agree(pair, {"command": command, "timeout_ms": 150})
    agree(pair, {"command": "echo after"})
    agree(pair, {"restart": True})
    agree(pair, {"command": "echo again"})


@pytest.mark.parametrize("milliseconds", [-1, 1.0, "1"])
def test_the_text_of_a_timeout(pair: Pair, milliseconds: object) -> None:
    begin(pair)
    agree(pair, {"command": "sleep 9", "timeout_ms": milliseconds})


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(-60, 5), st.sampled_from(["x", "é", "\\n", "\\x1b[1m"]))
@example(-53, "x")
@example(-52, "x")
@example(-51, "x")
def test_output_is_cut_where_the_sdk_cuts_it(pair: Pair, offset: int, unit: str) -> None:
    """The mark counts: its length must be the SDK's. (Not at the SDK's own 4 KiB reads, where it loses the status.)"""
    begin(pair)
    size = len(unit.encode().decode("unicode_escape").encode("latin-1"))
    command = f"for i in $(seq {(OUTPUT_LIMIT + offset) // size // 100}); do printf '{unit}%.0s' {{1..100}}; done; "
    command += f"head -c {(OUTPUT_LIMIT + offset) % (size * 100)} /dev/zero | tr '\\0' y; echo 'é end'"
    agree(pair, {"command": command})


def test_a_flood_of_output(pair: Pair) -> None:
    begin(pair)
    agree(pair, {"command": "seq 300000; false"})
    agree(pair, {"command": "head -c 3000000 /dev/zero | tr '\\0' z; exit 4"})


def test_what_a_job_printed_meanwhile_comes_with_the_next_command(pair: Pair) -> None:
    begin(pair)
    agree(pair, {"command": "(while [ ! -e go ]; do sleep 0.01; done; echo late; touch gone) & true"})
    for folder in pair.folders:
        (folder / "go").touch()
    agree(pair, {"command": "wait; echo now"})


def test_a_command_larger_than_a_pipe(pair: Pair) -> None:
    begin(pair)
    agree(pair, {"command": f": {'y' * 200_000}; echo read it all"})


def test_a_missing_working_directory_is_an_error_alike(pair: Pair) -> None:
    begin(pair)
    for folder in pair.folders:
        os.rmdir(folder)
    agree(pair, {"restart": True})
    agree(pair, {"command": "echo x"})
    pair.renew()


def test_what_a_command_started_ends_with_its_timeout(pair: Pair) -> None:
    """The SDK ends the shell alone; ours ends what the command started too, and reads the same."""
    begin(pair)
    agree(pair, {"command": "sleep 300 & echo $! > kept.pid"})
    agree(pair, {"command": "(sleep 301 & echo $! > child.pid; wait)", "timeout_ms": 300})
    pids = [[int((folder / name).read_text()) for folder in pair.folders] for name in ("kept.pid", "child.pid")]
    kept, children = pids
    try:
        assert not alive(children[0])
        assert alive(kept[0])
    finally:
        for pid in (*kept, children[1]):
            os.kill(pid, signal.SIGKILL)
