"""Skills (contract §3.7)."""

from __future__ import annotations

from starlette.responses import Response

from replay.server.credentials import EVERYBODY, Kind
from replay.server.endpoint import Exchange, Rule, json
from replay.server.errors import ApiError
from replay.server.paging import listing


def _may_fetch(call: Exchange) -> None:
    if call.principal.kind is Kind.SESSION and call.platform.settings.skills_refuse_sessions_token:
        raise ApiError(401, "Authentication failed")


async def skills(call: Exchange) -> Response:
    """The skills, newest first."""
    if call.principal.kind is not Kind.API:
        raise ApiError(403, "Token not authorized for this endpoint")
    return json(listing(call.platform.skills.all(), call.query))


async def skill(call: Exchange) -> Response:
    """One skill."""
    return json(call.platform.skills.get(call["skill"]))


async def versions(call: Exchange) -> Response:
    """A skill's versions, newest first."""
    return json(listing(call.platform.skills.versions(call["skill"])[::-1], call.query))


async def version(call: Exchange) -> Response:
    """One version, or the latest."""
    _may_fetch(call)
    return json(call.platform.skills.version(call["skill"], call["version"]))


async def content(call: Exchange) -> Response:
    """A version's archive."""
    _may_fetch(call)
    return Response(call.platform.skills.content(call["skill"], call["version"]), media_type="application/zip")


async def delete(call: Exchange) -> Response:
    """Delete a skill."""
    call.platform.skills.delete(call["skill"])
    return json({"id": call["skill"], "type": "skill_deleted"})


_SKILLS = "/v1/skills"
_SKILL = _SKILLS + "/{skill}"
_API = frozenset({Kind.API})
RULES = [
    Rule("GET", _SKILLS, EVERYBODY, skills),
    Rule("GET", _SKILL, _API, skill),
    Rule("DELETE", _SKILL, _API, delete),
    Rule("GET", f"{_SKILL}/versions", _API, versions),
    Rule("GET", _SKILL + "/versions/{version}", EVERYBODY, version),
    Rule("GET", _SKILL + "/versions/{version}/content", EVERYBODY, content),
]
