"""`SANDBOX@VERSION[:PATH]`: how a version of a sandbox is named on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from events.types import SessionAttached, SessionSandboxKept
from replay.history.errors import NoMachine, StreamNotThere, StreamUnclear, TargetUnreadable
from replay.history.states import version_of

if TYPE_CHECKING:
    from events.log import EventLog

_SESSION, _SANDBOX = "session-", "sandbox-"
_MOST_NAMED = 5
_LONGEST_VERSION = 18
"""Digits: SQLite's integers have room for these."""
_TARGET = re.compile(r"(?P<stream>[^@:\s]+)(?:@(?P<version>[^:]*))?(?::(?P<path>.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Target:
    """A version of a stream, and maybe a path in its files."""

    stream: str
    version: int
    path: str = ""

    def __str__(self) -> str:
        return f"{self.stream}@{self.version}"


def parse(log: EventLog, text: str, *, path: bool = False) -> Target:
    """What a target names: a sandbox by its stream, its id or the beginning of it; without a version, its last one.

    Args:
        path: whether a `:PATH` may follow.

    Raises:
        TargetUnreadable: it is none.
        StreamNotThere, StreamUnclear, VersionNotThere: it names nothing, or several.
        NoMachine: it names a session.
    """
    found = _TARGET.fullmatch(text)
    if found is None:
        raise TargetUnreadable(text=text, detail="a stream comes first")
    if found["path"] is not None and not path:
        raise TargetUnreadable(text=text, detail="no path belongs here")
    stream = find_stream(log, found["stream"])
    if stream.startswith(_SESSION):
        raise NoMachine(stream=stream, sandbox=_sandboxes(log, stream))
    version = None
    if found["version"] is not None:
        if not re.fullmatch(rf"[0-9]{{1,{_LONGEST_VERSION}}}", found["version"]):
            raise TargetUnreadable(text=text, detail=f"{found['version']!r} is no version")
        version = int(found["version"])
    return Target(stream, version_of(log, stream, version=version), found["path"] or "")


def find_stream(log: EventLog, name: str) -> str:
    """The stream that has this name or id, or alone begins with it. Raises `StreamNotThere`, `StreamUnclear`."""
    streams = [one for one in log.streams() if one.startswith((_SESSION, _SANDBOX))]
    for stream in (name, _SANDBOX + name, _SESSION + name):
        if stream in streams:
            return stream
    found = [one for one in streams if name and (one.startswith(name) or _id(one).startswith(name))]
    if not found:
        raise StreamNotThere(stream=name)
    if len(found) > 1:
        more = [f"{len(found) - _MOST_NAMED:,} more"] if len(found) > _MOST_NAMED else []
        raise StreamUnclear(name=name, candidates=", ".join([*found[:_MOST_NAMED], *more]))
    return found[0]


def _id(stream: str) -> str:
    return stream.removeprefix(_SESSION).removeprefix(_SANDBOX)


def _sandboxes(log: EventLog, stream: str) -> str:
    used = dict.fromkeys(
        data.sandbox_id for data in log.read_data(stream) if isinstance(data, SessionAttached | SessionSandboxKept)
    )
    return ", ".join(used) or "it has none yet"
