"""The envelope: what the log knows of an event, whatever happened.

The envelope is a slotted frozen dataclass, not a pydantic model: validating it as well halves the reading speed, and
every field of it was written by the log itself.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from events.types import EventData

# Fixed for ever: a repeated command must mint the ids it minted the first time.
_COMMAND_NAMESPACE = uuid.UUID("6f1d6f0c-5d3e-5c0b-9a50-2f1f4a3f9a11")


def event_id_for(command_id: str, ordinal: int) -> uuid.UUID:
    """The id of a command's `ordinal`-th event (from 0): the same for every repeat of that command."""
    return uuid.uuid5(_COMMAND_NAMESPACE, f"{command_id}/{ordinal}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event before the log has it: what happened, and what led to it."""

    data: EventData
    event_id: uuid.UUID
    correlation_id: str = ""
    """The session that this belongs to, or "" where there is none."""
    causation_id: str = ""
    """The event or tool use that led to this one."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Node, host, code version, trace id. Never a credential."""


def new_events(
    command_id: str,
    data: Sequence[EventData],
    *,
    correlation_id: str = "",
    causation_id: str = "",
    metadata: Mapping[str, str] | None = None,
) -> list[NewEvent]:
    """Wrap what a command decided, each event with the id that a repeat of `command_id` would give it."""
    return [
        NewEvent(
            data=one,
            event_id=event_id_for(command_id, ordinal),
            correlation_id=correlation_id,
            causation_id=causation_id,
            metadata=metadata or {},
        )
        for ordinal, one in enumerate(data)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event in the log."""

    position: int
    """Order of the whole log, from 1, never reused; holes are legal."""
    stream: str
    """`session-<id>` or `sandbox-<id>`."""
    version: int
    """Number in its stream: 1, 2, 3 … without holes."""
    event_id: uuid.UUID
    type: str
    schema_version: int
    """The version the row was written in; `data` is always of the newest."""
    recorded_at_us: int
    """Microseconds since the epoch, UTC, by the writer's clock. Never used for order."""
    correlation_id: str
    causation_id: str
    epoch: int
    """Incarnation of the writing actor."""
    data: EventData
    metadata: Mapping[str, str]
    hash: bytes
    """SHA-256 over the previous row's hash and this row (32 bytes)."""

    @property
    def recorded_at(self) -> datetime:
        """When the writer recorded it, in UTC."""
        return datetime.fromtimestamp(self.recorded_at_us / 1_000_000, UTC)
