"""What can be asked of a sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from events.egress_commands import ChangeEgress, CloseEgress, ConnectEgress, EditEgress, FollowSettings, RefuseEgress

if TYPE_CHECKING:
    from events.payload import JsonObject
    from events.sandbox_types import Limits


@dataclass(frozen=True, slots=True)
class Used:
    """What a machine has used since it was started or resumed; None where nobody counted."""

    cpu_seconds: float | None = None
    memory_high_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """A sandbox for a session, without a machine yet; with a parent, a fork of that one at that version."""

    session_id: str
    driver: str
    template: str
    limits: Limits
    parent: str = ""
    parent_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A machine runs for the first time, or again after `Stop`."""

    machine_id: str
    node: str
    seconds: float
    agent_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The machine was ended on purpose."""

    reason: Literal["shutdown", "requested"]
    used: Used = field(default_factory=Used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """The machine ended by itself, or was found dead."""

    reason: Literal["out_of_memory", "exited", "lost", "protocol_violation", "unresponsive"]
    detail: str = ""
    used: Used = field(default_factory=Used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """The machine gets no CPU any more."""

    reason: Literal["idle", "requested", "snapshot", "call"]
    used: Used = field(default_factory=Used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thaw:
    """The frozen machine runs again."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Image and file tree were taken."""

    snapshot_id: str
    node: str
    image_bytes: int
    held_seconds: float
    reason: Literal["turn", "call", "every", "requested", "fork", "suspend"]
    tree_digest: str = ""
    tree_bytes: int | None = None
    of_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSnapshot:
    """The snapshot store has a snapshot of it."""

    snapshot_id: str
    manifest: str
    size: int
    new_size: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend:
    """The machine is in a snapshot that was recorded, and about to end."""

    reason: Literal["idle", "shutdown", "requested", "pressure", "fork"]
    snapshot_id: str
    seconds: float = 0.0
    used: Used = field(default_factory=Used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A machine goes on where the suspended one stopped."""

    machine_id: str
    node: str
    snapshot_id: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Another sandbox is made from a snapshot of this one; one command for each child."""

    child: str
    snapshot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """A branch becomes a session's sandbox; one that is no branch, or another session's, never does."""

    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recover:
    """A machine runs again: the same one, found alive, or after `Crash` a new one on the files."""

    machine_id: str
    node: str
    kept: Literal["memory_and_files", "files"]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Machine and files are gone."""

    reason: Literal["session_over", "requested", "not_kept", "replaced"]
    used: Used = field(default_factory=Used)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCall:
    """A call is about to have effects. Where it decides nothing, the call was started before: do not run it."""

    tool_use_id: str
    tool: str
    input: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteCall:
    """A call has its result."""

    tool_use_id: str
    content: list[JsonObject]
    is_error: bool
    seconds: float
    output_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptCall:
    """A call's own outcome will never be known."""

    tool_use_id: str
    reason: Literal["user", "machine_lost", "out_of_memory", "host_lost", "thread_terminated"]
    content: tuple[JsonObject, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenProcess:
    """A program is about to run beside the calls. Where it decides nothing, it was opened before: do not run it."""

    process_id: str
    command: str
    terminal: bool
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndProcess:
    """Such a program ended, or nobody is connected to it any more."""

    process_id: str
    exit_code: int | None
    seconds: float
    bytes_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenForward:
    """Connections from outside reach a port inside."""

    forward_id: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseForward:
    """They do not any more."""

    forward_id: str
    seconds: float
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCopy:
    """A file begins to go in, or went in or out whole."""

    path: str
    direction: Literal["in", "out"]
    size: int | None


Command = (
    Create
    | Start
    | Stop
    | Crash
    | Recover
    | Freeze
    | Thaw
    | Snapshot
    | StoreSnapshot
    | Suspend
    | Resume
    | Fork
    | Adopt
    | Kill
    | StartCall
    | CompleteCall
    | InterruptCall
    | OpenProcess
    | EndProcess
    | OpenForward
    | CloseForward
    | RecordCopy
    | ChangeEgress
    | EditEgress
    | FollowSettings
    | ConnectEgress
    | CloseEgress
    | RefuseEgress
)
