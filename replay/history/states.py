"""The state of a session or a sandbox at any moment of its stream: the fold alone, with no machine, on any log."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rpds import HashTrieMap, HashTrieSet

from events.errors import EventTooNew, LogCorrupt, UnknownEventType
from events.sandbox_state import LIFE as SANDBOX
from events.sandbox_state import SandboxState
from events.session_state import LIFE as SESSION
from events.session_state import SessionState
from replay.history.errors import NotYet, PositionNotThere, StreamNotThere, TimeUnreadable, VersionNotThere

if TYPE_CHECKING:
    from collections.abc import Iterable

    from events.log import EventLog
    from events.types import EventData

State = SandboxState | SessionState

_SESSION, _SANDBOX = "session-", "sandbox-"


def state_at(
    log: EventLog,
    stream: str,
    *,
    version: int | None = None,
    position: int | None = None,
    time: datetime | None = None,
) -> State:
    """What a session or a sandbox was at a moment: at the end of its stream where none is given.

    Args:
        stream: `session-<id>` or `sandbox-<id>`.
        version: of the stream: the state after this event.
        position: of the log: the state after the stream's last event up to there.
        time: the state after the last event that was recorded by then; without a zone, it is UTC. The times are those
            of the writers' clocks.

    Raises:
        StreamNotThere, VersionNotThere, PositionNotThere: the log has none such.
        NotYet: the moment is before the stream's first event.
        IllegalTransition: no entity can have this history.
        LogError: as `EventLog.read`.
        ValueError: more than one moment.
    """
    if sum(one is not None for one in (version, position, time)) > 1:
        msg = "a version, a position or a time: one of them"
        raise ValueError(msg)
    wanted = version_of(log, stream, version=version, position=position, time=time)
    try:
        return _fold(stream, islice(log.read_data(stream), wanted))
    except (UnknownEventType, EventTooNew, LogCorrupt):
        # It may stand after the version that is wanted: whole pages are read ahead, and single events are not.
        return _fold(stream, (event.data for event in log.read(stream, limit=wanted)))


def version_of(
    log: EventLog,
    stream: str,
    *,
    version: int | None = None,
    position: int | None = None,
    time: datetime | None = None,
) -> int:
    """The version that a moment means; arguments and errors as `state_at`."""
    last = log.version(stream)
    if not last or not stream.startswith((_SESSION, _SANDBOX)):
        raise StreamNotThere(stream=stream)
    if version is not None:
        if not 1 <= version <= last:
            raise VersionNotThere(stream=stream, version=version, last=last)
        return version
    if position is not None:
        return _at_position(log, stream, position)
    if time is not None:
        moment = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        found = log.version_at(stream, time_us=round(moment.timestamp() * 1_000_000))
        return found or _not_yet(log, stream, moment.astimezone(UTC).isoformat())
    return last


def _at_position(log: EventLog, stream: str, position: int) -> int:
    last = log.position()
    if not 1 <= position <= last:
        raise PositionNotThere(position=position, last=last)
    return log.version_at(stream, position=position) or _not_yet(log, stream, f"position {position}")


def _not_yet(log: EventLog, stream: str, moment: str) -> int:
    [first] = log.read(stream, limit=1)
    raise NotYet(stream=stream, moment=moment, first=first.position, began=first.recorded_at.isoformat())


def parse_time(text: str) -> datetime:
    """A moment in ISO 8601. Raises `TimeUnreadable`."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise TimeUnreadable(text=text) from None


def _fold(stream: str, history: Iterable[EventData]) -> State:
    if stream.startswith(_SESSION):
        return SESSION.fold(SessionState(stream.removeprefix(_SESSION)), history)
    return SANDBOX.fold(SandboxState(stream.removeprefix(_SANDBOX)), history)


def plain(state: State) -> dict[str, Any]:
    """A state as JSON has it: `{"stream", "version", "phase", …}`, every field of it; calls as they are in the log."""
    return {"stream": state.stream} | {one.name: _plain(getattr(state, one.name)) for one in fields(state)}


def _plain(value: Any) -> Any:
    if isinstance(value, HashTrieMap):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, HashTrieSet):
        return sorted(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(one) for name, one in value._asdict().items()}
    return value
