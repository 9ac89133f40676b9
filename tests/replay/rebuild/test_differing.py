"""diff --live: processes and environments of two versions, in real machines; and guests that tell nonsense."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.types import SandboxCrashed, SandboxRecovered
from replay.history.target import Target
from replay.rebuild.differing import compare_live, process_changes
from replay.rebuild.errors import NotReproducible, ProcessesUnreadable
from replay.rebuild.processes import Process, parse_environment, parse_processes
from tests.replay.rebuild.test_commands import hourglass

if TYPE_CHECKING:
    from tests.replay.rebuild.conftest import NewLive

live_test = pytest.mark.asyncio(loop_scope="module")


def process(pid: int, *command: str, state: str = "running", **environment: str) -> Process:
    return Process(pid, 1, command[0] if command else "dead", state, command, environment)


def said(pid: str = "7", stat: str = "7 (a) b) S 1 7 7", *, words: list[str] | None = None, env: str = "A=b") -> bytes:
    given_ = words if words is not None else ["a", ""]
    return "".join(f"{one}\0" for one in [pid, stat, str(len(given_)), *given_, "1", env]).encode("latin-1")


@live_test
async def test_two_versions_are_asked_in_throw_away_machines(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("sleep 1000 & export KEPT=1 GONE=soon; cd /tmp")
    await live.snapshot()
    one = live.version
    await live.bash(
        "kill %1; wait; unset GONE; export NEW='two\nlines' KEPT=2\n"
        "ODD=$'\\x1b[31m' sleep 2000 > /dev/null 2>&1 & cd /workspace"
    )
    asked = ("diff", f"{live.stream}@{one}", live.stream, "--live", "--no-files")
    code, out, err = await hourglass(live, *asked)
    assert code == 0, out + err
    assert re.search(r"D +\d+ +sleep 1000", out)
    assert re.search(r"A +\d+ +sleep 2000", out)
    assert re.search(r"GONE +soon +- *\n", out)
    assert re.search(r"NEW +- +two\\nlines *\n", out)
    code, out, err = await hourglass(
        live, "diff", f"{live.stream}@{one}", live.stream, "--live", "--no-files", "--json"
    )
    assert code == 0, out + err
    told: dict[str, Any] = json.loads(out)
    assert told["environment"] == {
        "GONE": {"a": "soon", "b": None},
        "KEPT": {"a": "1", "b": "2"},
        "NEW": {"a": None, "b": "two\nlines"},
        "OLDPWD": {"a": "/workspace", "b": "/tmp"},
        "PWD": {"a": "/tmp", "b": "/workspace"},
    }
    changes = {(one["change"], *(one["after"] or one["before"])["command"]) for one in told["processes"]}
    assert changes == {("removed", "sleep", "1000"), ("added", "sleep", "2000")}
    assert {one["verdict"] for one in told["rebuilt"].values()} == {"equal"}
    # The same version twice is the same: the agent and whoever asks are no part of it.
    there = Target(live.stream, one)
    same = await compare_live(live.log, there, there, live.ground)
    assert (same.processes, same.environment, same.because) == ((), {}, "")


@live_test
async def test_a_shell_that_tells_nonsense_and_a_version_that_can_not_be(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("base64() { echo nonsense; }")
    one = Target(live.stream, live.version)
    found = await compare_live(live.log, Target(live.stream, 2), one, live.ground)
    assert found.environment is None
    assert found.because == f"{live.stream}@{live.version}: what its shell says is no environment: nonsense"
    assert found.plain()["environment_unknown"] == found.because
    code, out, err = await hourglass(live, "diff", f"{live.stream}@2", live.stream, "--live", "--no-files")
    assert (code, "the environments can't be compared: " in out) == (0, True), out + err
    live.put(
        SandboxCrashed(reason="exited"),
        SandboxRecovered(machine_id=live.machine.machine_id, node="node-a", kept="files", seconds=0.1),
    )
    late = Target(live.stream, live.version)
    with pytest.raises(NotReproducible):
        await compare_live(live.log, one, late, live.ground)
    code, out, err = await hourglass(live, "diff", f"{live.stream}@2", live.stream, "--live", "--no-files")
    assert (code, "With --anyway" in err) == (1, True), out + err
    anyway = await compare_live(live.log, one, late, live.ground, anyway=True)
    assert not anyway.b.plan.reproducible


@live_test
async def test_a_guest_whose_bash_lies_or_is_gone(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("printf '#!/bin/sh\\nexec yes\\n' > /tmp/b; chmod +x /tmp/b; mv /tmp/b /bin/bash")
    there = Target(live.stream, live.version)
    with pytest.raises(ProcessesUnreadable, match="says more than 8,388,608 bytes"):
        await compare_live(live.log, there, there, live.ground)
    await live.bash("rm /bin/bash")
    there = Target(live.stream, live.version)
    with pytest.raises(ProcessesUnreadable, match="bash can't be run in it: No such file"):
        await compare_live(live.log, there, there, live.ground)


def test_processes_are_paired_by_number_then_by_command() -> None:
    stays, moved, execs, ends = process(5, "a"), process(6, "b", X="1"), process(7, "c"), process(8, "e")
    before = [stays, moved, execs, ends, process(9, "gone")]
    after = [stays, process(16, "b", X="2"), process(7, "d"), process(8, "e", state="stopped"), process(20, "new")]
    found = list(process_changes(before, after))
    assert [(one.change, one.what, (one.after or one.before).pid) for one in found] == [  # type: ignore[union-attr]
        ("removed", (), 9),
        ("added", (), 20),
        ("changed", ("environment",), 16),
        ("changed", ("command",), 7),
        ("changed", ("state",), 8),
    ]
    assert found[2].environment == {"X": ("1", "2")}
    # Two of the same are two.
    twice = list(
        process_changes([process(1, "w"), process(2, "w")], [process(3, "w"), process(2, "w"), process(4, "w")])
    )
    assert [(one.change, one.after) for one in twice] == [("added", process(4, "w"))]


def test_what_a_guest_says_is_read_strictly() -> None:
    assert parse_processes(b"") == ()
    [one] = parse_processes(said(env="A=b=c") + said("8", ""))
    assert one == Process(7, 1, "a) b", "running", ("a", ""), {"A": "b=c"})
    assert parse_processes(said(words=["\xff"]))[0].command == ("\\xff",)
    assert parse_processes(said(env="none"))[0].environment == {}
    bad = [
        said()[:-1],
        said("0"),
        said("07"),
        said("7" * 11),
        said("x"),
        said("8"),
        said() + said(),
        said(stat="7 a S 1"),
        said(stat="7 (a) S 1 \x1b"),
        said(stat="7 (" + "a" * 300 + ") S 1"),
        said().replace(b"2\0", b"-1\0", 1),
        said().replace(b"2\0", b"9999\0", 1),
        said().replace(b"2\0", b"99999\0", 1),
        b"7\0",
    ]
    for one_bad in bad:
        with pytest.raises(ValueError, match="is malformed"):
            parse_processes(one_bad)
    for text in ("nonsense!", base64.b64encode(b"A=b").decode(), "QT1iA\n"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_environment(text)
    assert parse_environment(base64.encodebytes(b"A=1\0A=2\0_=x\0B=\0").decode()) == {"A": "1", "B": ""}


@given(st.lists(st.sampled_from([b"7", b"1", b"2", b"0", b"7 (a) S 1", b"A=b", b"", b"\xff"])).map(b"\0".join))
def test_nonsense_is_refused_or_harmless(raw: bytes) -> None:
    try:
        found = parse_processes(raw)
    except ValueError:
        return
    assert all(one.pid > 0 for one in found)
