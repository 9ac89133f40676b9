"""What is handed to the writer: appends, encoded in the caller's thread, and who waits for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import orjson

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

Outcome = list[list[Event]] | int | BaseException
"""Of a request: the events of each of its writes, the counted-up epoch, or why not."""


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
    data: bytes
    metadata: str
    blob: str | None = None


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
    prepared = [
        PreparedEvent(
            event,
            str(event.event_id),
            event.data.type,
            codec.versions[event.data.type],
            codec.encode(event.data),
            _encode_metadata(event) if event.metadata else "{}",
        )
        for event in append.events
    ]
    return Write(append.stream, prepared, append.expected, append.epoch)


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
