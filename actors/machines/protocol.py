"""What a machine driver is: the two protocols that gVisor, QEMU and Firecracker fill.

A `Driver` makes machines on this node; a `Machine` is one running instance. What happens *inside* a machine goes
through its guest agent (`Machine.guest`), which is the same program for every driver: a driver says nothing of tools.

A failed machine and a failed command are different things: a command that fails is a `ToolResult` with `is_error`; a
machine that fails raises `MachineError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from actors.machines.visiting import VisitedGuest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from events.snapshots import Kept
    from events.types import JsonObject, Limits


class MachineError(Exception):
    """Raised when a machine, not a command in it, failed."""


class MachineUnavailable(MachineError):
    """Raised when a machine can't be started here; the message names the cause and the next step."""


class MachineGone(MachineError):
    """Raised when a machine ended, or its stream did, while something was asked of it."""


class GuestProtocolError(MachineError):
    """Raised when a guest agent breaks the protocol; its machine is not to be spoken to again."""


class SnapshotMissing(MachineUnavailable):
    """Raised when a snapshot is not on this node."""


class SnapshotBroken(MachineUnavailable):
    """Raised when a snapshot is not what it was when it was taken; it is not used."""


class SnapshotForeign(SnapshotBroken):
    """Raised when a snapshot was taken by another driver, or another release of it, than this node has."""


class SnapshotFailed(MachineError):
    """Raised when a snapshot could not be taken; the machine runs on."""


class GuestBusy(MachineError):
    """Raised when a guest can't be made quiet, because a tool call runs in it."""


class IdentityRefused(MachineUnavailable):
    """Raised when a guest could not be made itself; it must not run."""


class EndReason(StrEnum):
    """Why a machine ended."""

    OUT_OF_MEMORY = "out_of_memory"
    EXITED = "exited"
    KILLED = "killed"
    """By us."""


@dataclass(frozen=True, slots=True)
class MachineEnd:
    """How a machine ended."""

    reason: EndReason
    exit_code: int | None
    """None where nobody saw it."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What is asked of a driver."""

    sandbox_id: str
    """`[a-z0-9-]`, at most 40 characters; names the sandbox's file tree, which outlives the machine."""
    template: str
    limits: Limits
    hostname: str = ""
    """"": the sandbox's id."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The outcome of a tool call, as the agent is to see it."""

    content: Sequence[JsonObject]
    """Content blocks (contract §6): text, image or document; never empty."""
    is_error: bool
    output_bytes: int = 0
    """What the command printed in all, before truncation."""
    exit_code: int | None = None
    """Of a command that ended by itself."""


@dataclass(frozen=True, slots=True)
class MachineUsage:
    """What a machine has used, by its control group."""

    cpu_seconds: float
    memory_high_bytes: int
    """The most it had at any moment."""
    memory_bytes: int
    """What it has now."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that was taken."""

    snapshot_id: str
    image_bytes: int
    """Memory and processes, on the disk."""
    held_seconds: float
    """How long the guest stood still."""
    seconds: float
    """From the call until it was durable."""
    usage: MachineUsage
    """At the moment of it."""


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot that lies whole on this node."""

    snapshot_id: str
    sandbox_id: str
    template_root: str
    driver: str
    driver_version: str
    limits: Limits
    taken_at: float
    """Seconds since the epoch."""
    files: Mapping[str, FileRecord]
    """Of the image, by name."""
    image: Path
    """The folder of these files."""
    tree: Path
    """Hostile: never follow a link in it."""

    @property
    def image_bytes(self) -> int:
        """Size of the image's files together."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of an image."""

    size: int
    blake3: str
    """Hex digest of its bytes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `hourglass doctor` looked at."""

    name: str
    ok: bool
    detail: str
    """What was found."""
    why: str = ""
    """Why it matters; where not ok."""
    remedy: str = ""
    """The command that mends it; where not ok."""
    required: bool = True


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """What the agent said of itself when it was greeted. Untrusted: for display alone."""

    agent_version: str
    python: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a guest is to be, after memory was brought back that others may have begun with too."""

    time_ns: int
    """Now, in nanoseconds since the epoch."""
    hostname: str
    machine_id: str
    """32 hex digits, as in machine-id(5)."""
    entropy: str
    """64 bytes, hex."""
    fresh: bool
    """Whether it is another one than the memory's: a fork, a branch, a new sandbox."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a guest says of itself once it was made itself; read back, and checked."""

    hostname: str
    machine_id: str
    clock_offset_ns: int


class Asked(Protocol):
    """A channel that a guest opened; what comes on it is hostile. Bounded: neither side sends more than it may."""

    async def receive(self) -> bytes:
        """The next bytes; empty at the end.

        Raises `MachineGone`, `GuestProtocolError`, and `ChannelRefused` for a reset.
        """
        ...

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes as fast as the guest takes them; with `last`, nothing follows. Raises as `receive`."""
        ...

    def accept(self) -> None:
        """Say yes, and nothing more."""
        ...

    def refuse(self, reason: str) -> None:
        """End it with a reset. No error where it has ended."""
        ...

    def leave(self) -> None:
        """Let go of it; the guest is told where it may still use it."""
        ...


class Egress(Protocol):
    """What serves a guest's wish for the network, on the host."""

    def requested(self, channel: Asked, request: bytes) -> None:
        """The guest opened a channel, asking for this (`actors.guest.egress`); hostile. Must not wait, nor raise."""
        ...


class Guest(VisitedGuest, Protocol):
    """The connection to one guest agent; what visitors ask of it is in `VisitedGuest`.

    Every method raises `MachineGone` when the stream ends and `GuestProtocolError` when the agent misbehaves.
    """

    info: GuestInfo

    async def run_tool(
        self,
        call_id: str,
        tool: str,
        input_: JsonObject,
        *,
        timeout: float,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ToolResult:
        """Run one tool call, exactly once for each `call_id`.

        Asked again with an id that the agent knows (after the host died), the agent attaches to the call that runs or
        answers with the result that it kept, and does not run it twice. `timeout` is wall time in seconds; past it
        the result is an error that says so. `on_output` hears what the command prints, as it prints it, bounded.
        """
        ...

    async def interrupt(self, call_id: str) -> None:
        """End a call that runs: SIGINT, then SIGKILL after two seconds. Its `run_tool` then returns an error result."""
        ...

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file in the guest, making its parents. Raises `OSError` with the guest's reason."""
        ...

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        """Read a regular file of the guest. Raises `OSError` with the guest's reason, or EFBIG above `max_bytes`."""
        ...

    async def remove_tree(self, path: str) -> None:
        """Remove a folder of the guest, links not followed; no error where there is none."""
        ...

    async def quiesce(self) -> None:
        """Stop every process of the machine but the agent, and write out what it has in memory of its files.

        Until `wake`, no call and no program may be started. Raises `GuestBusy` while a tool call runs.
        """
        ...

    async def wake(self) -> None:
        """Let run on what `quiesce` stopped. No error where nothing was."""
        ...

    async def restored(self, identity: Identity) -> Restored:
        """Make the guest itself, before anything else in it runs; then wake it.

        Raises `IdentityRefused` where it could not be: nothing else in it has run then.
        """
        ...

    async def ping(self) -> float:
        """Round trip in seconds."""
        ...

    async def close(self) -> None:
        """Let go of the stream. The machine, and a call that runs in it, go on."""
        ...


class Machine(Protocol):
    """One running instance of a sandbox.

    Freezing and snapshots raise `MachineGone` where it ended under them.
    """

    machine_id: str
    sandbox_id: str
    guest: Guest

    async def wait_ended(self) -> MachineEnd:
        """Return when the machine has ended, and say how."""
        ...

    async def kill(self) -> None:
        """End the machine now; its file tree is kept. No error where it has ended already."""
        ...

    async def release(self) -> None:
        """Let go of it without ending it: `Driver.adopt` finds it again, from this process or the next."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether it gets no CPU; asked of the kernel, so it is right after `adopt` too."""
        ...

    async def freeze(self) -> None:
        """Give it no CPU; memory stays. About a millisecond. No error where it is frozen."""
        ...

    async def thaw(self) -> None:
        """Let it run again. No error where it runs."""
        ...

    async def usage(self) -> MachineUsage:
        """What it has used since it was started or resumed."""
        ...

    async def snapshot(self, snapshot_id: str, *, hold: bool = False, awake: Callable[[], None] | None = None) -> Taken:
        """Take image and file tree together, while the guest is quiet; durable when it returns.

        `awake` is called when the guest runs again, which is earlier. A frozen machine is thawed for it. Afterwards the
        guest runs on; with `hold` it stays quiet until `wake`, so that a caller may record the snapshot first and then
        `kill` a machine whose tree is exactly the snapshot's.
        Raises `GuestBusy` while a tool call runs, `SnapshotFailed` where it could not be taken: nothing of it is left
        then, and the guest runs on.
        """
        ...

    async def wake(self) -> None:
        """Let a guest that a snapshot holds run on. No error where none does. `Driver.adopt` has done it."""
        ...


class Driver(Protocol):
    """Makes machines on this node."""

    name: str

    async def check(self) -> list[Finding]:
        """Everything this driver needs of the node."""
        ...

    async def start(
        self, spec: MachineSpec, *, snapshot_id: str | None = None, fresh: bool = False, egress: Egress | None = None
    ) -> Machine:
        """Start a machine for a sandbox, from a snapshot, from its template, or on the files that it has.

        With `snapshot_id`: memory, processes and files as they are in that snapshot, which may be another sandbox's.
        One that this node has not, or has broken, is got from the snapshot store.
        Without, and with no file tree yet: the booted template. Else a new boot on the tree.

        With `fresh` the guest is made itself before any of its processes runs: new entropy, hostname, machine-id.

        What the guest wants of the network goes to `egress`, from its first instruction on; without it there is none.

        Returns once its agent answers. Raises `MachineUnavailable`, among them `SnapshotBroken` and
        `SnapshotMissing`, and `IdentityRefused`; nothing is left half-made then, but a file tree that was there is
        kept, and so is the snapshot.
        """
        ...

    async def snapshots(self) -> list[SnapshotRecord]:
        """The snapshots that lie whole on this node."""
        ...

    async def store_snapshot(self, snapshot_id: str, *, stream: str, version: int) -> Kept:
        """Put a snapshot of this node, which is of a stream's state at `version`, into the snapshot store.

        Raises `SnapshotMissing`, `SnapshotBroken`, `MachineError`, and `StoreError` where the store fails.
        """
        ...

    async def copy_snapshot(self, snapshot_id: str, copy_id: str, *, sandbox_id: str) -> SnapshotRecord:
        """Make another snapshot of the same memory and files, as a sandbox's that has no machine yet.

        One that this node has not is got from the snapshot store. Raises `SnapshotMissing`, `SnapshotBroken`,
        `MachineError`; nothing of the copy is left then.
        """
        ...

    async def drop_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot from this node. No error where there is none. What was started from it stays."""
        ...

    async def prepare(self, spec: MachineSpec) -> None:
        """Do ahead what `start` of a sandbox like this will need: the template's boot, containers in waiting."""
        ...

    async def sweep(self) -> None:
        """Remove what processes left half-made that were killed. What is young may be somebody's, and stays."""
        ...

    async def close(self) -> None:
        """End what waits for a start that will not come. Machines go on."""
        ...

    async def adopt(self, sandbox_id: str, *, egress: Egress | None = None) -> Machine | None:
        """The running machine of a sandbox, found again after its host died; None where there is none."""
        ...

    async def running(self) -> list[str]:
        """Ids of the sandboxes that have a machine on this node."""
        ...

    async def remove(self, sandbox_id: str) -> None:
        """End the sandbox's machine, if any, and remove its file tree and snapshots. No error where there are none."""
        ...

    def tree(self, sandbox_id: str) -> Path | None:
        """The sandbox's file tree on the host, where the driver has one. Hostile: never follow a link in it."""
        ...
