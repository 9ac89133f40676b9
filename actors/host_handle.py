"""A host as the controller sees it, wherever it lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from actors.claim import Claim, Outcome
    from actors.host import LostReason, ReleaseReason


class HostHandle(Protocol):
    """A host as the controller sees it. Every method raises `HostGone` where the host died or is being replaced."""

    async def claim(self, claim: Claim) -> None:
        """See `Host.claim`."""
        ...

    async def serve(self, claim: Claim, tokens: list[str]) -> Outcome:
        """See `Host.serve`."""
        ...

    async def cancel(self, claim_id: str) -> None:
        """See `Host.cancel`."""
        ...

    async def drain(self) -> None:
        """See `Host.drain`."""
        ...

    async def release(self, claim: Claim, reason: ReleaseReason) -> None:
        """See `Host.release`."""
        ...

    async def lose_lease(self, claim: Claim, reason: LostReason, detail: str) -> None:
        """See `Host.lose_lease`."""
        ...

    async def fail(self, claim: Claim, reason: Literal["api_error", "internal"], detail: str) -> None:
        """See `Host.fail`."""
        ...

    async def open_claims(self) -> list[Claim]:
        """See `Host.open_claims`."""
        ...

    async def bury(self, session_id: str) -> None:
        """See `Host.bury`."""
        ...
