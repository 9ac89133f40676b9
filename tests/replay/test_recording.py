from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replay.library import SHIPPED, Library
from replay.recording import (
    Header,
    RecordingError,
    RecordingHeaderInvalid,
    RecordingLineInvalid,
    RecordingMissing,
    RecordingNameTaken,
    RecordingTooNew,
    RecordingTruncated,
    RecordingUnreadable,
    dump,
    load,
    parse,
    write,
)

HEADER: dict[str, Any] = {"recording": 1, "name": "small", "agent": {"name": "A"}}
CALL: dict[str, Any] = {"id": "c1", "type": "agent.tool_use", "name": "bash", "input": {"command": "true"}}
NO_INPUT: dict[str, Any] = {"id": "c", "type": "agent.tool_use", "name": "bash"}
RESULT: dict[str, Any] = {"id": "r1", "type": "user.tool_result", "tool_use_id": "c1"}


def lines(*objects: Any) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in objects)


def test_a_recording_is_read_whole() -> None:
    recording = parse(lines(HEADER, CALL, RESULT), "x")
    assert recording.name == "small"
    assert recording.events == (CALL, RESULT)
    assert recording.calls == {"c1": CALL}
    assert recording.answers == {"c1": RESULT}


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", RecordingHeaderInvalid, "x, line 1: not a recording's header: the file is empty"),
        (b"nonsense\n", RecordingHeaderInvalid, "x, line 1: not a recording's header: not JSON"),
        (lines(CALL), RecordingHeaderInvalid, 'no "recording": 1 in it'),
        (lines({"recording": 1, "agent": {}}), RecordingHeaderInvalid, "name: Field required"),
        (lines(HEADER | {"recording": 2}), RecordingTooNew, "x: recording format 2, this Hourglass reads up to 1"),
        (lines(HEADER, b"[]"), RecordingLineInvalid, "x, line 2: not a JSON object"),
        (lines(HEADER, {"type": "agent.message"}), RecordingLineInvalid, 'x, line 2: the event has no "id"'),
        (lines(HEADER, {"id": "a"}), RecordingLineInvalid, 'x, line 2: the event has no "type"'),
        (lines(HEADER, b"{broken", CALL), RecordingLineInvalid, "x, line 2: not JSON"),
        (lines(HEADER, CALL, CALL), RecordingLineInvalid, "x, line 3: the id c1 comes twice"),
        (lines(HEADER, NO_INPUT), RecordingLineInvalid, 'needs a "name" and an object "input"'),
        (lines(HEADER, RESULT), RecordingLineInvalid, "x, line 2: user.tool_result names the call 'c1'"),
        (lines(HEADER, CALL, RESULT, RESULT | {"id": "r2"}), RecordingLineInvalid, "x, line 4: the call c1 is"),
        (lines(HEADER, CALL)[:-20], RecordingTruncated, "x, line 2: the recording is half-written: its last line"),
        (lines(HEADER | {"events": 2}, CALL), RecordingTruncated, "the header promises 2 events, the file holds 1"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused_with_its_line(data: bytes, error: type[RecordingError], message: str) -> None:
    with pytest.raises(error) as raised:
        parse(data, "x")
    assert message in str(raised.value)
    assert raised.value.advice


def test_a_recording_cut_anywhere_is_refused() -> None:
    whole = dump(Header(recording=1, name="small", agent={}, events=2), [CALL, RESULT])
    parse(whole, "x")
    for end in range(len(whole) - 1):
        with pytest.raises(RecordingError):
            parse(whole[:end], "x")


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    header = Header(recording=1, name="small", agent={})
    write(path, header, [CALL, RESULT])
    assert load(path).header.events == 2
    with pytest.raises(RecordingLineInvalid):
        write(path, header, [RESULT])
    assert load(path).events == (CALL, RESULT)
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cant_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingUnreadable, match="can't be written: No such file") as raised:
        write(tmp_path / "nowhere" / "x.jsonl", Header(recording=1, name="x", agent={}), [])
    assert "permissions" in raised.value.advice


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingMissing, match="There is no recording at"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(RecordingUnreadable, match="Is a directory"):
        load(tmp_path)
    with pytest.raises(RecordingMissing, match="folder"):
        Library([tmp_path / "none"])


def test_what_ships_is_sound_and_named_by_its_file() -> None:
    library = Library()
    assert {"fix-the-bug", "tidy-the-logs", "bash-true"} <= set(library.names)
    for path in SHIPPED.glob("*.jsonl"):
        recording = load(path)
        assert recording.name == path.stem
        assert recording.header.description
        assert set(recording.answers) == set(recording.calls)


def test_the_demos_recordings_use_every_tool() -> None:
    for name in ("fix-the-bug", "tidy-the-logs"):
        calls = Library().get(name).calls.values()
        assert {call["name"] for call in calls} == {"bash", "read", "write", "edit", "glob", "grep"}


def test_a_folders_recording_wins_over_a_shipped_one(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", Header(recording=1, name="bash-true", agent={}), [])
    assert Library([tmp_path]).get("bash-true").events == ()
    (tmp_path / "twice.jsonl").write_bytes((tmp_path / "mine.jsonl").read_bytes())
    with pytest.raises(RecordingNameTaken, match="'bash-true'") as raised:
        Library([tmp_path])
    assert "twice.jsonl" in raised.value.advice


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(RecordingMissing) as raised:
        Library().get("none")
    assert "bash-true" in raised.value.advice
