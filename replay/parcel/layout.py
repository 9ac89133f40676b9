"""The format of an exported session, and how large anything in it may be."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from events.chunks import LARGEST_BYTES
from events.rows import Row

FORMAT = 1
HEADER, EVENTS = "hourglass.json", "events.jsonl.zst"
BLOBS, MANIFESTS, CHUNKS = "blobs/", "manifests/", "chunks/"
MEMBER = re.compile(
    r"hourglass\.json|events\.jsonl\.zst|blobs/[0-9a-f]{64}|manifests/[A-Za-z0-9-]{1,100}\.json|chunks/[0-9a-f]{64}"
)
"""Every name that a member may have. None is ever a path on the host."""
ORDER = (HEADER, EVENTS, BLOBS, MANIFESTS, CHUNKS)

_MIB = 1024**2
LARGEST = {
    HEADER: 16 * _MIB,
    EVENTS: 64 * 1024 * _MIB,
    BLOBS: 1024 * _MIB,
    MANIFESTS: 256 * _MIB,
    CHUNKS: LARGEST_BYTES + _MIB,
}
"""Bytes of a member, by kind: a manifest of 64 GiB of memory has 150 MiB."""
LINE_BYTES = 4 * _MIB
"""Of a row: its data and its metadata have at most 64 KiB each, which JSON in JSON makes longer."""
WINDOW_BYTES = 8 * _MIB
"""What reading the rows may take of memory."""

StreamName = Annotated[str, Field(pattern=r"^(session|sandbox)-[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")
_NAMES = (
    "snapshot_id",
    "sandbox_id",
    "machine_id",
    "parent",
    "child",
    "previous",
    "ended",
    "template",
    "driver",
)
"""Fields of events by which something is looked up, on disk, too."""


class Header(BaseModel):
    """What a file says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    hourglass: Annotated[str, Field(max_length=100)]
    """The version that wrote it."""
    session_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,100}$")]
    """"" for a sandbox that no session uses."""
    exported_at: float
    """Seconds since the epoch."""
    streams: dict[StreamName, Annotated[int, Field(ge=1)]]
    """By name: how many of its events there are, from the first on. Of a parent, only what led to its fork."""
    blobs: Annotated[int, Field(ge=0)]
    snapshots: Annotated[int, Field(ge=0)]
    """How many manifests there are, those of templates included."""
    chunks: Annotated[int, Field(ge=0)]

    @property
    def events(self) -> int:
        """Of all streams."""
        return sum(self.streams.values())


class _Line(BaseModel):
    """A row as it stands in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    previous: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    position: Annotated[int, Field(ge=1, lt=2**63)]
    stream: StreamName
    version: Annotated[int, Field(ge=1, lt=2**63)]
    event_id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    type: Annotated[str, Field(max_length=100)]
    schema_version: Annotated[int, Field(ge=1, lt=2**31)]
    recorded_at: Annotated[int, Field(ge=0, lt=2**53)]
    correlation_id: str
    causation_id: str
    epoch: Annotated[int, Field(ge=0, lt=2**63)]
    data: str | None
    blob: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    metadata: str
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def to_line(row: Row, previous: bytes) -> bytes:
    """A row, with the hash of the row before it in its log, as a line."""
    return orjson.dumps({"previous": previous.hex()} | row._asdict() | {"hash": row.hash.hex()}) + b"\n"


def to_row(line: bytes) -> Row:
    """The row of a line, proved by its hash. Raises `ValueError`, which says what is wrong with it."""
    try:
        read = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'a line'}: {first['msg']}") from None
    told = read.model_dump(exclude={"previous"})
    row = Row(**told | {"hash": bytes.fromhex(read.hash)})
    if (row.data is None) == (row.blob is None):
        raise ValueError(f"the event at position {row.position} has its data twice, or not at all")
    if row.expected_hash(bytes.fromhex(read.previous)) != row.hash:
        raise ValueError(f"the event at position {row.position} is not what its hash says")
    if not isinstance(orjson.loads(row.metadata), dict):
        raise ValueError(f"the metadata of the event at position {row.position} are no JSON object")
    return row


def odd_name(told: dict[str, object]) -> str:
    """The field of an event's data that should be a name and is none; "" where all are."""
    for field in _NAMES:
        value = told.get(field, "")
        for name in value if isinstance(value, list) else [value]:
            if name and not (isinstance(name, str) and _NAME.fullmatch(name) and ".." not in name):
                return field
    return ""


def kind_of(name: str) -> str:
    """Which kind of member a name is of."""
    return next(kind for kind in ORDER if name.startswith(kind))
