"""Which trace an event belongs to: one for each claim of a session, its id derived from the claim's.

So nobody has to remember it: whoever reads the log, at any time, arrives at the same id. It is in the metadata of every
event of the session and its sandboxes, from the claim until the next one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from events.envelope import event_id_for
from events.types import SessionClaimed

if TYPE_CHECKING:
    from uuid import UUID

    from actors.journal import Journal
    from events.envelope import Event, NewEvent
    from events.log import Append

TRACE_ID = "trace_id"
"""Its name in an event's metadata; 32 hexadecimal digits, as OpenTelemetry and W3C write it."""
_REMEMBERED = 1024
"""Sessions; what is not remembered is read from the log once more."""


def trace_id_of(claim_id: str) -> str:
    """The trace of a claim."""
    return hashlib.sha256(claim_id.encode()).hexdigest()[:32]


def claim_command(claim_id: str) -> str:
    """The id of the command that records a claim, in its session's stream; it leads to one event."""
    return f"{claim_id}/claim"


def span_id_of(event_id: UUID) -> int:
    """The span that an event opens. Not 0, which would mean none: the version and variant bits of a UUID are in it."""
    return event_id.int >> 64


def root_span_id_of(session_id: str, claim_id: str) -> int:
    """The root span of a claim's trace: known to whoever knows the claim, before and after it is in the log."""
    return span_id_of(event_id_for(f"session-{session_id}/{claim_command(claim_id)}", 0))


class TracedJournal:
    """A `Journal` that writes the trace into the metadata of what is appended."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._traces: OrderedDict[str, str] = OrderedDict()
        """By session id, the last used at the end; "" where the log has no claim of it."""

    async def append(self, *writes: Append) -> list[list[Event]]:
        """See `Journal`."""
        traced = [replace(write, events=[await self._traced(one) for one in write.events]) for write in writes]
        appended = await self._journal.append(*traced)
        for write in writes:
            for one in write.events:
                if isinstance(one.data, SessionClaimed):
                    self._remember(one.correlation_id, trace_id_of(one.data.claim_id))
        return appended

    async def read(self, stream: str, after_version: int = 0) -> list[Event]:
        """See `Journal`."""
        return await self._journal.read(stream, after_version)

    async def _traced(self, event: NewEvent) -> NewEvent:
        if isinstance(event.data, SessionClaimed):
            trace_id = trace_id_of(event.data.claim_id)
        else:
            trace_id = await self._trace_of(event.correlation_id)
        return replace(event, metadata={**event.metadata, TRACE_ID: trace_id}) if trace_id else event

    async def _trace_of(self, session_id: str) -> str:
        if not session_id:
            return ""
        if session_id not in self._traces:
            claims = [
                one.data.claim_id
                for one in await self._journal.read(f"session-{session_id}")
                if isinstance(one.data, SessionClaimed)
            ]
            if session_id not in self._traces:  # a claim may have come while it was read
                self._remember(session_id, trace_id_of(claims[-1]) if claims else "")
        self._traces.move_to_end(session_id)
        return self._traces[session_id]

    def _remember(self, session_id: str, trace_id: str) -> None:
        self._traces[session_id] = trace_id
        self._traces.move_to_end(session_id)
        while len(self._traces) > _REMEMBERED:
            self._traces.popitem(last=False)
