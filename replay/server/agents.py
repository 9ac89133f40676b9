"""Agents: created, versioned, resolved into what a session carries (contract §3.5)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from replay.server.errors import ApiError, invalid, missing

if TYPE_CHECKING:
    from replay.recording import JsonObject
    from replay.server.clock import Clock, Ids

TOOLSET = "agent_toolset_20260401"
TOOLSET_NAMES = ("bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search")
_TOOLS_LIMIT = 256
_FIELDS = ("name", "description", "system", "metadata", "multiagent", "mcp_servers", "skills", "tools", "model",
           "execution_identity")  # fmt: skip
_CUSTOM_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Agents:
    """Every version of every agent."""

    def __init__(self, clock: Clock, ids: Ids) -> None:
        self._clock = clock
        self._ids = ids
        self._versions: dict[str, list[JsonObject]] = {}

    def create(self, body: JsonObject) -> JsonObject:
        """Version 1 of a new agent. Raises ApiError (400)."""
        stamp = self._clock.stamp()
        agent: JsonObject = {"id": self._ids.mint("agent_"), "type": "agent", "version": 1}
        agent |= resolve(body) | {"created_at": stamp, "updated_at": stamp, "archived_at": None}
        self._versions[agent["id"]] = [agent]
        return agent

    def update(self, agent_id: str, body: JsonObject) -> JsonObject:
        """A further version. Raises ApiError (400, 404; 409 where `version` is not the latest)."""
        latest = self.get(agent_id)
        if body.get("version") not in (None, latest["version"]):
            raise ApiError(409, f"agent {agent_id} is at version {latest['version']}, not {body['version']}")
        if latest["archived_at"]:
            raise invalid(f"agent {agent_id} is archived")
        given = {key: body[key] for key in _FIELDS if key in body}
        agent = latest | resolve({key: latest[key] for key in _FIELDS} | given)
        agent |= {"version": latest["version"] + 1, "updated_at": self._clock.stamp()}
        self._versions[agent_id].append(agent)
        return agent

    def archive(self, agent_id: str) -> JsonObject:
        """Take no more sessions. Raises ApiError (404)."""
        agent = self.get(agent_id)
        agent["archived_at"] = agent["archived_at"] or self._clock.stamp()
        return agent

    def get(self, agent_id: str, version: int | None = None) -> JsonObject:
        """An agent's latest version, or the one asked for. Raises ApiError (404)."""
        versions = self._versions.get(agent_id)
        if versions is None:
            raise missing("Agent", agent_id)
        if version is None:
            return versions[-1]
        if not 1 <= version <= len(versions):
            raise missing(f"Agent {agent_id}, version", str(version))
        return versions[version - 1]

    def versions(self, agent_id: str) -> list[JsonObject]:
        """Newest first. Raises ApiError (404)."""
        self.get(agent_id)
        return self._versions[agent_id][::-1]

    def all(self, *, archived: bool = False) -> list[JsonObject]:
        """The latest version of each agent, newest agent first."""
        latest = [versions[-1] for versions in reversed(self._versions.values())]
        return [agent for agent in latest if archived or not agent["archived_at"]]

    def snapshot(self, asked: Any) -> JsonObject:
        """The agent of a new session, as its body names it: an id, an id and version, or overrides (contract §3.3)."""
        if isinstance(asked, str):
            asked = {"type": "agent", "id": asked}
        if not isinstance(asked, dict) or not isinstance(asked.get("id"), str):
            raise invalid("agent: an agent id, or an object with one, is required")
        if asked.get("type") not in ("agent", "agent_with_overrides"):
            raise invalid("agent.type: must be 'agent' or 'agent_with_overrides'")
        agent = self.get(asked["id"], asked.get("version"))
        if agent["archived_at"]:
            raise invalid(f"agent {agent['id']} is archived")
        if asked["type"] == "agent_with_overrides":
            overrides = {key: asked[key] for key in _FIELDS if key in asked and key != "metadata"}
            agent = agent | resolve({key: agent[key] for key in _FIELDS} | overrides)
        return {key: value for key, value in agent.items() if key not in ("created_at", "updated_at", "archived_at")}


def resolve(body: JsonObject) -> JsonObject:
    """An agent's fields with every default filled in. Raises ApiError (400)."""
    name, model = body.get("name"), body.get("model")
    if not isinstance(name, str) or not name:
        raise invalid("name: a non-empty string is required")
    if isinstance(model, str):
        model = {"id": model}
    if not isinstance(model, dict) or not isinstance(model.get("id"), str):
        raise invalid("model: a model id is required")
    tools = body.get("tools") or []
    if not isinstance(tools, list) or len(tools) > _TOOLS_LIMIT:
        raise invalid(f"tools: must be a list of at most {_TOOLS_LIMIT}")
    return {
        "name": name,
        "model": model,
        "description": body.get("description"),
        "system": body.get("system"),
        "tools": [_tool(tool, f"tools.{index}") for index, tool in enumerate(tools)],
        "skills": [_skill(skill, f"skills.{index}") for index, skill in enumerate(body.get("skills") or [])],
        "mcp_servers": body.get("mcp_servers") or [],
        "multiagent": body.get("multiagent"),
        "execution_identity": body.get("execution_identity") or {"type": "service_account"},
        "metadata": body.get("metadata") or {},
    }


def _skill(skill: Any, at: str) -> JsonObject:
    if not isinstance(skill, dict) or not isinstance(skill.get("skill_id"), str):
        raise invalid(f"{at}.skill_id: a skill id is required")
    return {"type": skill.get("type", "custom"), "skill_id": skill["skill_id"],
            "version": skill.get("version") or "latest"}  # fmt: skip


def _tool(tool: Any, at: str) -> JsonObject:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind == TOOLSET:
        return _toolset(tool, "always_allow", TOOLSET_NAMES, at)
    if kind == "mcp_toolset":
        return _toolset(tool, "always_ask", (), at) | {"mcp_server_name": tool.get("mcp_server_name")}
    if kind != "custom":
        raise invalid(f"{at}.type: must be '{TOOLSET}', 'mcp_toolset' or 'custom'")
    name = tool.get("name")
    taken = isinstance(name, str) and (name in TOOLSET_NAMES or name.startswith("mcp__"))
    if not isinstance(name, str) or taken or not _CUSTOM_NAME.fullmatch(name):
        raise invalid(f"{at}.name: {name!r} can't be a custom tool's name")
    if not tool.get("description") or not isinstance(tool.get("input_schema"), dict):
        raise invalid(f"{at}: a custom tool needs a description and an input_schema")
    return {key: tool[key] for key in ("type", "name", "description", "input_schema")}


def _toolset(tool: JsonObject, policy: str, names: tuple[str, ...], at: str) -> JsonObject:
    default = {"enabled": True, "permission_policy": {"type": policy}} | (tool.get("default_config") or {})
    given = {config.get("name"): config for config in tool.get("configs") or []}
    if names and (unknown := set(given) - set(names)):
        raise invalid(f"{at}.configs: no tool named {sorted(map(str, unknown))[0]}")
    kind = {"type": tool["type"]} if tool["type"] == TOOLSET else {}
    configs = [{"name": name} | default | given.get(name, {}) | kind for name in names or given]
    return {"type": tool["type"], "configs": configs, "default_config": default}
