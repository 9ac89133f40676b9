"""A row of the log: as it is stored, and as the event that it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson
from pydantic import ValidationError

from events.chain import link, seal
from events.codec import CODEC
from events.envelope import Event
from events.errors import EventInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from events.blobs import BlobStore
    from events.codec import Codec

COLUMNS = (
    "position, stream, version, event_id, type, schema_version, recorded_at, correlation_id, causation_id, epoch, "
    "data, blob, metadata, hash"
)


class Row(NamedTuple):
    """One row, field for field as in the file."""

    position: int
    stream: str
    version: int
    event_id: str
    type: str
    schema_version: int
    recorded_at: int
    """Microseconds since the epoch, UTC."""
    correlation_id: str
    causation_id: str
    epoch: int
    data: str | None
    """JSON; None where it is in the blob."""
    blob: str | None
    """SHA-256 in hex."""
    metadata: str
    """JSON."""
    hash: bytes

    def expected_hash(self, previous: bytes) -> bytes:
        """What `hash` must be after a row with the hash `previous`."""
        sealed = seal(
            self.stream,
            self.event_id,
            self.type,
            self.schema_version,
            self.correlation_id,
            self.causation_id,
            self.data,
            self.blob,
            self.metadata,
        )
        return link(previous, self.position, self.version, self.recorded_at, self.epoch, sealed)


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes events of rows, with the blobs and the codec that this takes."""

    path: Path
    """Of the log, for errors."""
    blobs: BlobStore
    codec: Codec = CODEC

    def json(self, row: Row) -> Any:
        """The stored data as plain JSON, whatever type and version it is of.

        Raises:
            BlobBroken: missing or damaged.
            EventInvalid: not JSON.
        """
        try:
            return orjson.loads(self._data(row))
        except orjson.JSONDecodeError as error:
            raise EventInvalid(path=self.path, type=row.type, position=row.position, detail=str(error)) from error

    def event(self, row: tuple[Any, ...]) -> Event:
        """The event of a row in the order of `COLUMNS`; any tuple will do, since a `Row` costs a reader time.

        Raises:
            UnknownEventType, EventTooNew: written by a newer Hourglass.
            BlobBroken: missing or damaged.
            EventInvalid: not what its type promises.
        """
        (
            position,
            stream,
            version,
            event_id,
            event_type,
            schema_version,
            recorded_at,
            correlation_id,
            causation_id,
            epoch,
            data,
            blob,
            metadata,
            digest,
        ) = row
        try:
            payload = self.codec.decode(
                event_type, schema_version, data if blob is None else self.blobs.get(blob), position
            )
            return Event(
                position=position,
                stream=stream,
                version=version,
                event_id=UUID(event_id),
                type=event_type,
                schema_version=schema_version,
                recorded_at_us=recorded_at,
                correlation_id=correlation_id,
                causation_id=causation_id,
                epoch=epoch,
                data=payload,
                metadata={} if metadata == "{}" else orjson.loads(metadata),
                hash=digest,
            )
        except (ValidationError, ValueError) as error:
            raise EventInvalid(path=self.path, type=event_type, position=position, detail=_first_line(error)) from error

    def _data(self, row: Row) -> str | bytes:
        if row.blob is not None:
            return self.blobs.get(row.blob)
        return row.data or ""


def _first_line(error: ValidationError | ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'data'}: {first['msg']}"
    return str(error).splitlines()[0]
