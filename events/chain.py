"""The hash chain: each row's hash covers the row and the hash before it.

What is hashed: the previous hash (32 bytes; zeros before the first row), a JSON array of the row's fields without white
space, then the bytes of `data`. A JSON array ends where it ends, so no two rows share an encoding. Data in a blob is
covered by its digest, which is in the array.
"""

from __future__ import annotations

from hashlib import sha256

from orjson import dumps

GENESIS = bytes(32)
"""What stands before the first row."""


def row_hash(
    previous: bytes,
    position: int,
    stream: str,
    version: int,
    event_id: str,
    event_type: str,
    schema_version: int,
    recorded_at_us: int,
    correlation_id: str,
    causation_id: str,
    epoch: int,
    data: str | None,
    blob: str | None,
    metadata: str,
) -> bytes:
    """SHA-256 (32 bytes) over the previous row's hash and this row's fields, as they are in the file."""
    fields = dumps(
        (
            position,
            stream,
            version,
            event_id,
            event_type,
            schema_version,
            recorded_at_us,
            correlation_id,
            causation_id,
            epoch,
            blob,
            metadata,
        )
    )
    return sha256(b"".join((previous, fields, data.encode() if data is not None else b""))).digest()
