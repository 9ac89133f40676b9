"""`hourglass init`: a self-hosted environment and an agent that works in it, made with the SDK and an API key.

The environment's key is made in the Console alone (contract §2), so that is what is left to do by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from anthropic import Anthropic

from actors.api import API_ERRORS, describe
from events.errors import HourglassError

DEFAULT_MODEL = "claude-sonnet-5-5"
_SYSTEM = (
    "You work in a sandbox of your own. Your files are in /workspace. Check what you did before you say it is done."
)


@dataclass(eq=False)
class CannotInitialize(HourglassError):
    """Nothing was made: {cause}."""

    cause: str
    step: str
    next_step = "{step}"


@dataclass(frozen=True, slots=True)
class Made:
    """What was made."""

    environment_id: str
    agent_id: str


def initialize(*, name: str, model: str, base_url: str | None) -> Made:
    """Make a self-hosted environment and an agent with the six tools, with the credentials that the SDK finds.

    Raises `CannotInitialize`. An environment that was made before the agent failed is archived again.
    """
    client = Anthropic(base_url=base_url)
    if client.api_key is None and client.auth_token is None and client.credentials is None:
        raise CannotInitialize("there is no API key", "Set ANTHROPIC_API_KEY; it is used here and never stored.")
    environment_id = None
    try:
        environment_id = client.beta.environments.create(name=name, config={"type": "self_hosted"}).id
        agent = client.beta.agents.create(
            name=name, model=model, system=_SYSTEM, tools=[{"type": "agent_toolset_20260401"}]
        )
    except API_ERRORS as error:
        if environment_id is not None:
            client.beta.environments.archive(environment_id)
        raise CannotInitialize(
            describe(error), "Check that ANTHROPIC_API_KEY is valid and may manage agents."
        ) from error
    return Made(environment_id, agent.id)
