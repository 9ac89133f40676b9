"""What a bisect refuses or ends at, and why; see `events.errors` for how errors are made.

HourglassError
└── BisectError
    ├── CommandRefused        no command, or none that can be run
    ├── RangeReversed         the good version does not come before the bad one
    ├── NothingBetween        nothing that changes anything happened between them
    ├── GoodIsBad             the command fails at the version that was called good
    ├── BadIsGood             it succeeds at the one that was called bad
    ├── EndUntold             one of the two can't be told
    ├── CommandHung           the command did not end within its time
    └── CommandDied           it was killed, or ended as one that was
"""

from __future__ import annotations

from dataclasses import dataclass

from events.errors import HourglassError


class BisectError(HourglassError):
    """A bisect was refused, or ended; nothing of its machines is left, and nothing of the sandbox was changed."""


@dataclass(eq=False)
class CommandRefused(BisectError):
    """The command {command} can't be run: {detail}."""

    command: str
    detail: str
    next_step = "Give a program and its arguments after --, as in -- python3 -m pytest -q."


@dataclass(eq=False)
class RangeReversed(BisectError):
    """The good version {good} of {stream} does not come before the bad one, {bad}."""

    stream: str
    good: int
    bad: int
    next_step = (
        "A bisect finds where something broke: --good is the earlier one. To find where it was mended, negate the "
        "command: -- sh -c '! …'"
    )


@dataclass(eq=False)
class NothingBetween(BisectError):
    """Between {stream}@{good} and {stream}@{bad} no call changes anything."""

    stream: str
    good: int
    bad: int
    next_step = "`hourglass log show {stream}` shows its versions; name ones that are further apart."


@dataclass(eq=False)
class GoodIsBad(BisectError):
    """At {target}, which is called good, the command fails with exit code {code}: {said}."""

    target: str
    code: int
    said: str
    """The last of what it printed, for people."""
    next_step = (
        "Name an earlier version with --good; `hourglass rebuild {target}` shows whether it comes back as it was."
    )


@dataclass(eq=False)
class BadIsGood(BisectError):
    """At {target}, which is called bad, the command succeeds: {said}."""

    target: str
    said: str
    next_step = "Name a later version with --bad; `hourglass rebuild {target}` shows whether it comes back as it was."


@dataclass(eq=False)
class EndUntold(BisectError):
    """{target}, which is called {called}, can't be told: {because}."""

    target: str
    called: str
    """`good` or `bad`."""
    because: str
    next_step = "Name another version with --{called}; `hourglass plan {target}` shows which ones near it come back."


@dataclass(eq=False)
class CommandHung(BisectError):
    """At {target} the command did not end within {seconds:g} s: {said}."""

    target: str
    seconds: float
    said: str
    next_step = (
        "Give it more time with --timeout, or let it end by itself (timeout 10 …); what was probed before is not "
        "probed again."
    )


@dataclass(eq=False)
class CommandDied(BisectError):
    """At {target} the command was killed, or ended as one that was ({how}): {said}."""

    target: str
    how: str
    said: str
    next_step = (
        "That says nothing of the version. Let it end with 125 where it can't tell, or with 1 to 124 where it is bad; "
        "what was probed before is not probed again."
    )
