"""From the log file to the entries of one session: which streams belong to it, and their rows in order.

Rows are read as they are stored and each is decoded by itself, so that one of a newer Hourglass, or a damaged one,
shows as such and hides nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
from pydantic import ValidationError

from events.codec import CODEC
from events.errors import EventInvalid, EventTooNew, HourglassError, LogCorrupt, UnknownEventType
from replay.timeline.build import Builder, Entry, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.rows import Row
    from events.sqlite_log import SqliteLog
    from events.types import EventData
    from replay.timeline.model import Timeline

_SESSION, _SANDBOX = "session-", "sandbox-"
_MOST_NAMED = 5
_OLD_ALIAS, _PREFIX = "session_", "sesn_"
"""The API takes either at the head of a session's id (contract §1)."""

_SANDBOXES_OF = """
SELECT stream FROM events
WHERE stream >= 'sandbox-' AND stream < 'sandbox.' AND version = 1 AND correlation_id = ? AND position > ?
ORDER BY position
"""
_OF = """
SELECT correlation_id FROM events
WHERE stream = ? AND (version = 1 OR type = 'sandbox.adopted') ORDER BY version DESC LIMIT 1
"""
_ATTACHED = "SELECT DISTINCT data ->> '$.sandbox_id' FROM events WHERE stream = ? AND type = 'session.attached'"


@dataclass(eq=False)
class NotInLog(HourglassError):
    """Nothing in {path} is called {name!r}."""

    path: str
    name: str
    next_step = "See `hourglass sessions` and `hourglass sandboxes` for what there is."


@dataclass(eq=False)
class Ambiguous(HourglassError):
    """{name!r} could be {candidates}."""

    name: str
    candidates: str
    next_step = "Give more of the id."


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose timeline it is."""

    session_id: str
    """"" for a sandbox that no session uses."""
    sandbox_id: str = ""
    """Given where one sandbox was asked for: then no other one of the session is shown."""


def find(log: SqliteLog, name: str) -> Subject:
    """The session or sandbox that `name` means: an id, a stream, or the beginning of one that no other has.

    Raises:
        NotInLog: there is none.
        Ambiguous: there are several.
        LogError: the log can't be read.
    """
    if name.startswith(_OLD_ALIAS):
        name = _PREFIX + name.removeprefix(_OLD_ALIAS)
    streams = log.streams()
    for stream in (name, _SESSION + name, _SANDBOX + name):
        if stream in streams:
            return _subject(log, stream)
    found = [one for one in streams if name and (one.startswith(name) or _id(one).startswith(name))]
    if not found:
        raise NotInLog(path=str(log.path), name=name)
    if len(found) > 1:
        more = [f"{len(found) - _MOST_NAMED:,} more"] if len(found) > _MOST_NAMED else []
        raise Ambiguous(name=name, candidates=", ".join([_id(one) for one in found[:_MOST_NAMED]] + more))
    return _subject(log, found[0])


def _id(stream: str) -> str:
    return stream.removeprefix(_SESSION).removeprefix(_SANDBOX)


def _subject(log: SqliteLog, stream: str) -> Subject:
    if stream.startswith(_SESSION):
        return Subject(_id(stream))
    [(session_id,)] = log.query(_OF, (stream,)) or [("",)]
    return Subject(str(session_id), _id(stream))


def sandboxes_of(log: SqliteLog, session_id: str, after: int = 0) -> list[str]:
    """Ids of a session's sandboxes: those made for it after a position, then those that it was attached to."""
    made = [_id(stream) for (stream,) in log.query(_SANDBOXES_OF, (session_id, after))]
    attached = [sandbox for (sandbox,) in log.query(_ATTACHED, (_SESSION + session_id,)) if sandbox]
    return list(dict.fromkeys([*made, *attached]))


def read(log: SqliteLog, subject: Subject) -> Timeline:
    """The whole timeline, as of now. Raises LogError where the log can't be read."""
    source = Source(log, subject)
    source.advance()
    return source.builder.timeline


@dataclass
class Source:
    """Reads one subject's entries, and goes on where it stopped as often as it is asked to."""

    log: SqliteLog
    subject: Subject
    builder: Builder = field(init=False)
    _versions: dict[str, int] = field(default_factory=dict)
    """By stream: how far it was read."""
    _position: int = 0

    def __post_init__(self) -> None:
        self.builder = Builder(self.subject.session_id)

    def advance(self) -> bool:
        """Take in what was appended since the last time; whether there was anything. Raises LogError."""
        # What is committed after this look is left for the next one, so that no stream runs ahead of another.
        bound = self.log.position()
        if bound == self._position:
            return False
        entries = [entry for stream in self._streams() for entry in self._entries(stream, bound)]
        entries.sort(key=lambda entry: entry.position)
        for entry in entries:
            self.builder.add(entry)
        self._position = bound
        return bool(entries)

    def _streams(self) -> list[str]:
        session = f"{_SESSION}{self.subject.session_id}"
        if self.subject.sandbox_id:
            names = [f"{_SANDBOX}{self.subject.sandbox_id}"]
        else:
            names = [_SANDBOX + one for one in sandboxes_of(self.log, self.subject.session_id, self._position)]
        if self.subject.session_id:
            names.insert(0, session)
        return list(dict.fromkeys([*self._versions, *names]))

    def _entries(self, stream: str, bound: int) -> Iterator[Entry]:
        for row in self.log.rows(self._versions.get(stream, 0), stream=stream):
            if row.position > bound:
                return
            self._versions[stream] = row.version
            yield Entry(
                position=row.position,
                stream=row.stream,
                version=row.version,
                at_us=row.recorded_at,
                type=row.type,
                causation_id=row.causation_id,
                data=self._decode(row),
            )
        self._versions.setdefault(stream, 0)

    def _decode(self, row: Row) -> EventData | Unreadable:
        try:
            data = row.data if row.blob is None else orjson.dumps(self.log.json(row))
            return CODEC.decode(row.type, row.schema_version, data or "", row.position)
        except (UnknownEventType, EventTooNew):
            return Unreadable("written by a newer Hourglass")
        except (EventInvalid, ValidationError, ValueError):
            return Unreadable("its data is not what its type promises")
        except LogCorrupt as error:
            return Unreadable(error.detail)
