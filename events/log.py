"""What a log is: the protocol that SQLite fills here, and that Postgres will fill in a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from concurrent.futures import Future

    from events.envelope import Event, NewEvent
    from events.types import EventData


class Expect(Enum):
    """What a writer expects of a stream where it expects no exact version."""

    NO_STREAM = "no stream"
    STREAM_EXISTS = "an existing stream"
    ANY = "anything"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Append:
    """Events for one stream."""

    stream: str
    """`session-<id>` or `sandbox-<id>`."""
    events: Sequence[NewEvent]
    """None: nothing is appended, and nothing is checked."""
    expected: int | Expect
    """The version of the stream's last event (0: no stream), or one of `Expect`."""
    epoch: int = 0
    """Incarnation of the writer, from `EventLog.next_epoch`; lower than the stream's last one is refused."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """A subscription has yielded everything that there was."""

    position: int
    """Of the last event yielded, or what the subscription began after."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The first broken place of a log."""

    position: int
    """Of the first row that does not fit; for a dropped row, the row after the gap."""
    stream: str
    """"" where no row is left to name one."""
    reason: str


class EventLog(Protocol):
    """An append-only log of events in streams.

    An append is durable when it returns, and isolated: it happens whole or not at all. Repeating one is safe: where all
    its event ids are in the log already, it appends nothing and gets the stored events, whatever it expects.

    Every method raises `LogClosed` after `close`, and `LogCorrupt` or `LogUnavailable` where the store fails.
    """

    def append(self, stream: str, events: Sequence[NewEvent], *, expected: int | Expect, epoch: int = 0) -> list[Event]:
        """Append to one stream and wait until it is durable.

        Raises:
            WrongExpectedVersion: the stream is not where the writer expected it.
            StaleEpoch: a later incarnation has written to the stream.
            EventIdTaken: some, but not all, of the event ids are in the log, or in another stream.
            EventNotStorable: data that can't be carried by JSON.
            LogFull, LogBusy, LogReadOnly: nothing was written.
        """
        ...

    def append_many(self, writes: Sequence[Append]) -> list[list[Event]]:
        """Append to several streams in one transaction; raises as `append`, and then no write happened."""
        ...

    def submit(self, writes: Sequence[Append]) -> Future[list[list[Event]]]:
        """Hand in an `append_many` without waiting; thread-safe, and in order for each thread.

        The future raises as `append_many`; `EventNotStorable`, `LogReadOnly` and `LogClosed` are raised at once.
        """
        ...

    async def append_async(
        self, stream: str, events: Sequence[NewEvent], *, expected: int | Expect, epoch: int = 0
    ) -> list[Event]:
        """`append` for a coroutine. If it is cancelled, the append may still happen: repeat it to know."""
        ...

    async def append_many_async(self, writes: Sequence[Append]) -> list[list[Event]]:
        """`append_many` for a coroutine. If it is cancelled, the append may still happen: repeat it to know."""
        ...

    def read(self, stream: str, after_version: int = 0, limit: int | None = None) -> Iterator[Event]:
        """Events of one stream in order, none where there is no such stream.

        Raises:
            UnknownEventType, EventTooNew: written by a newer Hourglass.
            LogCorrupt: among them `BlobBroken` and `EventInvalid`.
        """
        ...

    def read_data(self, stream: str, after_version: int = 0) -> Iterator[EventData]:
        """What happened in one stream, in order, without the envelopes: all that a fold needs, in half the time.

        Raises as `read`.
        """
        ...

    def read_all(self, after: int = 0, limit: int | None = None) -> Iterator[Event]:
        """Events of the whole log, in order of position; raises as `read`."""
        ...

    def version(self, stream: str) -> int:
        """Version of the stream's last event; 0 where there is no such stream."""
        ...

    def position(self) -> int:
        """Position of the log's last event; 0 where there is none."""
        ...

    def version_at(self, stream: str, *, position: int | None = None, time_us: int | None = None) -> int:
        """Version of the stream's last event at or before a position of the log, or a time; 0 where there is none.

        Args:
            time_us: microseconds since the epoch; where a clock went back, the stream's order counts.
        """
        ...

    def streams(self) -> list[str]:
        """Names of all streams, sorted."""
        ...

    def subscribe(self, after: int = 0, *, timeout: float | None = None) -> Iterator[Event | CaughtUp]:
        """Events from `after` on, then each new one as it is appended, by whatever process.

        A `CaughtUp` follows each time that there is nothing more to yield, the first time in any case. Ends when the
        log is closed, or after `timeout` seconds of silence. Raises as `read`.
        """
        ...

    def subscribe_async(self, after: int = 0, *, timeout: float | None = None) -> AsyncIterator[Event | CaughtUp]:
        """`subscribe` for a coroutine; reads in a thread, so that a long history does not block the loop."""
        ...

    def next_epoch(self, name: str) -> int:
        """Count up a durable counter, from 1: the number of a writer's new incarnation."""
        ...

    def verify(self, progress: Callable[[int], None] | None = None) -> Broken | None:
        """Check every row against the hash chain, every blob, and the order of versions.

        Args:
            progress: called now and then with the number of rows checked so far.

        Returns:
            The first broken place, or None where the log is whole.
        """
        ...

    def close(self) -> None:
        """Wait until all that was handed in is durable, then let go of the log. May be called twice."""
        ...
