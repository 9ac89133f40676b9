"""What a branch refuses or fails at, beside what a rebuild does; see `events.errors` for how errors are made.

HourglassError
└── BranchError
    ├── ReplacementUnreadable  not N='{"command": "…"}'
    ├── ReplacedTwice          two replacements of one call
    ├── NoCallThere            the version that is to be replaced is none of a call
    ├── CallTooLate            the call comes after the version that the branch goes to
    ├── UnknownTool            a tool that can't be run in a branch
    ├── RestNotRepeatable      calls after the replaced one, or gaps, that nothing repeats
    ├── NotTheSame             what was rebuilt is not what was there
    └── NotAppended            the branch could not be written into the log
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from events.errors import HourglassError

if TYPE_CHECKING:
    from replay.rebuild.rebuilding import Rebuilt


class BranchError(HourglassError):
    """A branch was refused or failed; its parent is as it was."""


@dataclass(eq=False)
class ReplacementUnreadable(BranchError):
    """{text!r} does not say what is to be replaced: {detail}."""

    text: str
    detail: str
    next_step = (
        'Write the version of a call and a JSON object, as in --replace \'17={{"command": "make"}}\'; another tool\'s '
        "name may stand before the object."
    )


@dataclass(eq=False)
class ReplacedTwice(BranchError):
    """The {tool} at {at} is replaced twice."""

    tool: str
    at: str
    next_step = "A call has one replacement: its beginning and its end are two versions of the same call."


@dataclass(eq=False)
class NoCallThere(BranchError):
    """{stream}@{version} is no tool call: {detail}."""

    stream: str
    version: int
    detail: str
    near: str
    """The calls that are nearest, for people."""
    next_step = "Name the version at which a call of this stream was started, or at which it ended. {near}"


@dataclass(eq=False)
class CallTooLate(BranchError):
    """The call at {at} comes after {target}, which is how far the branch goes."""

    at: str
    target: str
    next_step = "Name a later version to go to; without one, the branch goes to the last."


@dataclass(eq=False)
class UnknownTool(BranchError):
    """{tool} at {at} can't be run in a branch."""

    tool: str
    at: str
    known: str
    next_step = "There are {known}. Name one of them before the JSON object."


@dataclass(eq=False)
class RestNotRepeatable(BranchError):
    """After what is replaced, {target} can't be reached: {because}."""

    target: str
    because: str
    near: str
    next_step = "{near} With --anyway, what can't be repeated is left out."


@dataclass(eq=False)
class NotTheSame(BranchError):
    """{target} did not come back as it was: {detail}."""

    target: str
    detail: str
    found: Rebuilt | None
    """What came back."""
    next_step = "No branch was made; with --anyway it is, and begins with what did come back."


@dataclass(eq=False)
class NotAppended(BranchError):
    """The branch of {target} could not be written into the log: {detail}."""

    target: str
    detail: str
    next_step = "Try again; where a service writes the log, `hourglass branch` needs it to answer."
