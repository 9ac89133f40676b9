"""Pauses, snapshots, forks and branches: events of the stream `sandbox-<id>`."""

from __future__ import annotations

from typing import ClassVar, Literal

from events.payload import Payload
from events.sandbox_types import Limits


class SandboxFrozen(Payload):
    """The machine keeps its memory and gets no CPU."""

    type: Literal["sandbox.frozen"] = "sandbox.frozen"
    reason: Literal["idle", "requested", "snapshot", "call"]
    """`call`: until the next tool call, while the model thinks."""
    cpu_seconds: float | None = None
    """CPU time of the machine since it was started or resumed; None where nobody counted."""
    memory_high_bytes: int | None = None
    """The most memory it had since then."""


class SandboxThawed(Payload):
    """The frozen machine runs again."""

    type: Literal["sandbox.thawed"] = "sandbox.thawed"
    seconds: float


class SandboxSuspended(Payload):
    """The machine is on disk, as a snapshot; no memory and no process is left of it."""

    type: Literal["sandbox.suspended"] = "sandbox.suspended"
    reason: Literal["idle", "shutdown", "requested", "pressure", "fork"]
    """`pressure`: others needed the memory or the place. `fork`: it begins so, on its parent's snapshot."""
    snapshot_id: str
    seconds: float = 0.0
    """From the call until the snapshot was durable."""
    cpu_seconds: float | None = None
    """CPU time of the machine since it was started or resumed; None where nobody counted."""
    memory_high_bytes: int | None = None
    """The most memory it had since then."""


class SandboxResumed(Payload):
    """A new machine goes on where the suspended one stopped, memory and processes included."""

    type: Literal["sandbox.resumed"] = "sandbox.resumed"
    machine_id: str
    node: str
    snapshot_id: str
    seconds: float


class SandboxSnapshotted(Payload):
    """Image and file tree were taken together, while no tool call ran.

    The snapshot is of the state at `of_version`; where that is 0, at the version before this event.
    """

    schema_version: ClassVar[int] = 2

    type: Literal["sandbox.snapshotted"] = "sandbox.snapshotted"
    snapshot_id: str
    node: str
    image_bytes: int
    """Memory and processes."""
    tree_digest: str = ""
    """Of the work tree, where it was computed."""
    tree_bytes: int | None = None
    """What the file tree alone takes beside its parent's; None where nobody counted."""
    seconds: float
    """How long the machine stood still."""
    reason: Literal["turn", "call", "every", "requested", "fork", "suspend"] = "requested"
    of_version: int = 0
    """Of this stream: calls go on as soon as the machine does, and this event comes when the snapshot is durable."""


class SandboxSnapshotStored(Payload):
    """The snapshot store has a snapshot whole: its node may go."""

    type: Literal["sandbox.snapshot_stored"] = "sandbox.snapshot_stored"
    snapshot_id: str
    manifest: str
    """Digest of its manifest."""
    bytes: int
    """Image and files, whole."""
    new_bytes: int
    """What the store has grown by."""
    seconds: float
    """How long that took, in the background."""


class SandboxForked(Payload):
    """Another sandbox was made from this one, as it was at that moment. In the parent's stream."""

    type: Literal["sandbox.forked"] = "sandbox.forked"
    child: str
    """Id of the new sandbox, whose stream begins with `sandbox.created` in the same transaction."""
    snapshot_id: str


class SandboxBranched(Payload):
    """A sandbox that begins at a past version of another. First event of its stream; no machine runs yet."""

    type: Literal["sandbox.branched"] = "sandbox.branched"
    parent: str
    """Id of the other sandbox."""
    parent_version: int
    """Of the parent's stream: the child's history is the parent's up to here, then its own."""
    snapshot_id: str
    """What the rebuild began from; "" where it was the template."""
    session_id: str
    """"" where no session uses it yet."""
    driver: str
    template: str
    limits: Limits


class SandboxAdopted(Payload):
    """A branch that no session used is this session's sandbox from here on, for ever."""

    type: Literal["sandbox.adopted"] = "sandbox.adopted"
    session_id: str
