"""Turn a served session into a recording: its events and its agent, read from the API."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from events.errors import HourglassError
from replay.recording import FORMAT, Header, JsonObject, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anthropic import Anthropic

_PAGE = 1000


@dataclass(eq=False)
class NoCredential(HourglassError):
    """There is no credential to read the session with."""

    next_step = (
        "Set ANTHROPIC_API_KEY, or ANTHROPIC_ENVIRONMENT_KEY with the key of the session's environment "
        "(ANTHROPIC_BASE_URL too, where the API is not Anthropic's)."
    )


@dataclass(eq=False)
class SessionUnreadable(HourglassError):
    """The session {session_id} can't be read: {reason}."""

    session_id: str
    reason: str
    next_step = "Check the session's id, the credential, and ANTHROPIC_BASE_URL."


def client_from_environment() -> Anthropic:
    """A client with the environment key, or else what the SDK itself finds. Raises NoCredential."""
    import anthropic

    if key := os.environ.get("ANTHROPIC_ENVIRONMENT_KEY"):
        # An API key beside it would win, and may belong to another organization.
        return anthropic.Anthropic(auth_token=key, api_key=None)
    if not (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")):
        raise NoCredential
    return anthropic.Anthropic()


def fetch(client: Anthropic, session_id: str, name: str | None = None) -> tuple[Header, list[JsonObject]]:
    """A session's header and events.

    Args:
        client: Reads the session: with an API key, or with its environment's key.
        session_id: `sesn_…`.
        name: The recording's name; the session's title or id where None.

    Raises:
        SessionUnreadable: The API refused, or was not there.
    """
    import anthropic

    try:
        session = _json(client.beta.sessions.with_raw_response.retrieve(session_id))
        events = list(events_of(client, session_id))
    except anthropic.APIError as error:
        raise SessionUnreadable(session_id, error.message) from error
    header = Header(
        recording=FORMAT,
        name=name or session.get("title") or session["id"],
        agent=session["agent"],
        session_id=session["id"],
        recorded_at=session["created_at"],
    )
    return header, events


def record(client: Anthropic, session_id: str, path: Path, name: str | None = None) -> int:
    """Write a session's recording to `path`, whole or not at all; returns how many events it has.

    Raises:
        SessionUnreadable: The API refused, or was not there.
        RecordingError: The events don't make a recording, or the file can't be written.
    """
    header, events = fetch(client, session_id, name)
    write(path, header, events)
    return len(events)


def events_of(client: Anthropic, session_id: str) -> Iterator[JsonObject]:
    """A session's events, as the API lists them. Raises what the SDK raises."""
    page: str | None = None
    while True:
        more = {"page": page} if page else {}
        listed = _json(client.beta.sessions.events.with_raw_response.list(session_id, limit=_PAGE, extra_query=more))
        yield from listed["data"]
        page = listed.get("next_page")
        if not page:
            return


def _json(response: Any) -> JsonObject:
    """What the API sent, byte for byte: the SDK's models would drop or bend what they do not know."""
    parsed: JsonObject = orjson.loads(response.read())
    return parsed
