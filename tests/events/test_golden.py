"""Histories as files: what an older Hourglass wrote must be read as it was meant, and what can't be must be refused.

A file's first line says what it is and what comes of it; each other line is one event, as it is stored. Add files, but
never change one: it stands for a log that somebody has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from pydantic import ValidationError

from events import sandbox_state, session_state
from events.codec import CODEC, UPCASTERS, Codec
from events.envelope import new_events
from events.errors import EventTooNew, IllegalTransition, UnknownEventType
from events.life import Life
from events.payload import Payload
from events.sandbox import SandboxState
from events.session import SessionState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.payload import JsonObject
    from events.sqlite_log import SqliteLog
    from events.types import EventData

FILES = sorted((Path(__file__).parent / "golden").glob("*.jsonl"))
GOOD = [path for path in FILES if not path.name.startswith("bad_")]
BAD = [path for path in FILES if path.name.startswith("bad_")]


class IdledAnew(Payload):
    """A `session.idled` that was renamed twice."""

    schema_version: ClassVar[int] = 3

    type: Literal["session.idled"] = "session.idled"
    stop_reason: str


def _to_2(raw: JsonObject) -> JsonObject:
    return {"type": raw["type"], "why": raw["reason"]}


def _to_3(raw: JsonObject) -> JsonObject:
    return {"type": raw["type"], "stop_reason": raw["why"]}


CODECS = {
    "": CODEC,
    "renamed": Codec(
        [*CODEC.models.values(), IdledAnew],
        {**UPCASTERS, ("session.idled", 1): _to_2, ("session.idled", 2): _to_3},
    ),
}
ERRORS = {one.__name__: one for one in (IllegalTransition, UnknownEventType, EventTooNew, ValidationError)}


def parts(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    head, *lines = map(json.loads, path.read_text().splitlines())
    return head, lines


def decoded(head: dict[str, Any], lines: list[dict[str, Any]]) -> Iterator[EventData]:
    codec = CODECS[head.get("codec", "")]
    for position, line in enumerate(lines, start=1):
        yield codec.decode(line["data"]["type"], line["schema_version"], json.dumps(line["data"]), position)


def life_of(head: dict[str, Any]) -> tuple[Life[Any, Any], Any]:
    if head["entity"] == "session":
        return session_state.LIFE, SessionState(head["id"])
    return sandbox_state.LIFE, SandboxState(head["id"])


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def seen(state: Any, names: list[str]) -> dict[str, Any]:
    return {
        name: {key: call.status.value for key, call in state.calls.items()}
        if name == "calls"
        else plain(getattr(state, name))
        for name in names
    }


@pytest.mark.parametrize("path", GOOD, ids=[path.stem for path in GOOD])
def test_a_history_leads_to_its_state(path: Path, log: SqliteLog) -> None:
    head, lines = parts(path)
    life, state = life_of(head)
    history = list(decoded(head, lines))
    folded = life.fold(state, history)
    assert seen(folded, list(head["state"])) == head["state"]
    if "codec" not in head:
        log.append(state.stream, new_events(path.stem, history), expected=0)
        load = session_state.load if head["entity"] == "session" else sandbox_state.load
        assert load(log, head["id"]) == folded


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_a_history_that_can_not_be_is_refused_where_it_goes_wrong(path: Path) -> None:
    head, lines = parts(path)
    life, state = life_of(head)
    history = decoded(head, lines)
    for _ in range(head["at"] - 1):
        state = life.fold(state, [next(history)])
    with pytest.raises(ERRORS[head["refused"]]) as caught:
        life.fold(state, [next(history)])
    assert head["because"] in str(caught.value)


def test_there_are_histories_of_both_kinds() -> None:
    assert len(GOOD) >= 9
    assert len(BAD) >= 12
