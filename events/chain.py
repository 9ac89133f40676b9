"""The hash chain: each row's hash covers the row and the hash before it.

What is hashed: the previous hash (32 bytes; zeros before the first row); position, version, time and epoch in decimal,
each followed by a slash; a JSON array of the other fields without white space; the bytes of `data`. Numbers end at
their slash and the array at its bracket, so no two rows share an encoding. Data in a blob is covered by its digest,
which is in the array.
"""

from __future__ import annotations

from hashlib import sha256

from orjson import dumps

GENESIS = bytes(32)
"""What stands before the first row."""


def seal(
    stream: str,
    event_id: str,
    event_type: str,
    schema_version: int,
    correlation_id: str,
    causation_id: str,
    data: str | None,
    blob: str | None,
    metadata: str,
) -> bytes:
    """The part of a row that is known before the row has its place, as it is hashed."""
    fields = (stream, event_id, event_type, schema_version, correlation_id, causation_id, blob, metadata)
    return dumps(fields) + (b"" if data is None else data.encode())


def link(previous: bytes, position: int, version: int, recorded_at: int, epoch: int, sealed: bytes) -> bytes:
    """SHA-256 (32 bytes) over the previous row's hash and this row."""
    return sha256(b"%b%d/%d/%d/%d/%b" % (previous, position, version, recorded_at, epoch, sealed)).digest()
