"""What a guest agent says, parsed: strict shapes, bounded sizes. Nothing of it is trusted beyond its shape."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from actors.machines.protocol import GuestInfo, GuestProtocolError, ToolResult

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT_MAX = 4 * 1024 * 1024
"""Characters of one text block; the tools keep theirs far below."""
MEDIA_MAX = 28 * 1024 * 1024
"""Characters of base64: a PDF of 20 MiB (contract §12)."""
RESULT_MAX = 32 * 1024 * 1024
"""Bytes of a whole result."""
HELLO_MAX = 16 * 1024
ERROR_MAX = 4096
BLOCKS_MAX = 16

_M = TypeVar("_M", bound=BaseModel)
_Short = Annotated[str, Field(max_length=200)]


class _Said(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Hello(_Said):
    """The answer to a greeting; a newer agent may say more."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    protocol: Literal[1]
    nonce: Annotated[str, Field(max_length=64)]
    agent_version: _Short
    python: _Short
    facts: Annotated[dict[_Short, _Short], Field(max_length=32)] = {}

    def info(self) -> GuestInfo:
        """For display."""
        return GuestInfo(agent_version=self.agent_version, python=self.python, facts=self.facts)


class Refusal(_Said):
    """Why the agent ended a channel."""

    error: Annotated[str, Field(max_length=ERROR_MAX)]
    errno: Annotated[int, Field(ge=1, le=4095)] | None = None


class Itself(_Said):
    """What a guest says it is, once it was made itself."""

    hostname: _Short
    machine_id: Annotated[str, Field(max_length=64)]
    clock_offset_ns: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class Exit(_Said):
    """How a program ended."""

    exit_code: Annotated[int, Field(ge=0, le=255)]


class Unpacked(_Said):
    """Where a tree went."""

    path: Annotated[str, Field(max_length=8192)]


class _Base64(_Said):
    type: Literal["base64"]
    data: Annotated[str, Field(max_length=MEDIA_MAX)]

    @field_validator("data")
    @classmethod
    def _is_base64(cls, value: str) -> str:
        try:
            base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"no base64: {error}") from None
        return value


class _ImageSource(_Base64):
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]


class _PdfSource(_Base64):
    media_type: Literal["application/pdf"]


class _Text(_Said):
    type: Literal["text"]
    text: Annotated[str, Field(min_length=1, max_length=TEXT_MAX)]


class _Image(_Said):
    type: Literal["image"]
    source: _ImageSource


class _Document(_Said):
    type: Literal["document"]
    source: _PdfSource


_Block = Annotated[_Text | _Image | _Document, Field(discriminator="type")]


class Result(_Said):
    """The result of a tool call."""

    content: Annotated[list[_Block], Field(min_length=1, max_length=BLOCKS_MAX)]
    is_error: bool
    output_bytes: Annotated[int, Field(ge=0, lt=1 << 63)]
    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    """Of a command; an agent that lies in an older snapshot does not tell."""

    def tool_result(self) -> ToolResult:
        """As the rest of Hourglass takes it."""
        content: Sequence[dict[str, object]] = [block.model_dump() for block in self.content]
        return ToolResult(content, self.is_error, self.output_bytes, self.exit_code)


_NAMES = frozenset(
    name
    for model in (Hello, Refusal, Itself, Exit, Unpacked, Result, _Text, _Image, _Document, _ImageSource, _PdfSource)
    for name in (*model.model_fields, "text", "image", "document")
)
"""Every part of a place that is ours: fields, and the kinds of blocks."""


def parsed(model: type[_M], data: bytes | bytearray, what: str) -> _M:
    """`data` as a `model`; raises `GuestProtocolError` that names the first thing wrong, without the guest's words."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # A key that the guest made up is its word, too.
        place = ".".join(str(part) if part in _NAMES or isinstance(part, int) else "…" for part in first["loc"])
        raise GuestProtocolError(f"{what} of the guest agent is malformed at {place!r}: {first['type']}") from None
