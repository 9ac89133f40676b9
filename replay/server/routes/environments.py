"""Environments and agents: what an app sets up (contract §3.1, §3.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.server.credentials import Kind
from replay.server.endpoint import Exchange, Rule, json
from replay.server.paging import in_period, listing, whole_number

if TYPE_CHECKING:
    from starlette.responses import Response


async def create(call: Exchange) -> Response:
    """A new environment."""
    environment = call.platform.environments.create(await call.body())
    call.platform.webhooks.emit("environment.created", environment.id)
    return json(environment.shape())


async def environments(call: Exchange) -> Response:
    """The environments, newest first."""
    found = call.platform.environments.all(archived=call.flag("include_archived"))
    return json(listing([one.shape() for one in found], call.query))


async def retrieve(call: Exchange) -> Response:
    """One environment."""
    return json(call.platform.environments.get(call["environment"]).shape())


async def update(call: Exchange) -> Response:
    """Change an environment."""
    environment = call.platform.environments.update(call["environment"], await call.body())
    call.platform.webhooks.emit("environment.updated", environment.id)
    return json(environment.shape())


async def archive(call: Exchange) -> Response:
    """Archive an environment."""
    environment = call.platform.environments.archive(call["environment"])
    call.platform.webhooks.emit("environment.archived", environment.id)
    return json(environment.shape())


async def delete(call: Exchange) -> Response:
    """Delete an environment."""
    call.platform.environments.delete(call["environment"])
    call.platform.webhooks.emit("environment.deleted", call["environment"])
    return json({"id": call["environment"], "type": "environment_deleted"})


async def create_agent(call: Exchange) -> Response:
    """A new agent."""
    agent = call.platform.agents.create(await call.body())
    call.platform.webhooks.emit("agent.created", agent["id"])
    return json(agent)


async def agents(call: Exchange) -> Response:
    """The agents, newest first."""
    found = call.platform.agents.all(archived=call.flag("include_archived"))
    return json(listing([one for one in found if in_period(one["created_at"], call.query)], call.query))


async def retrieve_agent(call: Exchange) -> Response:
    """One agent, or one version of it."""
    return json(call.platform.agents.get(call["agent"], whole_number(call.query, "version", 1, 10**9)))


async def update_agent(call: Exchange) -> Response:
    """A further version."""
    agent = call.platform.agents.update(call["agent"], await call.body())
    call.platform.webhooks.emit("agent.updated", agent["id"])
    return json(agent)


async def archive_agent(call: Exchange) -> Response:
    """Archive an agent."""
    agent = call.platform.agents.archive(call["agent"])
    call.platform.webhooks.emit("agent.archived", agent["id"])
    return json(agent)


async def agent_versions(call: Exchange) -> Response:
    """An agent's versions, newest first."""
    return json(listing(call.platform.agents.versions(call["agent"]), call.query, key="version"))


_ENV = "/v1/environments"
_AGENTS = "/v1/agents"
_API = frozenset({Kind.API})
RULES = [
    Rule("POST", _ENV, _API, create),
    Rule("GET", _ENV, _API, environments),
    Rule("GET", _ENV + "/{environment}", _API, retrieve),
    Rule("POST", _ENV + "/{environment}", _API, update),
    Rule("POST", _ENV + "/{environment}/archive", _API, archive),
    Rule("DELETE", _ENV + "/{environment}", _API, delete),
    Rule("POST", _AGENTS, _API, create_agent),
    Rule("GET", _AGENTS, _API, agents),
    Rule("GET", _AGENTS + "/{agent}", _API, retrieve_agent),
    Rule("POST", _AGENTS + "/{agent}", _API, update_agent),
    Rule("POST", _AGENTS + "/{agent}/archive", _API, archive_agent),
    Rule("GET", _AGENTS + "/{agent}/versions", _API, agent_versions),
]
