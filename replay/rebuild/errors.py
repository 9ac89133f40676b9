"""What a rebuild refuses or fails at, and why; see `events.errors` for how errors are made.

HourglassError
└── RebuildError
    ├── NotReproducible       the plan has calls or gaps that no rebuild repeats
    ├── NothingLeft           neither a snapshot nor the beginning of the history is left
    ├── OtherDriver           the sandbox's machines are another driver's
    ├── SnapshotUnusable      the snapshot that it would begin from is gone or broken
    ├── CallHung              a call did not end within its time
    ├── MachineFailed         the machine ended, or broke, on the way
    ├── TreeUnreadable        the work tree can't be compared
    ├── ProcessesUnreadable   the guest does not tell its processes
    ├── NoTerminal            a shell needs one, and this process has none
    ├── NoSuchRebuild         no kept rebuild of that name
    ├── NoSuchSnapshot        the log has none of that name, to be left out
    ├── NothingToVerify       neither sandboxes named, nor any in the log
    └── NotRecorded           what was found could not be appended
"""

from __future__ import annotations

from dataclasses import dataclass

from events.errors import HourglassError


class RebuildError(HourglassError):
    """A rebuild was refused or failed; nothing of it is left, and nothing of the sandbox was changed."""


@dataclass(eq=False)
class NotReproducible(RebuildError):
    """{target} can't be rebuilt as it was: {because}."""

    target: str
    because: str
    near: str
    """Which versions can be, for people."""
    next_step = "{near} With --anyway, what can't be repeated is left out, and the result is another one."


@dataclass(eq=False)
class NothingLeft(RebuildError):
    """{target} can't be rebuilt: {because}."""

    target: str
    because: str
    near: str
    next_step = "{near}"


@dataclass(eq=False)
class OtherDriver(RebuildError):
    """{target} ran on machines of the driver {driver}, and here is {here}."""

    target: str
    driver: str
    here: str
    next_step = "Rebuild it on a node that has that driver."


@dataclass(eq=False)
class SnapshotUnusable(RebuildError):
    """{target} can't be begun from the snapshot {snapshot_id} of {of}: {detail}."""

    target: str
    snapshot_id: str
    of: str
    detail: str
    left: str
    """The nearest one that is left and what it costs, for people."""
    next_step = "{left}"


@dataclass(eq=False)
class CallHung(RebuildError):
    """{tool} at {at} did not end within {seconds:g} s when it ran again; recorded are {recorded:.1f} s."""

    tool: str
    at: str
    stream: str
    tool_use_id: str
    seconds: float
    recorded: float
    next_step = "`hourglass log show {stream}` shows it; it may wait for the network, or for a process that is gone."


@dataclass(eq=False)
class MachineFailed(RebuildError):
    """The machine of the rebuild of {target} failed {when}: {detail}."""

    target: str
    when: str
    detail: str
    next_step = "Try again; `hourglass doctor` checks what machines need."


@dataclass(eq=False)
class TreeUnreadable(RebuildError):
    """The work tree of {target} can't be compared: {detail}."""

    target: str
    detail: str
    next_step = (
        "`hourglass rebuild {target} --keep` keeps it to be looked at; `hourglass snapshots verify` checks the store."
    )


@dataclass(eq=False)
class ProcessesUnreadable(RebuildError):
    """The processes of {target} can't be told: {detail}."""

    target: str
    detail: str
    next_step = "`hourglass rebuild {target} --keep` keeps it to be looked at; without --live no guest is asked."


@dataclass(eq=False)
class NoTerminal(RebuildError):
    """There is no terminal here for a shell in the rebuild of {target}."""

    target: str
    next_step = "Run it in a terminal; without --shell it needs none."


@dataclass(eq=False)
class NoSuchRebuild(RebuildError):
    """No rebuild {name} is kept on this node."""

    name: str
    next_step = "`hourglass rebuilds ls` shows those that are."


@dataclass(eq=False)
class NoSuchSnapshot(RebuildError):
    """The log has no snapshot {name}."""

    name: str
    next_step = "`hourglass plan SANDBOX@VERSION` names the snapshot that a version begins from."


@dataclass(eq=False)
class NothingToVerify(RebuildError):
    """There is no sandbox to verify: {because}."""

    because: str
    next_step = "Name sandboxes, or say --all; `hourglass sandboxes` shows what there is."


@dataclass(eq=False)
class NotRecorded(RebuildError):
    """What was found of {stream} could not be recorded: {detail}."""

    stream: str
    detail: str
    next_step = "With --no-record, all is found out and shown the same way."
