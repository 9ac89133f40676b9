"""Memory stores and memories (contract §3.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.server.credentials import Kind
from replay.server.endpoint import Exchange, Rule, json
from replay.server.errors import ApiError, invalid
from replay.server.memory import view
from replay.server.paging import in_period, listing, page, whole_number

if TYPE_CHECKING:
    from starlette.responses import Response

    from replay.recording import JsonObject


def _store(call: Exchange, *, write: bool = False) -> str:
    """The store that the path names, if the caller may use it so. A token sees its own session's stores alone."""
    store_id = call["store"]
    call.platform.stores.get(store_id)
    if call.principal.kind is Kind.SESSION:
        session = call.platform.sessions.seat(call.principal.session_id).session
        access = {one["memory_store_id"]: one["access"] for one in session.resources}.get(store_id)
        if access is None:
            raise ApiError(403, "Token not authorized for this memory store")
        if write and access == "read_only":
            raise ApiError(403, "This session's access to the memory store is read_only")
    return store_id


def _author(call: Exchange) -> JsonObject:
    if call.principal.kind is Kind.SESSION:
        return {"type": "session_actor", "session_id": call.principal.session_id}
    return {"type": "api_actor", "api_key_id": "apikey_replay"}


def _view(call: Exchange, default: str) -> str:
    how = call.query.get("view", default)
    if how not in ("basic", "full"):
        raise invalid("view: must be 'basic' or 'full'")
    return how


async def create(call: Exchange) -> Response:
    """A new store."""
    store = call.platform.stores.create(await call.body())
    call.platform.webhooks.emit("memory_store.created", store.id)
    return json(store.shape())


async def stores(call: Exchange) -> Response:
    """The stores, newest first."""
    found = call.platform.stores.all(archived=call.flag("include_archived"))
    return json(listing([one.shape() for one in found if in_period(one.created_at, call.query)], call.query))


async def retrieve(call: Exchange) -> Response:
    """One store."""
    return json(call.platform.stores.get(_store(call)).shape())


async def update(call: Exchange) -> Response:
    """Change a store."""
    return json(call.platform.stores.update(_store(call), await call.body()).shape())


async def archive(call: Exchange) -> Response:
    """Archive a store."""
    return json(call.platform.stores.archive(_store(call)).shape())


async def delete(call: Exchange) -> Response:
    """Delete a store."""
    store_id = _store(call)
    call.platform.stores.delete(store_id)
    return json({"id": store_id, "type": "memory_store_deleted"})


async def memories(call: Exchange) -> Response:
    """The memories of a store, by path."""
    store_id, how = _store(call), _view(call, "basic")
    prefix = call.query.get("path_prefix", "/")
    if not prefix.startswith("/") or not prefix.endswith("/"):
        raise invalid("path_prefix: must start and end with /")
    depth = whole_number(call.query, "depth", 0, 20) or 0
    found = call.platform.stores.listed(store_id, prefix, depth)
    chosen, following = page(found, call.query, lambda one: str(one["path"]), most=20 if how == "full" else 100)
    return json({"data": [view(one, how) for one in chosen], "next_page": following})


async def put(call: Exchange) -> Response:
    """A new memory."""
    memory = call.platform.stores.put(_store(call, write=True), await call.body(), _author(call))
    return json(view(memory, _view(call, "full")))


async def memory(call: Exchange) -> Response:
    """One memory."""
    return json(view(call.platform.stores.memory(_store(call), call["memory"]), _view(call, "full")))


async def change(call: Exchange) -> Response:
    """Change a memory."""
    store_id = _store(call, write=True)
    changed = call.platform.stores.change(store_id, call["memory"], await call.body(), _author(call))
    return json(view(changed, _view(call, "full")))


async def forget(call: Exchange) -> Response:
    """Delete a memory."""
    expected = call.query.get("expected_content_sha256")
    call.platform.stores.forget(_store(call, write=True), call["memory"], expected, _author(call))
    return json({"id": call["memory"], "type": "memory_deleted"})


async def versions(call: Exchange) -> Response:
    """The versions of a store's memories, newest first."""
    query = call.query
    found = [
        one
        for one in reversed(call.platform.stores.get(_store(call)).versions.values())
        if query.get("memory_id", one["memory_id"]) == one["memory_id"]
        and query.get("operation", one["operation"]) == one["operation"]
        and ("session_id" not in query or one["created_by"].get("session_id") == query["session_id"])
        and in_period(one["created_at"], query)
    ]
    how = _view(call, "basic")
    body = listing(found, query)
    return json(body | {"data": [view(one, how) for one in body["data"]]})


async def version(call: Exchange) -> Response:
    """One version."""
    return json(call.platform.stores.version(_store(call), call["version"]))


async def redact(call: Exchange) -> Response:
    """Take a version's content away."""
    return json(call.platform.stores.redact(_store(call, write=True), call["version"]))


_STORES = "/v1/memory_stores"
_STORE = _STORES + "/{store}"
_API = frozenset({Kind.API})
_BOTH = frozenset({Kind.API, Kind.SESSION})
RULES = [
    Rule("POST", _STORES, _API, create),
    Rule("GET", _STORES, _API, stores),
    Rule("GET", _STORE, _BOTH, retrieve),
    Rule("POST", _STORE, _API, update),
    Rule("DELETE", _STORE, _API, delete),
    Rule("POST", f"{_STORE}/archive", _API, archive),
    Rule("GET", f"{_STORE}/memories", _BOTH, memories),
    Rule("POST", f"{_STORE}/memories", _BOTH, put),
    Rule("GET", _STORE + "/memories/{memory}", _BOTH, memory),
    Rule("POST", _STORE + "/memories/{memory}", _BOTH, change),
    Rule("DELETE", _STORE + "/memories/{memory}", _BOTH, forget),
    Rule("GET", f"{_STORE}/memory_versions", _BOTH, versions),
    Rule("GET", _STORE + "/memory_versions/{version}", _BOTH, version),
    Rule("POST", _STORE + "/memory_versions/{version}/redact", _API, redact),
]
