"""A claim of a session's work item, and how serving it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from events.session_types import FailReason


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of a session's work item."""

    claim_id: str
    session_id: str
    work_id: str
    environment_id: str
    worker_id: str
    credential: Literal["session_token", "environment_key"]
    acknowledged_at: str = ""
    """As the queue wrote it: what tells this claim's lease from a later one on the same work id."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why a session is served no longer, and what is to become of its work item."""

    reason: Literal["idle", "not_served", "failed", "shutdown", "cancelled"]
    """`idle`, `not_served`: the item is stopped. The others: it lapses, and the queue offers it again."""
    detail: str = ""
    session_over: bool = False
    """Whether the session ended for good, and its sandbox with it."""


class SessionFailed(Exception):
    """Raised when a session can't be served; the message is for a person."""

    def __init__(self, reason: FailReason, detail: str, next_step: str = "", *, hopeless: bool = False) -> None:
        super().__init__(detail)
        self.reason: FailReason = reason
        self.detail = detail
        self.next_step = next_step
        self.hopeless = hopeless
        """Whether another try would end the same way: the item is stopped, and not offered again."""
