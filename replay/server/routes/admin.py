"""The server's own endpoints, under `/_replay`: read-outs, faults, credentials. The API key opens them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from replay.server import faults
from replay.server.credentials import Kind
from replay.server.endpoint import Exchange, Rule, json
from replay.server.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response

    from replay.recording import JsonObject
    from replay.server.platform import Platform


async def recordings(call: Exchange) -> Response:
    """What can be played."""
    library = call.platform.library
    return json({"data": [{"name": name, "description": library.get(name).header.description}
                          for name in library.names]})  # fmt: skip


async def comparison(call: Exchange) -> Response:
    """How a session's results compare with the recorded ones."""
    return json(call.platform.comparison(call["session"]))


async def journal(call: Exchange) -> Response:
    """The requests that were served, oldest first."""
    return json({"data": [asdict(one) for one in call.platform.journal]})


async def fault(call: Exchange) -> Response:
    """Let something go wrong: a fault of requests, or one of these by name."""
    body = await call.body()
    act = _ACTS.get(str(body.get("fault")))
    if act is None:
        call.platform.faults.add(faults.from_json(body))
        return json({"injected": body["fault"]})
    try:
        return json({"injected": body["fault"], "result": act(call.platform, body)})
    except (KeyError, TypeError) as error:
        raise invalid(f"fault {body['fault']!r}: {error}") from None


async def clear_faults(call: Exchange) -> Response:
    """Forget the faults that still wait."""
    call.platform.faults.clear()
    return json({"cleared": True})


async def mint_key(call: Exchange) -> Response:
    """A further key of an environment, as the Console issues."""
    environment = call.platform.environments.get(call["environment"])
    return json({"environment_key": call.platform.credentials.environment_key(environment.id)})


async def add_webhook(call: Exchange) -> Response:
    """Deliver webhooks to a URL on this machine."""
    endpoint = call.platform.webhooks.add(str((await call.body()).get("url", "")))
    return json({"url": endpoint.url, "secret": endpoint.secret})


async def add_skill(call: Exchange) -> Response:
    """A skill from its files."""
    body = await call.body()
    name, files = body.get("name"), body.get("files")
    if not isinstance(name, str) or not isinstance(files, dict):
        raise invalid("a name and files (content by path) are required")
    return json(call.platform.skills.add(name, files, skill_id=body.get("skill_id")))


def _drop_streams(platform: Platform, body: JsonObject) -> Any:
    return platform.drop_streams(body.get("session_id"), after=body.get("after", 0), clean=body.get("clean", False))


def _webhooks(platform: Platform, body: JsonObject) -> None:
    platform.webhooks.duplicates = body.get("duplicates", platform.webhooks.duplicates)
    platform.webhooks.reorder = body.get("reorder", platform.webhooks.reorder)


_ACTS: dict[str, Callable[[Platform, JsonObject], Any]] = {
    "drop_streams": _drop_streams,
    "duplicate_events": lambda platform, body: platform.duplicate_events(body["times"], body.get("session_id")),
    "expire_lease": lambda platform, body: platform.expire_lease(body["work_id"]),
    "revoke": lambda platform, body: platform.credentials.revoke(body["token"]),
    "healthcheck": lambda platform, body: platform.healthcheck(body["environment_id"]),
    "webhooks": _webhooks,
}

_API = frozenset({Kind.API})
RULES = [
    Rule("GET", "/_replay/recordings", _API, recordings),
    Rule("GET", "/_replay/sessions/{session}", _API, comparison),
    Rule("GET", "/_replay/requests", _API, journal),
    Rule("POST", "/_replay/faults", _API, fault),
    Rule("DELETE", "/_replay/faults", _API, clear_faults),
    Rule("POST", "/_replay/environments/{environment}/keys", _API, mint_key),
    Rule("POST", "/_replay/webhooks", _API, add_webhook),
    Rule("POST", "/_replay/skills", _API, add_skill),
]
