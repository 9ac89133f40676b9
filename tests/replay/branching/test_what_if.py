"""What a what-if makes of a history, with no machine: which calls run, which are left out, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from events.console import console
from events.sqlite_log import SqliteLog
from events.types import SandboxCrashed, SandboxRecovered
from replay.branching.errors import (
    BranchError,
    CallTooLate,
    NoCallThere,
    ReplacedTwice,
    ReplacementUnreadable,
    RestNotRepeatable,
    UnknownTool,
)
from replay.branching.family import family
from replay.branching.show import drawn_family
from replay.branching.what_if import Replacement, parse_replacement, what_if
from tests.replay.history.boxes import A, B, C, begin, branched, call, created, cut, put, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOX = f"sandbox-{A}"
OTHER = {"command": "other"}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db", durability="normal") as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('17={"command": "a=b"}', Replacement(17, {"command": "a=b"})),
        (' 17 = bash {"restart": true}', Replacement(17, {"restart": True}, "bash")),
        ("1={}", Replacement(1, {})),
    ],
)
def test_a_replacement_is_read(text: str, expected: Replacement) -> None:
    assert parse_replacement(text) == expected


@pytest.mark.parametrize(
    "text", ["", "17", "={}", "x={}", "-1={}", "17=", "17={", "17=[1]", "17=bash", '17="x"', "9" * 30 + "={}"]
)
def test_what_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ReplacementUnreadable) as caught:
        parse_replacement(text)
    assert repr(text) in str(caught.value)
    assert '--replace \'17={"command": "make"}\'' in caught.value.advice


def test_the_replaced_call_and_all_after_it_run_and_those_that_only_look_too(log: SqliteLog) -> None:
    put(log, A, [created(), started(), *call("c1"), *call("c2"), *call("c3", "read", {"file_path": "a"}), *call("c4")])
    for at in (5, 6):
        found = what_if(log, BOX, 10, [Replacement(at, OTHER), Replacement(9, {"file_path": "x"}, "read")])
        assert (str(found.begin), str(found.target), found.left_out, found.gaps) == (f"{BOX}@4", f"{BOX}@10", (), ())
        assert [(one.recorded.call.at.version, one.tool, one.replaced) for one in found.calls] == [
            (5, "bash", True),
            (7, "read", False),
            (9, "read", True),
        ]
        assert found.calls[0].input == OTHER
        assert found.calls[0].recorded.call.input == {"command": "echo c2"}
    # No further than the version that was named; and one that has no end by then.
    assert len(what_if(log, BOX, 6, [Replacement(5, OTHER)]).calls) == 1
    assert what_if(log, BOX, 5, [Replacement(5, OTHER)]).calls[0].recorded.content == []


def test_what_the_replaced_call_led_to_is_gone_with_it_and_what_came_later_is_not(log: SqliteLog) -> None:
    down: list[Any] = [
        SandboxCrashed(reason="out_of_memory"),
        SandboxRecovered(machine_id="hg-2", node="node-a", kept="files", seconds=0.1),
    ]
    put(log, A, [created(), started(), begin("c1"), *down, cut("c1", "out_of_memory"), *call("c2")])
    found = what_if(log, BOX, 8, [Replacement(6, OTHER)])
    assert [one.replaced for one in found.calls] == [True, False]
    found.check()
    put(log, A, [*down, *call("c3"), *call("c4", "keep", {})])
    found = what_if(log, BOX, 14, [Replacement(3, OTHER)])
    assert [one.recorded.call.tool_use_id for one in found.calls] == ["c1", "c2"]
    assert [one.tool_use_id for one in found.left_out] == ["c3", "c4"]
    with pytest.raises(RestNotRepeatable) as caught:
        found.check()
    assert "its machine crashed (out of memory)" in str(caught.value)
    assert f"{BOX}@8 can be." in caught.value.advice


@pytest.mark.parametrize(
    ("replacements", "error", "message"),
    [
        ([Replacement(2, OTHER)], NoCallThere, f"{BOX}@2 is no tool call: it is sandbox.started."),
        ([Replacement(99, OTHER)], NoCallThere, "its versions are 1 to 8"),
        ([Replacement(0, OTHER)], NoCallThere, "its versions are 1 to 8"),
        ([Replacement(7, OTHER)], CallTooLate, f"The call at {BOX}@7 comes after {BOX}@6"),
        ([Replacement(3, OTHER), Replacement(4, OTHER)], ReplacedTwice, f"The bash at {BOX}@3 is replaced twice."),
        ([Replacement(3, {}, "fly")], UnknownTool, f"fly at {BOX}@3 can't be run in a branch."),
        ([Replacement(5, {})], UnknownTool, f"deploy at {BOX}@5 can't be run in a branch."),
    ],
)
def test_what_can_not_be_replaced(
    log: SqliteLog, replacements: list[Replacement], error: type[BranchError], message: str
) -> None:
    put(log, A, [created(), started(), *call("c1"), *call("c2", "deploy", {}), *call("c3")])
    with pytest.raises(error) as caught:
        what_if(log, BOX, 6, replacements)
    assert message in str(caught.value)
    assert caught.value.advice


def test_the_trees_of_a_log_and_of_one_sandbox_or_session(log: SqliteLog) -> None:
    lonely = "sbx-00000000000000dd"
    put(log, A, [created(), started(), *call("c1")])
    put(log, B, [created(A, 2)])
    put(log, C, [branched(B, 1, "turn-1").model_copy(update={"session_id": ""}), started(), *call("c1")])
    put(log, lonely, [branched("sbx-gone[red]", 7, "turn-1").model_copy(update={"session_id": ""})])
    found = family(log)
    assert [(one.sandbox_id, one.how, one.depth, one.calls) for one in found] == [
        (A, "created", 0, 1),
        (B, "forked", 1, 0),
        (C, "branched", 2, 1),
        (lonely, "branched", 0, 0),
    ]
    assert [one.sandbox_id for one in family(log, f"sandbox-{C}")] == [A, B, C]
    assert [one.sandbox_id for one in family(log, f"sandbox-{lonely}")] == [lonely]
    assert [one.sandbox_id for one in family(log, f"session-{found[0].session_id}")] == [A, B, C]
    screen = console()
    with screen.capture() as said:
        screen.print(drawn_family(found, C))
    lines = said.get().splitlines()
    assert lines[0].startswith(f"{A}@4 running, 1 call, session ")
    assert lines[1] == f"└── {B}@1 created, forked from version 2, 0 calls"
    assert lines[2] == f"    └── {C}@4 running, branched from version 1, 1 call"
    assert lines[3] == f"{lonely}@1 created, branched from sbx-gone[red] version 7, 0 calls"
