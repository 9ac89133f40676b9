"""Why a connection of a guest's was not made, or did not last."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from events.egress_types import RefusalReason as Reason

DETAIL_MAX = 500
"""Characters of a detail; some of it may be a guest's or a server's words."""


class Refused(Exception):
    """Raised when a guest's wish is refused: before the connection, or when its first bytes, or a request, are seen."""

    def __init__(self, reason: Reason, detail: str, *, rule: str = "", farewell: bytes = b"") -> None:
        detail = "".join(char if char.isprintable() else "?" for char in detail[:DETAIL_MAX])
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail
        """One printable line."""
        self.rule = rule
        """Text of the entry that applied; "" where none did."""
        self.farewell = farewell
        """What tells the guest's program so in its own protocol; the gateway sends it before it raises this."""


class Broken(Exception):
    """Raised when the server's end of a connection failed after it was made; the guest's is to be reset."""
