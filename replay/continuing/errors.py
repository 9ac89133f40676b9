"""What going on from a branch refuses, and why; see `events.errors` for how errors are made.

HourglassError
└── ContinueError
    ├── NoApiKey              nothing to create a session with
    ├── BranchNotFree         no branch, or none that may be had
    ├── EnvironmentUnknown    the log does not say which environment the branch comes from
    ├── EnvironmentDiffers    the session would be in another one
    ├── AgentUnknown          no agent was named, and the parent session can't be asked
    └── SessionNotCreated     the API refused, or was not there
"""

from __future__ import annotations

from dataclasses import dataclass

from events.errors import HourglassError


class ContinueError(HourglassError):
    """No session was created."""


@dataclass(eq=False)
class NoApiKey(ContinueError):
    """There is no API key to create a session with."""

    next_step = (
        "Set ANTHROPIC_API_KEY to a key of the workspace that has the environment (and ANTHROPIC_BASE_URL, where the "
        "API is not Anthropic's); an environment's key can't create sessions."
    )


@dataclass(eq=False)
class BranchNotFree(ContinueError):
    """No session can go on in it: {because}."""

    because: str
    next_step = (
        "`hourglass branches` shows what there is, `hourglass branch SANDBOX@VERSION` makes one; it serves one session."
    )


@dataclass(eq=False)
class EnvironmentUnknown(ContinueError):
    """The log does not say which environment {branch} comes from."""

    branch: str
    next_step = "A branch is served where its parent session was: use the log of that home."


@dataclass(eq=False)
class EnvironmentDiffers(ContinueError):
    """{branch} comes from environment {theirs}, and no session of {asked} would get it."""

    branch: str
    theirs: str
    asked: str
    next_step = "Leave --environment out."


@dataclass(eq=False)
class AgentUnknown(ContinueError):
    """Which agent session {session_id} had can't be found out: {because}."""

    session_id: str
    because: str
    next_step = "Name one with --agent."


@dataclass(eq=False)
class SessionNotCreated(ContinueError):
    """No session was created: {because}."""

    because: str
    next_step = "Check the agent, the environment, ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL."
