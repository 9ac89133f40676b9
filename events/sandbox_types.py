"""What can happen to a sandbox and its machine: events of the stream `sandbox-<id>`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from events.payload import JsonObject, Payload


class Limits(BaseModel):
    """What one sandbox may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_bytes: int = 2 * 1024**3
    """RAM of the machine as a whole."""
    processes: int = 512
    """Processes and threads inside the guest."""
    disk_bytes: int = 10 * 1024**3
    """What the sandbox may write beyond its template."""
    cpus: float = 2.0
    tool_seconds: float = 150.0
    """Wall time of one tool call: the hard cap of the SDK's runner (contract §11.4)."""


class SandboxCreated(Payload):
    """A sandbox exists for a session; no machine runs yet."""

    schema_version: ClassVar[int] = 2

    type: Literal["sandbox.created"] = "sandbox.created"
    session_id: str
    driver: str
    template: str
    limits: Limits
    parent: str = ""
    """Of a fork: the id of the sandbox that it was made from."""
    parent_version: int = 0
    """Of the parent's stream, when that was."""


class SandboxStarted(Payload):
    """A machine runs and its guest agent answers."""

    type: Literal["sandbox.started"] = "sandbox.started"
    machine_id: str
    node: str
    seconds: float
    """From the start of the machine to the agent's first answer."""
    agent_version: str


class SandboxStopped(Payload):
    """The machine was ended on purpose: files are kept, memory and processes are gone."""

    schema_version: ClassVar[int] = 2

    type: Literal["sandbox.stopped"] = "sandbox.stopped"
    reason: Literal["shutdown", "requested"]
    cpu_seconds: float | None = None
    """CPU time of the machine since it was started or resumed; None where nobody counted."""
    memory_high_bytes: int | None = None
    """The most memory it had since then."""


class SandboxCrashed(Payload):
    """The machine ended by itself or was found dead."""

    schema_version: ClassVar[int] = 2

    type: Literal["sandbox.crashed"] = "sandbox.crashed"
    reason: Literal["out_of_memory", "exited", "lost", "protocol_violation", "unresponsive"]
    detail: str = ""
    cpu_seconds: float | None = None
    """CPU time of the machine since it was started or resumed; None where nobody counted."""
    memory_high_bytes: int | None = None
    """The most memory it had since then."""


class SandboxRecovered(Payload):
    """A new machine runs on what was left."""

    type: Literal["sandbox.recovered"] = "sandbox.recovered"
    machine_id: str
    node: str
    kept: Literal["memory_and_files", "files"]
    """`memory_and_files`: the same machine, found again after its host died."""
    seconds: float


class SandboxKilled(Payload):
    """The end: machine and files are gone."""

    schema_version: ClassVar[int] = 2

    type: Literal["sandbox.killed"] = "sandbox.killed"
    reason: Literal["session_over", "requested", "not_kept", "replaced"]
    """`not_kept`: another fork was; `replaced`: a fork of it was kept in its place."""
    cpu_seconds: float | None = None
    """CPU time of the machine since it was started or resumed; None where nobody counted."""
    memory_high_bytes: int | None = None
    """The most memory it had since then."""


class ToolCallStarted(Payload):
    """The call is about to have effects. Durable before the machine hears of it. In the sandbox's stream."""

    type: Literal["tool_call.started"] = "tool_call.started"
    tool_use_id: str
    tool: str
    input: JsonObject


class ToolCallCompleted(Payload):
    """The call ended and this is its result, posted or not. In the sandbox's stream."""

    type: Literal["tool_call.completed"] = "tool_call.completed"
    tool_use_id: str
    content: list[JsonObject]
    """Content blocks as they are posted (contract §6)."""
    is_error: bool
    seconds: float
    output_bytes: int = 0
    """What the command printed in all, before truncation."""


class ToolCallInterrupted(Payload):
    """The call was started and its own outcome will never be known. In the sandbox's stream."""

    type: Literal["tool_call.interrupted"] = "tool_call.interrupted"
    tool_use_id: str
    reason: Literal["user", "machine_lost", "out_of_memory", "host_lost", "thread_terminated"]
    content: list[JsonObject] = Field(default_factory=list)
    """What the agent is told; empty where the server answered already."""
