"""A recording: one session's events as JSON Lines, and the strict reader of that format.

Line 1 is the header, each later line one session event as the API shapes it (contract §6), in order, with the ids it
had then. What came in (`user.*`) stands among them: messages mark the turns, results are what the past answered.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMAT = 1
SUFFIX = ".jsonl"

SANDBOX_TOOLS = frozenset({"bash", "read", "write", "edit", "glob", "grep"})
"""The tools of `agent_toolset_20260401` that run in the sandbox; the others run at Anthropic (contract §8.1)."""

WORKERS_TOOLS = frozenset({"try_in_parallel", "keep"})
"""The custom tools that Hourglass answers: of these the app plays no part."""

CALLS = frozenset({"agent.tool_use", "agent.custom_tool_use", "agent.mcp_tool_use"})
MESSAGES = frozenset({"user.message", "user.define_outcome"})
"""What starts a turn."""

ANSWERS = {
    "user.tool_result": "tool_use_id",
    "user.custom_tool_result": "custom_tool_use_id",
    "agent.tool_result": "tool_use_id",
    "agent.mcp_tool_result": "mcp_tool_use_id",
}
"""The events that answer a call, and the key that names the call."""

JsonObject = dict[str, Any]


class RecordingError(HourglassError):
    """A recording can't be used.

    RecordingError
     ├── RecordingMissing          nothing of that path or name
     ├── RecordingUnreadable       the system does not let it be read or written
     ├── RecordingHeaderInvalid    line 1 is no header
     ├── RecordingTooNew           written by a newer Hourglass
     ├── RecordingLineInvalid      a line is no event, or does not fit those before it
     ├── RecordingTruncated        half-written
     └── RecordingNameTaken        two of one name
    """


@dataclass(eq=False)
class RecordingMissing(RecordingError):
    """There is no recording {what}."""

    what: str
    remedy: str = "See `hourglass replay recordings` for those there are."
    next_step = "{remedy}"


@dataclass(eq=False)
class RecordingUnreadable(RecordingError):
    """{path}: {reason}."""

    path: str
    reason: str
    next_step = "Check the path, its permissions and the room on disk."


@dataclass(eq=False)
class RecordingHeaderInvalid(RecordingError):
    """{source}, line 1: not a recording's header: {reason}."""

    source: str
    reason: str
    next_step = "Record the session again with `hourglass record SESSION -o FILE`, which writes the header."


@dataclass(eq=False)
class RecordingTooNew(RecordingError):
    """{source}: recording format {found}, this Hourglass reads up to {supported}."""

    source: str
    found: int
    supported: int
    next_step = "Update Hourglass: `pip install -U hourglass-agents`."


@dataclass(eq=False)
class RecordingLineInvalid(RecordingError):
    """{source}, line {line}: {reason}."""

    source: str
    line: int
    reason: str
    next_step = "Mend line {line}, or record the session again with `hourglass record SESSION -o FILE`."


@dataclass(eq=False)
class RecordingTruncated(RecordingError):
    """{source}, line {line}: the recording is half-written: {reason}."""

    source: str
    line: int
    reason: str
    next_step = "Record the session again with `hourglass record SESSION -o FILE`, or copy the file again."


@dataclass(eq=False)
class RecordingNameTaken(RecordingError):
    """Two recordings are named {name!r}: {first} and {second}."""

    name: str
    first: str
    second: str
    next_step = 'Change "name" in line 1 of {second}, or take that file away.'


class Header(BaseModel):
    """Line 1 of a recording."""

    model_config = ConfigDict(strict=True, extra="allow")

    recording: int
    """The format's version."""
    name: str
    agent: JsonObject
    """The session's resolved agent (contract §5)."""
    description: str = ""
    session_id: str = ""
    """The recorded session; "" where the recording was written by hand."""
    recorded_at: str = ""
    events: int | None = None
    """How many lines follow, so that a file cut between two lines is found out; None where nobody counted."""


@dataclass(frozen=True)
class Recording:
    """A recording that was read whole and found consistent."""

    header: Header
    events: tuple[JsonObject, ...]
    calls: dict[str, JsonObject] = field(default_factory=dict)
    """Call events by id: `agent.tool_use`, `agent.custom_tool_use`, `agent.mcp_tool_use`."""
    answers: dict[str, JsonObject] = field(default_factory=dict)
    """What answered each call, by the call's id."""

    @property
    def name(self) -> str:
        """What sessions call it by."""
        return self.header.name

    def is_clients(self, call: JsonObject) -> bool:
        """Whether a client (the sandbox's worker, or the app) has to answer this call (contract §8.1)."""
        if call.get("evaluated_permission") == "deny" or call["type"] == "agent.mcp_tool_use":
            return False
        if call["type"] == "agent.custom_tool_use":
            return True
        answer = self.answers.get(call["id"])
        return call.get("name") in SANDBOX_TOOLS or (answer is not None and answer["type"].startswith("user."))


def parse(data: bytes, source: str) -> Recording:
    """Read a recording.

    Args:
        data: The file's bytes.
        source: What to call the file in errors.

    Raises:
        RecordingError: The first thing found wrong, with its line.
    """
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise RecordingHeaderInvalid(source, "the file is empty")
    header = _header(lines[0], source)
    recording = Recording(header, events := tuple(_events(lines, source)))
    if header.events is not None and header.events != len(events):
        reason = f"the header promises {header.events} events, the file holds {len(events)}"
        raise RecordingTruncated(source, len(lines) + 1, reason)
    for number, event in enumerate(events, start=2):
        _link(recording, event, source, number)
    return recording


def load(path: Path) -> Recording:
    """Read the recording at `path`. Raises RecordingError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RecordingMissing(f"at {path}") from None
    except OSError as error:
        raise RecordingUnreadable(str(path), f"can't be read: {error.strerror}") from error
    return parse(data, str(path))


def dump(recording: Header, events: Iterable[JsonObject]) -> bytes:
    """The bytes of a recording: header first, one event a line."""
    head = recording.model_dump(exclude_none=True)
    return b"".join(orjson.dumps(line) + b"\n" for line in (head, *events))


def write(path: Path, header: Header, events: list[JsonObject]) -> None:
    """Write a recording whole or not at all. Raises RecordingError where what was written would not be read back."""
    data = dump(header.model_copy(update={"events": len(events)}), events)
    parse(data, str(path))
    try:
        _replace(path, data)
    except OSError as error:
        raise RecordingUnreadable(str(path), f"can't be written: {error.strerror}") from error


def _replace(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _header(line: bytes, source: str) -> Header:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RecordingHeaderInvalid(source, f"not JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("recording"), int):
        raise RecordingHeaderInvalid(source, 'no "recording": 1 in it')
    if found["recording"] > FORMAT:
        raise RecordingTooNew(source, found["recording"], FORMAT)
    try:
        return Header.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordingHeaderInvalid(source, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _events(lines: list[bytes], source: str) -> Iterator[JsonObject]:
    for number, line in enumerate(lines[1:], start=2):
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if number == len(lines):
                raise RecordingTruncated(source, number, "its last line breaks off") from None
            raise RecordingLineInvalid(source, number, f"not JSON: {error}") from None
        if not isinstance(event, dict):
            raise RecordingLineInvalid(source, number, "not a JSON object")
        for key in ("type", "id"):
            if not isinstance(event.get(key), str) or not event[key]:
                raise RecordingLineInvalid(source, number, f'the event has no "{key}"')
        yield event


def _link(recording: Recording, event: JsonObject, source: str, number: int) -> None:
    """Check one event against those before it, and note it where it is a call or an answer."""
    kind = event["type"]
    if kind in CALLS:
        if event["id"] in recording.calls:
            raise RecordingLineInvalid(source, number, f"the id {event['id']} comes twice")
        if not isinstance(event.get("name"), str) or not isinstance(event.get("input"), dict):
            raise RecordingLineInvalid(source, number, f'{kind} needs a "name" and an object "input"')
        recording.calls[event["id"]] = event
        return
    key = ANSWERS.get(kind, "tool_use_id" if kind == "user.tool_confirmation" else None)
    if key is None:
        return
    call = event.get(key)
    if call not in recording.calls:
        raise RecordingLineInvalid(source, number, f"{kind} names the call {call!r}, which no line before it made")
    if kind in ANSWERS:
        if call in recording.answers:
            raise RecordingLineInvalid(source, number, f"the call {call} is answered twice")
        recording.answers[str(call)] = event
