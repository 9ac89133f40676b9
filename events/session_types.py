"""What can happen to a session: the events of the stream `session-<id>`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from events.payload import JsonObject, Payload

FailReason = Literal[
    "memory_store_unsupported",
    "branch_refused",
    "no_progress",
    "sandbox_failed",
    "credential_rejected",
    "api_error",
    "internal",
]
"""Why a session can't be served."""


class SessionClaimed(Payload):
    """A work item was taken from the queue. Durable before it is acknowledged."""

    type: Literal["session.claimed"] = "session.claimed"
    environment_id: str
    work_id: str
    """Equals the session id in production and comes again (contract §4.4): never a key."""
    claim_id: str
    """Ours: one for each claim."""
    worker_id: str
    credential: Literal["session_token", "environment_key"]
    """Which kind of credential serves this claim; never the credential."""


class SessionAttached(Payload):
    """The event stream is open and the whole history has been read once."""

    type: Literal["session.attached"] = "session.attached"
    claim_id: str
    sandbox_id: str
    history_events: int
    acknowledged_at: str = ""
    """When the work item was acknowledged, as the queue wrote it: what tells this claim's lease from a later one."""
    """How many events the history had."""
    skills: list[str] = Field(default_factory=list)
    """Names of the skills that were unpacked into the sandbox."""


class SessionResultPosted(Payload):
    """Anthropic has the result of a tool call."""

    type: Literal["session.result_posted"] = "session.result_posted"
    tool_use_id: str
    outcome: Literal["posted", "already_answered", "refused"] = "posted"
    """`already_answered`: the server had an answer (a lost response, or an interrupt); `refused`: a 4xx, see detail."""
    detail: str = ""


class SessionIdled(Payload):
    """The agent's turn ended."""

    type: Literal["session.idled"] = "session.idled"
    stop_reason: str


class SessionLeaseLost(Payload):
    """The work item belongs to the queue or to another worker: it must not be stopped by us."""

    type: Literal["session.lease_lost"] = "session.lease_lost"
    claim_id: str
    reason: Literal["precondition_failed", "no_heartbeat_succeeded", "credential_rejected"]
    detail: str = ""


class SessionReleased(Payload):
    """The work item was given back; the session and its sandbox live on."""

    type: Literal["session.released"] = "session.released"
    claim_id: str
    reason: Literal["idle", "stop_requested", "shutdown", "abandoned", "not_served"]
    """`abandoned`: found at start, claimed by nobody alive. `not_served`: see the `session.failed` before it."""


class SessionFailed(Payload):
    """Hourglass could not serve the session; the reason is for a person."""

    type: Literal["session.failed"] = "session.failed"
    reason: FailReason
    detail: str
    next_step: str = ""


class SessionTerminated(Payload):
    """The session is over for good: terminated, deleted or archived at Anthropic."""

    type: Literal["session.terminated"] = "session.terminated"
    reason: Literal["terminated", "deleted", "not_found"]


class SessionSandboxKept(Payload):
    """From here on the session's sandbox is this one: a fork of the one before, or that one without its forks."""

    type: Literal["session.sandbox_kept"] = "session.sandbox_kept"
    sandbox_id: str
    previous: str
    ended: list[str]
    """Ids of the sandboxes that end with it, in the same transaction."""


class ToolCallRequested(Payload):
    """The agent asked for a tool call. In the session's stream."""

    type: Literal["tool_call.requested"] = "tool_call.requested"
    tool_use_id: str
    tool: str
    input: JsonObject
    thread_id: str = ""
    permission: Literal["allow", "ask"] = "allow"
    """`ask`: not to be run before a confirmation (contract §8.2)."""


class ToolCallDenied(Payload):
    """The call will never run, and nobody owes a result for it. In the session's stream."""

    type: Literal["tool_call.denied"] = "tool_call.denied"
    tool_use_id: str
    by: Literal["policy", "user", "thread_terminated", "server"]
    """`server`: the server closed the call before it was started here."""
    message: str = ""
