"""Memory stores: files of text with versions and content preconditions (contract §3.6)."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay.server.errors import ApiError, invalid, missing
from replay.server.metadata import merged

if TYPE_CHECKING:
    from replay.recording import JsonObject
    from replay.server.clock import Clock, Ids

_CONTENT_LIMIT = 102_400
_PATH_LIMIT = 1024
_SEGMENTS_LIMIT = 20
_MEMORIES_LIMIT = 2000


@dataclass
class Store:
    """One memory store. `memories` and `versions` are Memory and MemoryVersion objects with their content, by id."""

    id: str
    name: str
    description: str
    metadata: dict[str, str]
    created_at: str
    updated_at: str
    archived_at: str | None = None
    memories: dict[str, JsonObject] = field(default_factory=dict)
    versions: dict[str, JsonObject] = field(default_factory=dict)

    def shape(self) -> JsonObject:
        """The MemoryStore object."""
        return {
            "id": self.id,
            "type": "memory_store",
            "name": self.name,
            "description": self.description,
            "metadata": self.metadata,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "archived_at": self.archived_at,
        }


class MemoryStores:
    """Every store of the server."""

    def __init__(self, clock: Clock, ids: Ids) -> None:
        self._clock = clock
        self._ids = ids
        self._all: dict[str, Store] = {}

    def create(self, body: JsonObject) -> Store:
        """A new store. Raises ApiError (400)."""
        name = body.get("name")
        if not isinstance(name, str) or not name:
            raise invalid("name: a non-empty string is required")
        stamp = self._clock.stamp()
        metadata = merged({}, body.get("metadata"))
        store = Store(self._ids.mint("memstore_"), name, body.get("description") or "", metadata, stamp, stamp)
        self._all[store.id] = store
        return store

    def update(self, store_id: str, body: JsonObject) -> Store:
        """Change what is given. Raises ApiError (400, 404)."""
        store = self._writable(store_id)
        store.name = body.get("name") or store.name
        store.description = body.get("description") or store.description
        store.metadata = merged(store.metadata, body.get("metadata"))
        store.updated_at = self._clock.stamp()
        return store

    def archive(self, store_id: str) -> Store:
        """Take no more writes. Raises ApiError (404)."""
        store = self.get(store_id)
        store.archived_at = store.archived_at or self._clock.stamp()
        return store

    def delete(self, store_id: str) -> None:
        """Forget a store. Raises ApiError (404)."""
        del self._all[self.get(store_id).id]

    def get(self, store_id: str) -> Store:
        """The store of that id. Raises ApiError (404)."""
        if store_id not in self._all:
            raise missing("Memory store", store_id)
        return self._all[store_id]

    def all(self, *, archived: bool = False) -> list[Store]:
        """Newest first."""
        return [store for store in reversed(self._all.values()) if archived or not store.archived_at]

    def resource(self, asked: JsonObject) -> JsonObject:
        """A store as a session's resource (contract §5). Raises ApiError (400, 404)."""
        store = self.get(str(asked.get("memory_store_id")))
        access = asked.get("access") or "read_write"
        if access not in ("read_write", "read_only"):
            raise invalid("resources.access: must be 'read_write' or 'read_only'")
        slug = "".join(c if c.isalnum() else "-" for c in store.name.lower()).strip("-") or store.id
        return {
            "type": "memory_store",
            "memory_store_id": store.id,
            "access": access,
            "name": store.name,
            "description": store.description,
            "instructions": asked.get("instructions"),
            "mount_path": f"/mnt/memory/{slug}",
        }

    # --- memories -----------------------------------------------------------------------------------------------

    def put(self, store_id: str, body: JsonObject, author: JsonObject) -> JsonObject:
        """A new memory. Raises ApiError (400, 404; 409 where its path is taken)."""
        store = self._writable(store_id)
        path, content = _path(body.get("path")), _content(body.get("content"))
        self._path_free(store, path, None)
        if len(store.memories) >= _MEMORIES_LIMIT:
            raise invalid(f"a memory store holds at most {_MEMORIES_LIMIT} memories")
        stamp = self._clock.stamp()
        memory: JsonObject = {"id": self._ids.mint("mem_"), "type": "memory", "memory_store_id": store_id}
        memory |= {"path": path, "created_at": stamp} | self._fill(content)
        store.memories[memory["id"]] = memory
        self._version(store, memory, "created", author)
        return memory

    def change(self, store_id: str, memory_id: str, body: JsonObject, author: JsonObject) -> JsonObject:
        """New content or path. Raises ApiError (400, 404; 409 where the precondition fails)."""
        store = self._writable(store_id)
        memory = self.memory(store_id, memory_id)
        precondition = body.get("precondition")
        if precondition is not None:
            if not isinstance(precondition, dict) or precondition.get("type") != "content_sha256":
                raise invalid("precondition.type: must be 'content_sha256'")
            _require_digest(memory, precondition.get("content_sha256"))
        path = memory["path"] if body.get("path") is None else _path(body["path"])
        self._path_free(store, path, memory_id)
        content = memory["content"] if body.get("content") is None else _content(body["content"])
        memory |= {"path": path} | self._fill(content)
        self._version(store, memory, "modified", author)
        return memory

    def forget(self, store_id: str, memory_id: str, expected: str | None, author: JsonObject) -> None:
        """Delete a memory. Raises ApiError (404; 409 where its content is not the expected)."""
        store = self._writable(store_id)
        memory = self.memory(store_id, memory_id)
        if expected is not None:
            _require_digest(memory, expected)
        self._version(store, memory, "deleted", author)
        del store.memories[memory_id]

    def memory(self, store_id: str, memory_id: str) -> JsonObject:
        """One memory with its content. Raises ApiError (404)."""
        memory = self.get(store_id).memories.get(memory_id)
        if memory is None:
            raise missing("Memory", memory_id)
        return memory

    def listed(self, store_id: str, prefix: str, depth: int) -> list[JsonObject]:
        """The memories under a path prefix, by path; those deeper than `depth` (0: all) as one `memory_prefix`."""
        found: dict[str, JsonObject] = {}
        for memory in sorted(self.get(store_id).memories.values(), key=lambda one: str(one["path"])):
            if not memory["path"].startswith(prefix):
                continue
            parts = memory["path"].removeprefix(prefix).strip("/").split("/")
            if depth and len(parts) > depth:
                path = prefix.rstrip("/") + "/" + "/".join(parts[:depth]) + "/"
                found.setdefault(path, {"type": "memory_prefix", "path": path})
            else:
                found[memory["path"]] = memory
        return list(found.values())

    def version(self, store_id: str, version_id: str) -> JsonObject:
        """One version. Raises ApiError (404)."""
        version = self.get(store_id).versions.get(version_id)
        if version is None:
            raise missing("Memory version", version_id)
        return version

    def redact(self, store_id: str, version_id: str) -> JsonObject:
        """Take a version's content away. Raises ApiError (400, 404)."""
        version = self.version(store_id, version_id)
        if any(memory["memory_version_id"] == version_id for memory in self.get(store_id).memories.values()):
            raise invalid("a memory's current version can't be redacted")
        version |= {"content": None, "content_sha256": None, "content_size_bytes": None, "path": None}
        version["redacted_at"] = self._clock.stamp()
        return version

    def _fill(self, content: str) -> JsonObject:
        data = content.encode()
        return {
            "content": content,
            "content_sha256": hashlib.sha256(data).hexdigest(),
            "content_size_bytes": len(data),
            "memory_version_id": self._ids.mint("memver_"),
            "updated_at": self._clock.stamp(),
        }

    def _version(self, store: Store, memory: JsonObject, operation: str, author: JsonObject) -> None:
        version_id = self._ids.mint("memver_") if operation == "deleted" else memory["memory_version_id"]
        version = {key: memory[key] for key in ("memory_store_id", "path", "content", "content_sha256",
                                                "content_size_bytes")}  # fmt: skip
        version |= {"id": version_id, "type": "memory_version", "memory_id": memory["id"], "operation": operation}
        store.versions[version_id] = version | {"created_by": author, "created_at": self._clock.stamp()}

    def _writable(self, store_id: str) -> Store:
        store = self.get(store_id)
        if store.archived_at:
            raise invalid(f"memory store {store_id} is archived")
        return store

    @staticmethod
    def _path_free(store: Store, path: str, but: str | None) -> None:
        if any(one["path"] == path and one["id"] != but for one in store.memories.values()):
            raise ApiError(409, f"a memory at {path} exists already")


def view(memory: JsonObject, how: str) -> JsonObject:
    """A memory as `full` or, without its content, as `basic`."""
    return memory if how == "full" or memory["type"] == "memory_prefix" else memory | {"content": None}


def _require_digest(memory: JsonObject, expected: Any) -> None:
    if memory["content_sha256"] != expected:
        raise ApiError(409, f"memory {memory['id']} has changed: its content_sha256 is {memory['content_sha256']}")


def _content(content: Any) -> str:
    if not isinstance(content, str):
        raise invalid("content: a string is required")
    if len(content.encode()) > _CONTENT_LIMIT:
        raise invalid(f"content: at most {_CONTENT_LIMIT} bytes")
    return content


def _path(path: Any) -> str:
    if not isinstance(path, str) or not path.startswith("/") or len(path.encode()) > _PATH_LIMIT:
        raise invalid(f"path: must start with / and have at most {_PATH_LIMIT} bytes")
    segments = path[1:].split("/")
    bad = any(part in ("", ".", "..") for part in segments) or len(segments) > _SEGMENTS_LIMIT
    if bad or unicodedata.normalize("NFC", path) != path or any(unicodedata.category(c) in ("Cc", "Cf") for c in path):
        raise invalid(f"path: {path!r} is not a clean path of 1 to {_SEGMENTS_LIMIT} segments")
    return path
