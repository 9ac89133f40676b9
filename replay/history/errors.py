"""What looking back refuses, and why; see `events.errors` for how errors are made.

HourglassError
└── HistoryError
    ├── StreamNotThere        no stream of that name
    ├── StreamUnclear         several
    ├── NoMachine             a session's, where a sandbox's is needed
    ├── VersionNotThere       a version that the stream does not have
    ├── NotYet                before the stream's first event
    ├── PositionNotThere      a position that the log does not have
    ├── TimeUnreadable        not a time
    ├── TargetUnreadable      not SANDBOX@VERSION[:PATH]
    ├── LineageBroken         parents that can't be
    ├── NoTree                no file tree at or before the version
    ├── FilesMayDiffer        the nearest file tree is of an earlier version
    ├── NoSuchFile            nothing is there in the tree
    └── FileRefused           it is there, and is not shown
"""

from __future__ import annotations

from dataclasses import dataclass

from events.errors import HourglassError


class HistoryError(HourglassError):
    """Looking back was refused."""


@dataclass(eq=False)
class StreamNotThere(HistoryError):
    """The log has no session or sandbox {stream!r}."""

    stream: str
    next_step = "`hourglass sessions` and `hourglass sandboxes` show what there is."


@dataclass(eq=False)
class StreamUnclear(HistoryError):
    """{name} could be {candidates}."""

    name: str
    candidates: str
    next_step = "Give more of the id, or the stream's whole name."


@dataclass(eq=False)
class NoMachine(HistoryError):
    """{stream} is a session: its versions name no state of a machine."""

    stream: str
    sandbox: str
    """Its sandbox, or a few words for that it has none."""
    next_step = "Name a sandbox instead: {sandbox}."


@dataclass(eq=False)
class VersionNotThere(HistoryError):
    """{stream} has no version {version}: its last one is {last}."""

    stream: str
    version: int
    last: int
    next_step = "`hourglass log show {stream}` shows its versions, from 1 to {last}."


@dataclass(eq=False)
class NotYet(HistoryError):
    """{stream} did not exist at {moment}: its first event is at position {first}, recorded at {began}."""

    stream: str
    moment: str
    """A position or a time, for people."""
    first: int
    began: str
    next_step = "Name a later moment."


@dataclass(eq=False)
class PositionNotThere(HistoryError):
    """The log has no position {position}: its last one is {last}."""

    position: int
    last: int
    next_step = "`hourglass log tail` shows the last positions."


@dataclass(eq=False)
class TimeUnreadable(HistoryError):
    """{text!r} is no time."""

    text: str
    next_step = "Write it as 2026-11-28T09:30:00Z; without a zone, it is UTC."


@dataclass(eq=False)
class TargetUnreadable(HistoryError):
    """{text!r} does not name a version: {detail}."""

    text: str
    detail: str
    next_step = "Write SANDBOX@VERSION, as in sbx-0123@17; `hourglass sandboxes` shows what there is."


@dataclass(eq=False)
class LineageBroken(HistoryError):
    """The line of parents of {stream} can't be: {detail}."""

    stream: str
    detail: str
    next_step = "`hourglass log verify` says whether the log was changed."


@dataclass(eq=False)
class NoTree(HistoryError):
    """The store {store} has no snapshot of {target} or of a version before it."""

    store: str
    target: str
    left: str
    """What there is instead, for people."""
    next_step = "{left}"


@dataclass(eq=False)
class FilesMayDiffer(HistoryError):
    """The nearest snapshot in the store is of {found}, and after it {what} may have changed the files of {target}."""

    found: str
    target: str
    what: str
    next_step = (
        "Name {found}, or take its files as they were then with --nearest; `hourglass plan {target}` shows more."
    )


@dataclass(eq=False)
class NoSuchFile(HistoryError):
    """{path} is not in the files of {target}: {detail}."""

    path: str
    target: str
    detail: str
    next_step = "`hourglass ls {target}` shows what there is."


@dataclass(eq=False)
class FileRefused(HistoryError):
    """{path} of {target} is not shown: {detail}."""

    path: str
    target: str
    detail: str
    remedy: str
    next_step = "{remedy}"
