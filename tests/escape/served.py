"""A session that is served with keys which nobody else has, and canaries where a search must be able to look.

The app's own tool holds the session up between two calls: the sandbox lives then, and nothing in it runs for us.
"""

from __future__ import annotations

import base64
import codecs
import secrets
import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from replay.server.credentials import Kind, pack_secret
from tests.replay.draft import Draft
from tests.service import Installed

if TYPE_CHECKING:
    from anthropic import Anthropic

    from replay.server.platform import Platform

TOOL = {
    "type": "custom",
    "name": "wait",
    "description": "Holds the session up.",
    "input_schema": {"type": "object", "properties": {}},
}
_UNTURN = "tr a-zA-Z n-za-mN-ZA-M"
_LOOK = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'; env"


def canary() -> str:
    """Letters alone, as random as a key."""
    return "".join(secrets.choice(string.ascii_letters) for _ in range(40))


@dataclass
class Canaries:
    """What must be found, each where it was put."""

    held: str = field(default_factory=canary)
    """In the guest: memory, and the environment of what runs there."""
    kept: str = field(default_factory=canary)
    """In a file of the guest."""
    asked: str = field(default_factory=canary)
    """In a tool's input."""
    worker: str = field(default_factory=canary)
    """The worker's name, which requests to the API have: in what is logged at debug level."""
    hosted: str = field(default_factory=canary)
    """In environment and command line of a process on the host."""

    def recording(self) -> Draft:
        """A session that plants those of the guest, looks at its processes, and waits."""
        draft = Draft("keys", "Plants canaries.", tools=[TOOL])
        # Turned, so that what is planted is nowhere else.
        held, kept = (codecs.encode(one, "rot13") for one in (self.held, self.kept))
        draft.user("Go.").bash(
            f": {self.asked}; export HELD=$(echo {held} | {_UNTURN}); echo {kept} | {_UNTURN} > kept.txt; sleep 1000 &"
        )
        return (
            draft.bash(_LOOK).custom("wait").bash("cat kept.txt >/dev/null && echo it is there").says("Done.").rests()
        )


@dataclass
class WithKeys(Installed):
    """A service with every key in its environment, which says all that it has to say."""

    more: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """See `Installed`."""
        return {**super().variables, "ANTHROPIC_API_KEY": self.server.api_key, **self.more}

    def keys(self) -> dict[str, str]:
        """Every key that the service was ever given, by what it is."""
        tokens = self.server.call(_tokens)
        assert tokens, "no item came with a token"
        found = {"the environment key": self.environment.key, "the API key": self.server.api_key}
        for number, token in enumerate(tokens):
            found[f"the session's token {number}"] = token
            found[f"the item's secret {number}"] = _secret(token)
        return found

    def waits(self, session_id: str) -> str:
        """Wait until the session is held up; the id of the call that does it."""

        def call(platform: Platform) -> str:
            events = platform.sessions.seat(session_id).session.feed.events
            return next((str(one["id"]) for one in events if one["type"] == "agent.custom_tool_use"), "")

        return self.server.wait_for(call, 60, "the session to be held up")


def go_on(app: Anthropic, session_id: str, call: str) -> None:
    """Answer the app's own tool."""
    content = [{"type": "text", "text": "Go on."}]
    answer = {"type": "user.custom_tool_result", "custom_tool_use_id": call, "content": content}
    app.beta.sessions.events.send(session_id, events=[answer])  # type: ignore[list-item]


def _tokens(platform: Platform) -> list[str]:
    known = platform.credentials._known
    return [token for token, principal in known.items() if principal.kind is Kind.SESSION]


def _secret(token: str) -> str:
    """The part of an item's secret that the token alone decides; what comes after it is random, and kept by nobody."""
    known = orjson.dumps({"sessions_token": token})[:-1]
    part = base64.urlsafe_b64encode(known[: len(known) // 3 * 3]).decode()
    assert pack_secret(token).startswith(part)
    return part
