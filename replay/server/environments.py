"""Environments and their work queues (contract §3.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay.server.errors import ApiError, invalid
from replay.server.metadata import merged
from replay.server.queue import WorkQueue

if TYPE_CHECKING:
    from replay.recording import JsonObject
    from replay.server.clock import Clock, Ids

SELF_HOSTED: JsonObject = {"type": "self_hosted"}


@dataclass
class Environment:
    """One environment; its queue is the self-hosted workers'."""

    id: str
    name: str
    queue: WorkQueue
    created_at: str
    config: JsonObject = field(default_factory=lambda: dict(SELF_HOSTED))
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    scope: str = "organization"
    updated_at: str = ""
    archived_at: str | None = None

    def shape(self) -> JsonObject:
        """The Environment object."""
        return {
            "id": self.id,
            "type": "environment",
            "name": self.name,
            "config": self.config,
            "description": self.description,
            "metadata": self.metadata,
            "created_at": self.created_at,
            "updated_at": self.updated_at or self.created_at,
            "archived_at": self.archived_at,
            "scope": self.scope,
            "state": "archived" if self.archived_at else "active",
        }


class Environments:
    """Every environment."""

    def __init__(self, clock: Clock, ids: Ids, ttl_seconds: int) -> None:
        self._clock = clock
        self._ids = ids
        self._ttl_seconds = ttl_seconds
        self._all: dict[str, Environment] = {}

    def create(self, body: JsonObject) -> Environment:
        """A new environment. Raises ApiError (400)."""
        name = body.get("name")
        if not isinstance(name, str) or not name:
            raise invalid("name: a non-empty string is required")
        config = _config(body.get("config") or SELF_HOSTED)
        env_id = self._ids.mint("env_")
        queue = WorkQueue(env_id, self._clock, ttl_seconds=self._ttl_seconds)
        environment = Environment(env_id, name, queue, self._clock.stamp(), config)
        self._set(environment, body)
        self._all[env_id] = environment
        return environment

    def update(self, environment_id: str, body: JsonObject) -> Environment:
        """Change what is given. Raises ApiError (400, 404)."""
        environment = self.get(environment_id)
        if environment.archived_at:
            raise invalid(f"Environment {environment_id} is archived", "environment_archived")
        if body.get("config") is not None:
            config = _config(body["config"])
            if config["type"] != environment.config["type"]:
                raise invalid("config.type: an environment's kind can't change", "invalid_config_type_change")
            environment.config = config
        if isinstance(body.get("name"), str):
            environment.name = body["name"]
        self._set(environment, body)
        environment.updated_at = self._clock.stamp()
        return environment

    def archive(self, environment_id: str) -> Environment:
        """Take no more sessions. Raises ApiError (404)."""
        environment = self.get(environment_id)
        environment.archived_at = environment.archived_at or self._clock.stamp()
        return environment

    def delete(self, environment_id: str) -> None:
        """Forget it. Raises ApiError (404)."""
        del self._all[self.get(environment_id).id]

    def get(self, environment_id: str) -> Environment:
        """The environment of that id. Raises ApiError (404)."""
        try:
            return self._all[environment_id]
        except KeyError:
            message = f"Environment not found: {environment_id}"
            raise ApiError(404, message, details={"error_code": "environment_not_found"}) from None

    def all(self, *, archived: bool = False) -> list[Environment]:
        """Newest first."""
        return [one for one in reversed(self._all.values()) if archived or not one.archived_at]

    @staticmethod
    def _set(environment: Environment, body: JsonObject) -> None:
        if "description" in body:
            environment.description = body["description"]
        if body.get("scope") is not None:
            environment.scope = body["scope"]
        environment.metadata = merged(environment.metadata, body.get("metadata"))


def _config(config: Any) -> JsonObject:
    kind = config.get("type") if isinstance(config, dict) else None
    if kind not in ("self_hosted", "cloud"):
        raise invalid("config.type: must be 'self_hosted' or 'cloud'")
    if kind == "self_hosted" and len(config) > 1:
        raise invalid("config: a self_hosted environment takes nothing but its type")
    return dict(config)
