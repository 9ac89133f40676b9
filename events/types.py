"""What can happen: one pydantic model for each event type, in one discriminated union.

A type's name is `entity.past_participle`, registered here and never a Python path. Sessions and sandboxes are the two
entities. Each event lives in the stream of the entity whose state it changes: what was asked of a session
(`tool_call.requested`, `.denied`) in the session's stream, what was done to a machine (`tool_call.started`,
`.completed`, `.interrupted`) in the sandbox's, so that a version of a sandbox's stream names a machine state.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from events.access_types import (
    SandboxFileCopied,
    SandboxForwardClosed,
    SandboxForwardOpened,
    SandboxProcessEnded,
    SandboxProcessStarted,
)
from events.egress_types import EgressClosed, EgressConnected, EgressPolicyChanged, EgressRefused
from events.payload import JsonObject, Payload
from events.replay_types import BisectBegun, BisectFound, BisectProbed, ReplayDiverged, ReplayVerified
from events.sandbox_types import (
    Limits,
    SandboxCrashed,
    SandboxCreated,
    SandboxKilled,
    SandboxRecovered,
    SandboxStarted,
    SandboxStopped,
    ToolCallCompleted,
    ToolCallInterrupted,
    ToolCallStarted,
)
from events.session_types import (
    SessionAttached,
    SessionClaimed,
    SessionFailed,
    SessionIdled,
    SessionLeaseLost,
    SessionReleased,
    SessionResultPosted,
    SessionSandboxKept,
    SessionTerminated,
    ToolCallDenied,
    ToolCallRequested,
)
from events.snapshot_types import (
    SandboxAdopted,
    SandboxBranched,
    SandboxForked,
    SandboxFrozen,
    SandboxResumed,
    SandboxSnapshotStored,
    SandboxSnapshotted,
    SandboxSuspended,
    SandboxThawed,
)

EventData = Annotated[
    SessionClaimed
    | SessionAttached
    | SessionResultPosted
    | SessionIdled
    | SessionLeaseLost
    | SessionReleased
    | SessionFailed
    | SessionTerminated
    | SessionSandboxKept
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
    | ToolCallInterrupted
    | SandboxFrozen
    | SandboxThawed
    | SandboxSuspended
    | SandboxResumed
    | SandboxSnapshotted
    | SandboxSnapshotStored
    | SandboxForked
    | SandboxBranched
    | SandboxAdopted
    | SandboxProcessStarted
    | SandboxProcessEnded
    | SandboxForwardOpened
    | SandboxForwardClosed
    | SandboxFileCopied
    | EgressConnected
    | EgressClosed
    | EgressRefused
    | EgressPolicyChanged
    | ReplayVerified
    | ReplayDiverged
    | BisectBegun
    | BisectProbed
    | BisectFound,
    Field(discriminator="type"),
]

__all__ = [
    "BisectBegun",
    "BisectFound",
    "BisectProbed",
    "EgressClosed",
    "EgressConnected",
    "EgressPolicyChanged",
    "EgressRefused",
    "EventData",
    "JsonObject",
    "Limits",
    "Payload",
    "ReplayDiverged",
    "ReplayVerified",
    "SandboxAdopted",
    "SandboxBranched",
    "SandboxCrashed",
    "SandboxCreated",
    "SandboxFileCopied",
    "SandboxForked",
    "SandboxForwardClosed",
    "SandboxForwardOpened",
    "SandboxFrozen",
    "SandboxKilled",
    "SandboxProcessEnded",
    "SandboxProcessStarted",
    "SandboxRecovered",
    "SandboxResumed",
    "SandboxSnapshotStored",
    "SandboxSnapshotted",
    "SandboxStarted",
    "SandboxStopped",
    "SandboxSuspended",
    "SandboxThawed",
    "SessionAttached",
    "SessionClaimed",
    "SessionFailed",
    "SessionIdled",
    "SessionLeaseLost",
    "SessionReleased",
    "SessionResultPosted",
    "SessionSandboxKept",
    "SessionTerminated",
    "ToolCallCompleted",
    "ToolCallDenied",
    "ToolCallInterrupted",
    "ToolCallRequested",
    "ToolCallStarted",
]
