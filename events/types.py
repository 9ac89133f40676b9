"""What can happen: one pydantic model for each event type, in one discriminated union.

A type's name is `entity.past_participle`, registered here and never a Python path. Sessions and sandboxes are the two
entities. Each event lives in the stream of the entity whose state it changes: what was asked of a session
(`tool_call.requested`, `.denied`) in the session's stream, what was done to a machine (`tool_call.started`,
`.completed`, `.interrupted`) in the sandbox's, so that a version of a sandbox's stream names a machine state.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JsonObject = dict[str, Any]


class _Data(BaseModel):
    """Frozen, and closed: a field that nobody declared is a bug of the writer, not data."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Data):
    """What one sandbox may use."""

    memory_bytes: int = 2 * 1024**3
    """RAM of the machine as a whole."""
    processes: int = 512
    """Processes and threads inside the guest."""
    disk_bytes: int = 10 * 1024**3
    """What the sandbox may write beyond its template."""
    cpus: float = 2.0
    tool_seconds: float = 150.0
    """Wall time of one tool call: the hard cap of the SDK's runner (contract §11.4)."""


# --- session ---------------------------------------------------------------------------------------------------------


class SessionClaimed(_Data):
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


class SessionAttached(_Data):
    """The event stream is open and the whole history has been read once."""

    type: Literal["session.attached"] = "session.attached"
    claim_id: str
    sandbox_id: str
    history_events: int
    """How many events the history had."""
    skills: list[str] = []
    """Names of the skills that were unpacked into the sandbox."""


class SessionResultPosted(_Data):
    """Anthropic has the result of a tool call."""

    type: Literal["session.result_posted"] = "session.result_posted"
    tool_use_id: str
    outcome: Literal["posted", "already_answered", "refused"] = "posted"
    """`already_answered`: the server had an answer (a lost response, or an interrupt); `refused`: a 4xx, see detail."""
    detail: str = ""


class SessionIdled(_Data):
    """The agent's turn ended."""

    type: Literal["session.idled"] = "session.idled"
    stop_reason: str


class SessionLeaseLost(_Data):
    """The work item belongs to the queue or to another worker: it must not be stopped by us."""

    type: Literal["session.lease_lost"] = "session.lease_lost"
    claim_id: str
    reason: Literal["precondition_failed", "no_heartbeat_succeeded", "credential_rejected"]
    detail: str = ""


class SessionReleased(_Data):
    """The work item was given back; the session and its sandbox live on."""

    type: Literal["session.released"] = "session.released"
    claim_id: str
    reason: Literal["idle", "stop_requested", "shutdown", "abandoned", "not_served"]
    """`abandoned`: found at start, claimed by nobody alive. `not_served`: see the `session.failed` before it."""


class SessionFailed(_Data):
    """Hourglass could not serve the session; the reason is for a person."""

    type: Literal["session.failed"] = "session.failed"
    reason: Literal[
        "memory_store_unsupported", "no_progress", "sandbox_failed", "credential_rejected", "api_error", "internal"
    ]
    detail: str
    next_step: str = ""


class SessionTerminated(_Data):
    """The session is over for good: terminated, deleted or archived at Anthropic."""

    type: Literal["session.terminated"] = "session.terminated"
    reason: Literal["terminated", "deleted", "not_found"]


class ToolCallRequested(_Data):
    """The agent asked for a tool call. In the session's stream."""

    type: Literal["tool_call.requested"] = "tool_call.requested"
    tool_use_id: str
    tool: str
    input: JsonObject
    thread_id: str = ""
    permission: Literal["allow", "ask"] = "allow"
    """`ask`: not to be run before a confirmation (contract §8.2)."""


class ToolCallDenied(_Data):
    """The call will never run, and nobody owes a result for it. In the session's stream."""

    type: Literal["tool_call.denied"] = "tool_call.denied"
    tool_use_id: str
    by: Literal["policy", "user", "thread_terminated", "server"]
    """`server`: the server closed the call before it was started here."""
    message: str = ""


# --- sandbox ---------------------------------------------------------------------------------------------------------


class SandboxCreated(_Data):
    """A sandbox exists for a session; no machine runs yet."""

    type: Literal["sandbox.created"] = "sandbox.created"
    session_id: str
    driver: str
    template: str
    limits: Limits


class SandboxStarted(_Data):
    """A machine runs and its guest agent answers."""

    type: Literal["sandbox.started"] = "sandbox.started"
    machine_id: str
    node: str
    seconds: float
    """From the start of the machine to the agent's first answer."""
    agent_version: str


class SandboxStopped(_Data):
    """The machine was ended on purpose: files are kept, memory and processes are gone."""

    type: Literal["sandbox.stopped"] = "sandbox.stopped"
    reason: Literal["shutdown", "requested"]


class SandboxCrashed(_Data):
    """The machine ended by itself or was found dead."""

    type: Literal["sandbox.crashed"] = "sandbox.crashed"
    reason: Literal["out_of_memory", "exited", "lost", "protocol_violation", "unresponsive"]
    detail: str = ""


class SandboxRecovered(_Data):
    """A new machine runs on what was left."""

    type: Literal["sandbox.recovered"] = "sandbox.recovered"
    machine_id: str
    node: str
    kept: Literal["memory_and_files", "files"]
    """`memory_and_files`: the same machine, found again after its host died."""
    seconds: float


class SandboxKilled(_Data):
    """The end: machine and files are gone."""

    type: Literal["sandbox.killed"] = "sandbox.killed"
    reason: Literal["session_over", "requested"]


class ToolCallStarted(_Data):
    """The call is about to have effects. Durable before the machine hears of it. In the sandbox's stream."""

    type: Literal["tool_call.started"] = "tool_call.started"
    tool_use_id: str
    tool: str
    input: JsonObject


class ToolCallCompleted(_Data):
    """The call ended and this is its result, posted or not. In the sandbox's stream."""

    type: Literal["tool_call.completed"] = "tool_call.completed"
    tool_use_id: str
    content: list[JsonObject]
    """Content blocks as they are posted (contract §6)."""
    is_error: bool
    seconds: float
    output_bytes: int = 0
    """What the command printed in all, before truncation."""


class ToolCallInterrupted(_Data):
    """The call was started and its own outcome will never be known. In the sandbox's stream."""

    type: Literal["tool_call.interrupted"] = "tool_call.interrupted"
    tool_use_id: str
    reason: Literal["user", "machine_lost", "out_of_memory", "host_lost", "thread_terminated"]
    content: list[JsonObject] = []
    """What the agent is told; empty where the server answered already."""


# --- snapshots, branches, egress, replay: written by later parts, readable by all --------------------------------------

EventData = Annotated[
    SessionClaimed
    | SessionAttached
    | SessionResultPosted
    | SessionIdled
    | SessionLeaseLost
    | SessionReleased
    | SessionFailed
    | SessionTerminated
    | ToolCallRequested
    | ToolCallDenied
    | SandboxCreated
    | SandboxStarted
    | SandboxStopped
    | SandboxCrashed
    | SandboxRecovered
    | SandboxKilled
    | ToolCallStarted
    | ToolCallCompleted
    | ToolCallInterrupted,
    Field(discriminator="type"),
]
