"""Connections on the way to a version: which may have stood when a snapshot was taken, and which no event tells apart.

The first connection to a place is told before its first byte; others within seconds of it only when they end, by
`egress.closed`, which may come a little later still. So where the log leaves it open whether the network was used,
it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from replay.history.lineage import Place

if TYPE_CHECKING:
    from events.envelope import Event
    from events.types import EgressClosed, EgressConnected

_US = 1_000_000
_NOTICED_US = 250_000
"""How long after a connection's end the host may have noticed it."""

_Key = tuple[str, int]


@dataclass(slots=True)
class _Told:
    """What is known of the connections to one place."""

    at: Place
    """Of the last event of it."""
    event: Event
    """The last that told of a connection."""
    standing: int = 0
    """Connections that were told, and whose end was not."""


@dataclass
class Connections:
    """Takes what a walk comes by, in order."""

    start: Place
    """Up to here, all is in the snapshot."""
    _told: dict[_Key, _Told] = field(default_factory=dict)
    _at_start: dict[_Key, _Told] = field(default_factory=dict)
    """Those that stood when the snapshot was taken, as far as is known."""
    _start_us: int = 0
    """When the last event before the snapshot was recorded."""

    def passed(self, at: Place, event: Event) -> None:
        """Every event, before anything else is said of it."""
        if at <= self.start:
            self._start_us = event.recorded_at_us

    def connected(self, at: Place, event: Event, data: EgressConnected) -> None:
        """A connection was told."""
        before = self._told.get((data.host, data.port))
        standing = before.standing if before is not None and before.at.segment == at.segment else 0
        told = self._told[data.host, data.port] = _Told(at, event, standing + 1)
        if at <= self.start:
            self._at_start[data.host, data.port] = told

    def closed(self, at: Place, data: EgressClosed) -> Place | None:
        """Ends were told. Since when connections may have begun that no event tells; None where there are none.

        After the start alone: what was before is in the snapshot.
        """
        key = (data.host, data.port)
        told = self._told.get(key)
        if told is None or told.at.segment != at.segment:
            return None  # its machine ended before
        more = data.connections - told.standing
        since, told.at, told.standing = told.at, at, max(0, -more)
        if at <= self.start:
            if more >= 0:
                self._at_start.pop(key, None)
            return None
        # Told late, of what had ended before the snapshot was taken.
        if key in self._at_start and more == 0 and self._ended_before(told.event, data):
            del self._at_start[key]
        return since if more > 0 else None

    def cut(self, at: Place, of_start: bool) -> None:
        """All of them ended, with their machine.

        Args:
            of_start: it lies in the snapshot that is the start: nothing ran with them since.
        """
        self._told.clear()
        if of_start or at <= self.start:
            self._at_start.clear()

    def at_start(self) -> list[tuple[Place, Event, str]]:
        """After the last event: those that the sandbox went on with after the snapshot, and a rebuild does not."""
        return [(told.at, told.event, f"{host}:{port}") for (host, port), told in self._at_start.items()]

    def _ended_before(self, event: Event, data: EgressClosed) -> bool:
        return event.recorded_at_us + data.seconds * _US <= self._start_us + _NOTICED_US
