"""What is handed to the writer: appends, encoded in the caller's thread, and who waits for them."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from events.chain import seal
from events.envelope import Event
from events.errors import EventNotStorable
from events.log import Expect

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from events.codec import Codec
    from events.envelope import NewEvent
    from events.log import Append

BLOB_BYTES = 64 * 1024
"""Data above this goes into a blob; metadata above it is refused."""


class Waiter(Protocol):
    """Who waits for a request."""

    def __call__(self, settled: Sequence[tuple[Request, Outcome]]) -> None:
        """Take the outcomes of all requests of one commit that this waiter handed in. Called in the writer's thread."""


@dataclass(slots=True)
class PreparedEvent:
    """A new event with all that needs no knowledge of the log."""

    event: NewEvent
    event_id: str
    type: str
    schema_version: int
    data: str | None
    blob: str | None
    large: bytes
    """What goes into the blob."""
    metadata: str
    sealed: bytes
    """As it is hashed; see `events.chain`."""


@dataclass(slots=True)
class Write:
    """One `Append`, prepared."""

    stream: str
    events: list[PreparedEvent]
    expected: int | Expect
    epoch: int


@dataclass(slots=True, eq=False)
class Request:
    """Writes that happen together or not at all; or, where `counter` is set, one counting up."""

    writes: list[Write]
    waiter: Waiter
    token: Any = None
    """The waiter's own."""
    counter: str = ""


@dataclass(slots=True)
class Placed:
    """A request's rows, in the order of `events.rows.COLUMNS`, for each of its writes.

    The events are made of them by whoever waits, in its own thread: the writer's time is everybody's.
    """

    writes: list[tuple[Write, list[tuple[Any, ...]]]]

    def events(self) -> list[list[Event]]:
        """The events, as reading them would give."""
        return [
            [_event(prepared, row) for prepared, row in zip(write.events, rows, strict=True)]
            for write, rows in self.writes
        ]


Outcome = Placed | list[list[Event]] | int | BaseException
"""Of a request: new rows, the events of the request that it repeats, the counted-up epoch, or why not."""


def _event(prepared: PreparedEvent, row: tuple[Any, ...]) -> Event:
    position, stream, version, _, event_type, schema_version, recorded_at = row[:7]
    event = prepared.event
    return Event(
        position=position,
        stream=stream,
        version=version,
        event_id=event.event_id,
        type=event_type,
        schema_version=schema_version,
        recorded_at_us=recorded_at,
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
        epoch=row[9],
        data=event.data,
        metadata=event.metadata,
        hash=row[13],
    )


def prepare(append: Append, codec: Codec) -> Write:
    """Encode an append's events, in the caller's thread.

    Raises:
        EventNotStorable: data or metadata that JSON can't carry there and back.
        ValueError: an empty stream name, a negative version, or one event id twice.
    """
    if not append.stream:
        msg = "a stream needs a name"
        raise ValueError(msg)
    if isinstance(append.expected, int) and append.expected < 0:
        msg = f"a version is 0 or more, not {append.expected}"
        raise ValueError(msg)
    return Write(
        append.stream,
        [_prepare(append.stream, event, codec) for event in append.events],
        append.expected,
        append.epoch,
    )


def _prepare(stream: str, event: NewEvent, codec: Codec) -> PreparedEvent:
    event_id = str(event.event_id)
    event_type = event.data.type
    schema_version = codec.versions[event_type]
    encoded = codec.encode(event.data)
    metadata = _encode_metadata(event) if event.metadata else "{}"
    if len(encoded) > BLOB_BYTES:
        data, blob, large = None, sha256(encoded).hexdigest(), encoded
    else:
        data, blob, large = encoded.decode(), None, b""
    sealed = seal(
        stream, event_id, event_type, schema_version, event.correlation_id, event.causation_id, data, blob, metadata
    )
    return PreparedEvent(event, event_id, event_type, schema_version, data, blob, large, metadata, sealed)


def check_ids(writes: Iterable[Write]) -> None:
    """Raise `ValueError` where one event id stands twice in one request."""
    ids = [event.event_id for write in writes for event in write.events]
    if len(ids) > 1 and len(set(ids)) != len(ids):
        msg = "one event id stands twice in one append"
        raise ValueError(msg)


def _encode_metadata(event: NewEvent) -> str:
    try:
        encoded = orjson.dumps(dict(event.metadata))
    except TypeError as error:
        raise EventNotStorable(type=event.data.type, detail=f"metadata: {error}") from error
    if len(encoded) > BLOB_BYTES:
        raise EventNotStorable(type=event.data.type, detail=f"metadata of {len(encoded)} bytes, above {BLOB_BYTES}")
    return encoded.decode()
