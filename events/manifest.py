"""What a snapshot consists of: the manifest ties image, file tree, and the version of the stream that both are of.

A manifest lies as `manifests/<snapshot id>.json`: one JSON object with a digest of its own. It is written last, so what
has one is whole. The tree is a listing, one line for each entry, cut into pages that are chunks like any other: two
snapshots share the pages in which nothing changed.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from events.chunks import Name, Piece
from events.types import Limits

_CONFIG = ConfigDict(frozen=True, extra="forbid")


class ImageFile(BaseModel):
    """One file of an image."""

    model_config = _CONFIG

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
    size: Annotated[int, Field(ge=0)]
    blake3: Name
    """Of the file as a whole."""
    pieces: tuple[Piece, ...]


class Tree(BaseModel):
    """A file tree, by its listing."""

    model_config = _CONFIG

    entries: int
    bytes: int
    """Of all files together, holes and hard links left out."""
    pages: tuple[Name, ...]
    """The chunks of the listing, in order; each line is an `Entry`."""


class Manifest(BaseModel):
    """A snapshot in the store, or a template's root, which has a tree alone."""

    model_config = _CONFIG

    format: Literal[1] = 1
    snapshot_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,100}$")]
    kind: Literal["snapshot", "template"]
    sandbox_id: str = ""
    stream: str = ""
    version: int = 0
    """Of the stream: the snapshot is of the state after this event."""
    driver: str = ""
    driver_version: str = ""
    template_root: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,100}$")]
    limits: Limits | None = None
    taken_at: float
    """Seconds since the epoch."""
    image: tuple[ImageFile, ...] = ()
    tree: Tree

    @property
    def image_bytes(self) -> int:
        """Of the image, whole."""
        return sum(file.size for file in self.image)

    def encode(self) -> tuple[bytes, str]:
        """As it is written, and its digest."""
        told = self.model_dump(mode="json")
        digest = _digest(told)
        return json.dumps({**told, "digest": digest}, indent=1).encode(), digest


def decode(content: bytes) -> tuple[Manifest, str]:
    """A manifest that was written, and its digest. Raises `ValueError`, which says what is wrong with it."""
    told = json.loads(content)
    if not isinstance(told, dict) or "digest" not in told:
        raise ValueError("it is no manifest")
    digest = told.pop("digest")
    if told.get("format") != 1:
        raise ValueError(f"format {told.get('format')} is of a newer Hourglass")
    if digest != _digest(told):
        raise ValueError("it is not what was written")
    try:
        return Manifest.model_validate_json(json.dumps(told)), digest
    except ValidationError as error:
        raise ValueError(str(error).replace("\n", " ")) from None


def template_id(root: str) -> str:
    """Under which name a template's root is kept."""
    return f"template-{root}"


def is_snapshot_id(name: str) -> bool:
    """Whether it can name a snapshot."""
    return re.fullmatch(r"[A-Za-z0-9-]{1,100}", name) is not None


def _digest(told: dict[str, Any]) -> str:
    return blake3(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
