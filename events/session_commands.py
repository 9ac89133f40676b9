"""What can be asked of a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from events.payload import JsonObject
    from events.session_types import FailReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A work item was taken from the queue."""

    claim_id: str
    environment_id: str
    work_id: str
    worker_id: str
    credential: Literal["session_token", "environment_key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """The stream is open and the history was read."""

    claim_id: str
    sandbox_id: str
    history_events: int
    skills: tuple[str, ...] = ()
    acknowledged_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestToolCall:
    """The agent asks for a call; for a known tool_use_id nothing happens, whatever became of the call."""

    tool_use_id: str
    tool: str
    input: JsonObject
    thread_id: str = ""
    permission: Literal["allow", "ask"] = "allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenyToolCall:
    """The call will never run; nothing happens where its result was posted."""

    tool_use_id: str
    by: Literal["policy", "user", "thread_terminated", "server"]
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPosted:
    """Anthropic has the result of a call; of a denied one too, where the denial was posted."""

    tool_use_id: str
    outcome: Literal["posted", "already_answered", "refused"] = "posted"
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """The agent's turn ended."""

    stop_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseLease:
    """The work item is not ours any more."""

    claim_id: str
    reason: Literal["precondition_failed", "no_heartbeat_succeeded", "credential_rejected"]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The work item was given back; `abandoned` needs no claim of ours."""

    claim_id: str
    reason: Literal["idle", "stop_requested", "shutdown", "abandoned", "not_served"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The session can't be served."""

    reason: FailReason
    detail: str
    next_step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminate:
    """The session is over for good."""

    reason: Literal["terminated", "deleted", "not_found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSandbox:
    """The session's sandbox is this one from now on; `ended` end with it."""

    sandbox_id: str
    previous: str
    ended: tuple[str, ...]
    asked_by: str = ""
    """The tool call that asks for it, which may be open; "" where a person does."""
    waiting: tuple[str, ...] = ()
    """Calls that no sandbox has started: they may be open as well, and run in the one that is kept."""


Command = (
    Claim
    | Attach
    | KeepSandbox
    | RequestToolCall
    | DenyToolCall
    | RecordPosted
    | Idle
    | LoseLease
    | Release
    | Fail
    | Terminate
)
