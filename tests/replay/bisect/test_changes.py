"""What a bisect can tell apart: states between changes, and what each change was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from events.types import SandboxFileCopied
from replay.bisect.changes import Point, between, changes, points
from replay.bisect.errors import NothingBetween
from tests.replay.history.boxes import A, begin, call, created, cut, end, put, started, taken

if TYPE_CHECKING:
    from events.sqlite_log import SqliteLog

STREAM = f"sandbox-{A}"


def test_states_begin_where_a_call_ended_and_last_until_the_next_begins(log: SqliteLog) -> None:
    put(log, A, [created(), started(), *call("a"), taken("s", 4), *call("b", "read", {"file_path": "x"})])
    put(log, A, [*call("c"), begin("d"), begin("e"), end("d"), cut("e")])
    last = put(log, A, [SandboxFileCopied(direction="in", path="/workspace/x", bytes=3), taken("t", 14)])
    found = changes(log, STREAM, 2, last)
    assert [(one.begun, one.version, one.call and one.call.tool_use_id) for one in found] == [
        (3, 4, "a"),
        (8, 9, "c"),
        (10, 12, "d"),
        (11, 13, "e"),
        (14, 14, None),
    ]
    assert found[-1].plain()["what"] == "a person copied /workspace/x into it"
    assert points(STREAM, 2, last, found) == [
        Point(2, 2),
        Point(4, 7),
        Point(9, 9),
        Point(12, 12),
        Point(13, 13),
        Point(14, last),
    ]
    assert between(found, 4, 9) == [found[1]]
    # A call that has not ended has no state after it.
    assert points(STREAM, 4, 11, changes(log, STREAM, 4, 11)) == [Point(4, 7), Point(9, 9), Point(11, 11)]
    with pytest.raises(NothingBetween):
        points(STREAM, 4, 7, changes(log, STREAM, 4, 7))


def test_an_edit_tells_what_it_changed(log: SqliteLog) -> None:
    edit = {"file_path": "a.py", "old_string": "a\nb\nc", "new_string": "a\nB\nc"}
    put(log, A, [created(), started(), *call("a", "edit", edit)])
    put(log, A, [*call("b", "write", {"file_path": "x", "content": "new\n"}), *call("c")])
    put(log, A, call("d", "edit", {"file_path": 7, "old_string": ["odd"]}))
    found = changes(log, STREAM, 2, 10)
    assert [one.edited for one in found] == [
        " a\n-b\n+B\n c",
        "+new",
        "",
        "",
    ]
    assert found[0].plain() == {
        "version": 4,
        "begun": 3,
        "tool_use_id": "a",
        "tool": "edit",
        "input": edit,
        "edited": found[0].edited,
        "what": None,
    }
