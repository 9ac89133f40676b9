"""Every error of the log and of the folds over it.

A class's first docstring line is its message, filled from its fields, and `next_step` says what to do about it. The
fields are attributes, and the errors survive pickling, since they cross between Ray's processes.

    HourglassError
    ├── LogError
    │   ├── LogMissing                nothing is there
    │   ├── NotALog                   a file is there, but it is no log
    │   ├── LogTooNew                 written by a newer Hourglass
    │   ├── LogCorrupt                damaged
    │   │   ├── BlobBroken            a blob is missing or damaged
    │   │   └── EventInvalid          a row's data is not what its type promises
    │   ├── LogLocked                 another process writes it
    │   ├── LogBusy                   another program holds SQLite's write lock
    │   ├── LogFull                   no room on disk
    │   ├── LogUnavailable            the disk or the file system failed
    │   ├── LogReadOnly               opened for reading
    │   ├── LogClosed                 closed
    │   ├── WrongExpectedVersion      another writer was faster: the fence
    │   ├── StaleEpoch                an older incarnation writes: the fence
    │   ├── EventIdTaken              an id is in the log with another event
    │   ├── EventNotStorable          data that JSON can't carry there and back
    │   ├── UnknownEventType          a row of a type that this version does not know
    │   ├── EventTooNew               a row of a schema that this version does not know
    │   ├── NothingThere              no such stream or position
    │   └── StreamDiffers             events of another log that do not fit
    ├── FileNotWritten                a command's output file
    └── IllegalTransition             a command or an event that the state does not allow
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    from events.log import Expect


class HourglassError(Exception):
    """Something went wrong in Hourglass."""

    next_step: ClassVar[str] = ""
    """What the user can do; filled from the fields, as the message is."""

    def __str__(self) -> str:
        return inspect.cleandoc(type(self).__doc__ or type(self).__name__).splitlines()[0].format_map(vars(self))

    @property
    def advice(self) -> str:
        """`next_step`, filled from the fields; "" where there is none."""
        return self.next_step.format_map(vars(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), dict(vars(self)))


def _revive(cls: type[HourglassError], fields: dict[str, Any]) -> HourglassError:
    error = cls.__new__(cls)
    vars(error).update(fields)
    return error


class LogError(HourglassError):
    """The log refused or failed."""


@dataclass(eq=False)
class LogMissing(LogError):
    """There is no log at {path}."""

    path: Path
    next_step = "Start `hourglass up`, which makes it, or name another with --home or HOURGLASS_HOME."


@dataclass(eq=False)
class NotALog(LogError):
    """{path} is not a Hourglass log: {reason}."""

    path: Path
    reason: str
    next_step = "Name the right file with --log, or move this one away; nothing in it was changed."


@dataclass(eq=False)
class LogTooNew(LogError):
    """{path} has schema {found}, and this version of Hourglass knows schemas up to {supported}."""

    path: Path
    found: int
    supported: int
    next_step = "Upgrade: pip install --upgrade hourglass-agents. Nothing in the log was changed."


@dataclass(eq=False)
class LogCorrupt(LogError):
    """{path} is damaged: {detail}."""

    path: Path
    detail: str
    next_step = (
        "Stop writing to it, copy the whole directory, and run `hourglass log verify` to see the first broken place; "
        "then go back to a backup, or save what is readable with `sqlite3 {path} .recover`."
    )


@dataclass(eq=False)
class BlobBroken(LogCorrupt):
    """{path} is damaged: blob {digest}: {detail}."""

    digest: str


@dataclass(eq=False)
class EventInvalid(LogCorrupt):
    """{path} is damaged: the {type} at position {position}: {detail}."""

    type: str
    position: int


@dataclass(eq=False)
class LogLocked(LogError):
    """{path} is being written by another process ({holder})."""

    path: Path
    holder: str
    """What the holder wrote into the lock file, for example "pid 4711"; "unknown" where it wrote nothing yet."""
    next_step = "One writer for a log: stop that process, or use another home (--home or HOURGLASS_HOME)."


@dataclass(eq=False)
class LogBusy(LogError):
    """Another program has held the write lock of {path} for {seconds} seconds."""

    path: Path
    seconds: float
    next_step = "Close the program that has the file open for writing (sqlite3, sqlite-utils, Datasette)."


@dataclass(eq=False)
class LogFull(LogError):
    """No room left for {path}; nothing of this append was written, and nothing before it was lost."""

    path: Path
    next_step = "Make room on that disk and repeat: the log goes on as soon as there is some."


@dataclass(eq=False)
class LogUnavailable(LogError):
    """{path} can't be used: {detail}."""

    path: Path
    detail: str
    next_step = "See to the disk and the rights of the file, then start again: starting is recovering."


@dataclass(eq=False)
class LogReadOnly(LogError):
    """{path} was opened for reading, and something was to be written."""

    path: Path
    next_step = "Open it without read_only, in the one process that writes it."


@dataclass(eq=False)
class LogClosed(LogError):
    """{path} was closed."""

    path: Path
    next_step = "Open it again."


@dataclass(eq=False)
class WrongExpectedVersion(LogError):
    """{stream} is at version {actual}, and the writer expected {expected}."""

    stream: str
    expected: int | Expect
    actual: int
    """0 where the stream does not exist."""
    next_step = "Read the stream again and decide again; if this writer was replaced, stop it."


@dataclass(eq=False)
class StaleEpoch(LogError):
    """{stream} was written in epoch {last}, and this writer is of epoch {epoch}: it was replaced."""

    stream: str
    epoch: int
    last: int
    next_step = "Stop this writer."


@dataclass(eq=False)
class EventIdTaken(LogError):
    """Event ids of this append to {stream} are in the log with other events: {taken}."""

    stream: str
    taken: str
    next_step = (
        "An event's id is uuid5 of its command's id and its ordinal: repeat a command whole, or give it a new id."
    )


@dataclass(eq=False)
class EventNotStorable(LogError):
    """A {type} can't be stored: {detail}."""

    type: str
    detail: str
    next_step = "Bound and clean what comes from outside before it becomes an event."


@dataclass(eq=False)
class UnknownEventType(LogError):
    """Position {position} has an event of type {type}, which this version of Hourglass does not know."""

    type: str
    position: int
    next_step = "Upgrade: pip install --upgrade hourglass-agents. `hourglass log show {position}` shows it as it is."


@dataclass(eq=False)
class EventTooNew(LogError):
    """Position {position} has a {type} of schema {found}, and this version of Hourglass knows up to {supported}."""

    type: str
    position: int
    found: int
    supported: int
    next_step = "Upgrade: pip install --upgrade hourglass-agents. `hourglass log show {position}` shows it as it is."


@dataclass(eq=False)
class NothingThere(LogError):
    """There is no {what} in {path}."""

    path: Path
    what: str
    next_step = "`hourglass log tail`, `hourglass sessions` and `hourglass sandboxes` show what there is."


@dataclass(eq=False)
class StreamDiffers(LogError):
    """{path} has another history of {stream}: they differ at version {version}{detail}."""

    path: Path
    stream: str
    version: int
    detail: str = ""
    """What else stands against it, with a leading ", ", or ""."""
    next_step = "Take it into a log of its own: --home DIR. Nothing in this one was changed."


@dataclass(eq=False)
class FileNotWritten(HourglassError):
    """{path} can't be written: {detail}."""

    path: Path
    detail: str
    next_step = "Name another file, or see to the folder's rights and its room; what was there before is untouched."


@dataclass(eq=False)
class IllegalTransition(HourglassError):
    """{stream} is {phase}: {what} is not possible{because}."""

    stream: str
    phase: str
    what: str
    """The command or the event."""
    because: str = ""
    """What else stands against it, with a leading ": ", or ""."""
    next_step = "`hourglass log show {stream}` shows how it came to be {phase}."
