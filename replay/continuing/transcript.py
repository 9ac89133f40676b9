"""A transcript: all that led to a version of a sandbox, over its parents, as the log has it and the API can tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from events.errors import HourglassError
from replay.continuing.logged import Call, Note, parts_of
from replay.continuing.spoken import Entry, Said, joined
from replay.history.lineage import line_to

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from events.log import EventLog
    from events.payload import JsonObject

    Read = Callable[[str], Sequence[JsonObject]]
    """A session's events, as the API lists them. Raises `HourglassError` where they can't be had."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """What happened while one session used the sandbox, or none."""

    session_id: str
    sandbox_id: str
    entries: tuple[Entry, ...]
    silent: str
    """Why what was said is missing; "" where it is here."""
    later: int
    """Events of the conversation that came after what led to the version, and are left out."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """Of one version."""

    stream: str
    version: int
    chapters: tuple[Chapter, ...]

    @property
    def session_id(self) -> str:
        """The last session that used what led here; "" where none did."""
        return next((one.session_id for one in reversed(self.chapters) if one.session_id), "")

    def plain(self) -> dict[str, Any]:
        """As JSON has it: every entry with its `kind`, contents as they were."""
        return {
            "stream": self.stream,
            "version": self.version,
            "chapters": [
                {
                    "session_id": one.session_id,
                    "sandbox_id": one.sandbox_id,
                    "conversation_missing": one.silent or None,
                    "later_events": one.later,
                    "entries": [{"kind": _KINDS[type(entry)], **asdict(entry)} for entry in one.entries],
                }
                for one in self.chapters
            ],
        }


_KINDS: dict[type[Entry], str] = {Said: "message", Call: "call", Note: "note"}


def transcript(log: EventLog, stream: str, version: int, read: Read, *, whole: bool = False) -> Transcript:
    """All that led to a version that exists.

    Args:
        whole: what was said in the last session after its last call belongs to it, too.

    Raises:
        LineageBroken: a sandbox that is its own ancestor, or too many of them.
        LogError: as `EventLog.read`.
    """
    parts = parts_of(log, line_to(log, stream, version))
    chapters = []
    for number, part in enumerate(parts):
        entries: list[Entry] = list(part.steps)
        silent, later = "", 0
        if part.session_id:
            try:
                events = read(part.session_id)
            except HourglassError as error:
                silent = str(error)
            else:
                last = number == len(parts) - 1
                entries, later = joined(part, events, whole=whole and last, first=number == 0)
        chapters.append(Chapter(part.session_id, part.sandbox_id, tuple(entries), silent, later))
    return Transcript(stream, version, tuple(chapters))
