"""Sessions and their resources (contract §3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.server.credentials import EVERYBODY, Kind
from replay.server.endpoint import Exchange, Rule, json
from replay.server.errors import invalid, missing
from replay.server.paging import in_period, listing

if TYPE_CHECKING:
    from starlette.responses import Response

    from replay.server.session import Session
    from replay.server.sessions import Seat


def seat_of(call: Exchange) -> Seat:
    """The session that the path names, if the caller may see it. Raises ApiError (403, 404)."""
    seat = call.platform.sessions.seat(call["session"])
    call.principal.require_session(seat.session.id, seat.session.environment_id)
    return seat


async def create(call: Exchange) -> Response:
    """A new session."""
    return json(call.platform.sessions.create(await call.body()).shape())


async def sessions(call: Exchange) -> Response:
    """The sessions, newest first."""
    found = [one for one in call.platform.sessions.all() if _chosen(one, call)]
    if call.query.get("order", "desc") != "asc":
        found.reverse()
    return json(listing([one.shape() for one in found], call.query, most=1000) | {"prev_page": None})


def _chosen(session: Session, call: Exchange) -> bool:
    query, statuses = call.query, call.several("statuses")
    stores = {one["memory_store_id"] for one in session.resources}
    return (
        (session.archived_at is None or call.flag("include_archived"))
        and (not statuses or session.status in statuses)
        and query.get("agent_id", session.agent["id"]) == session.agent["id"]
        and query.get("agent_version", str(session.agent["version"])) == str(session.agent["version"])
        and ("memory_store_id" not in query or query["memory_store_id"] in stores)
        and "deployment_id" not in query
        and in_period(session.created_at, query)
    )


async def retrieve(call: Exchange) -> Response:
    """One session."""
    return json(seat_of(call).session.shape())


async def update(call: Exchange) -> Response:
    """Change a session."""
    return json(call.platform.sessions.update(call["session"], await call.body()).shape())


async def archive(call: Exchange) -> Response:
    """Archive a session."""
    return json(call.platform.sessions.archive(call["session"]).shape())


async def delete(call: Exchange) -> Response:
    """Delete a session."""
    call.platform.sessions.delete(call["session"])
    return json({"id": call["session"], "type": "session_deleted"})


async def resources(call: Exchange) -> Response:
    """A session's resources."""
    found = seat_of(call).session.resources
    return json(listing(found, call.query, key="memory_store_id", default=1000, most=1000))


async def add_resource(call: Exchange) -> Response:
    """Refused: files don't exist on self-hosted."""
    session = seat_of(call).session
    raise invalid(
        f"Environment {session.environment_id} is a self-hosted environment. "
        "`resources` are not supported with self-hosted environments."
    )


async def no_resource(call: Exchange) -> Response:
    """Refused: a memory store has no resource id of its own here."""
    seat_of(call)
    raise missing("Session resource", call["resource"])


_SESSIONS = "/v1/sessions"
_SESSION = _SESSIONS + "/{session}"
_API = frozenset({Kind.API})
RULES = [
    Rule("POST", _SESSIONS, _API, create),
    Rule("GET", _SESSIONS, _API, sessions),
    Rule("GET", _SESSION, EVERYBODY, retrieve),
    Rule("POST", _SESSION, _API, update),
    Rule("DELETE", _SESSION, _API, delete),
    Rule("POST", f"{_SESSION}/archive", _API, archive),
    Rule("GET", f"{_SESSION}/resources", _API, resources),
    Rule("POST", f"{_SESSION}/resources", _API, add_resource),
    Rule("GET", _SESSION + "/resources/{resource}", _API, no_resource),
    Rule("POST", _SESSION + "/resources/{resource}", _API, no_resource),
    Rule("DELETE", _SESSION + "/resources/{resource}", _API, no_resource),
]
