"""What all event data has in common."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

JsonObject = dict[str, Any]


class Payload(BaseModel):
    """Frozen, and closed: a field that nobody declared is a bug of the writer, not data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: ClassVar[int] = 1
    """Counted up by every change that an older row does not fit; see `events.codec`."""
