"""Creating the session that goes on in a branch, with the customer's key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from events.continuing import BRANCH_KEY, MOST_PARENTS, why_not
from events.sandbox_state import load
from events.types import SessionClaimed
from replay.continuing.errors import (
    AgentUnknown,
    BranchNotFree,
    EnvironmentDiffers,
    EnvironmentUnknown,
    NoApiKey,
    SessionNotCreated,
)
from replay.record import SessionUnreadable, client_from_environment, events_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anthropic import Anthropic

    from events.log import EventLog
    from events.payload import JsonObject

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a branch comes from."""

    session_id: str
    environment_id: str


def client_with_key() -> Anthropic:
    """A client that may create sessions. Raises `NoApiKey`."""
    if not (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")):
        raise NoApiKey
    import anthropic

    return anthropic.Anthropic(timeout=_TIMEOUT_S)


def reader(client: Anthropic | None = None) -> Callable[[str], Sequence[JsonObject]]:
    """Reads a session's events from the API, with any credential that there is; see `transcript.Read`."""

    def read(session_id: str) -> Sequence[JsonObject]:
        import anthropic

        with_credential = client or client_from_environment().with_options(timeout=_TIMEOUT_S)
        try:
            return list(events_of(with_credential, session_id))
        except anthropic.APIError as error:
            raise SessionUnreadable(session_id, error.message) from error
        except (KeyError, TypeError, ValueError) as error:
            raise SessionUnreadable(session_id, "the API's answer is none that we know") from error

    return read


def offline(session_id: str) -> Sequence[JsonObject]:
    """Asks nobody."""
    raise SessionUnreadable(session_id, "the API was not to be asked")


def origin_of(log: EventLog, branch: str) -> Origin:
    """The session and the environment behind a branch that may be had.

    Raises:
        BranchNotFree: it may not.
        EnvironmentUnknown: the log does not say.
        LogError: as `EventLog.read`.
    """
    state = load(log, branch)
    refused = why_not(state)
    if refused:
        raise BranchNotFree(because=refused)
    for _ in range(MOST_PARENTS):
        if not state.parent or state.session_id:
            break
        state = load(log, state.parent)
    claims = [one for one in log.read_data(f"session-{state.session_id}") if isinstance(one, SessionClaimed)]
    if not state.session_id or not claims:
        raise EnvironmentUnknown(branch=branch)
    return Origin(state.session_id, claims[-1].environment_id)


def environment_of(origin: Origin, branch: str, asked: str | None) -> str:
    """The environment of the new session. Raises `EnvironmentDiffers`: the host would refuse it there."""
    if asked is not None and asked != origin.environment_id:
        raise EnvironmentDiffers(branch=branch, theirs=origin.environment_id, asked=asked)
    return origin.environment_id


def agent_of(client: Anthropic, session_id: str) -> dict[str, Any]:
    """The agent that a session had, in the same version. Raises `AgentUnknown`."""
    import anthropic

    try:
        agent = client.beta.sessions.retrieve(session_id).agent
        return {"type": "agent", "id": str(agent.id), "version": int(agent.version)}
    except anthropic.APIError as error:
        raise AgentUnknown(session_id=session_id, because=error.message) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise AgentUnknown(session_id=session_id, because="the API's answer is none that we know") from error


def begin(
    client: Anthropic, *, agent: str | dict[str, Any], environment_id: str, branch: str, record: str, message: str
) -> str:
    """Create the session; its id.

    The record of what happened before and the new message are two blocks of its first message.

    Raises:
        SessionNotCreated: the API refused, or was not there.
    """
    import anthropic

    content: list[Any] = [{"type": "text", "text": one} for one in (record, message)]
    try:
        session = client.beta.sessions.create(
            agent=agent,  # type: ignore[arg-type]
            environment_id=environment_id,
            metadata={BRANCH_KEY: branch},
            initial_events=[{"type": "user.message", "content": content}],
        )
    except anthropic.APIError as error:
        raise SessionNotCreated(because=" ".join(error.message.split())[:500]) from error
    return session.id
