"""`hourglass init` against the recorded-session server."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from replay.server.recorded import RecordedServer
from tests.service import HOURGLASS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration


@pytest.fixture
def server() -> Iterator[RecordedServer]:
    with RecordedServer() as running:
        yield running


def init(server: RecordedServer, key: str, *options: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
    variables |= {"ANTHROPIC_BASE_URL": server.base_url} | ({"ANTHROPIC_API_KEY": key} if key else {})
    return subprocess.run([HOURGLASS, "init", *options], env=variables, capture_output=True, text=True, check=False)


def test_it_makes_an_environment_and_an_agent_and_says_what_is_next(server: RecordedServer) -> None:
    done = init(server, server.api_key, "--name", "hands", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert server.call(lambda platform: platform.environments.get(made["environment_id"]).shape()["name"]) == "hands"
    agent = server.call(lambda platform: platform.agents.get(made["agent_id"]))
    assert [tool["type"] for tool in agent["tools"]] == ["agent_toolset_20260401"]
    for_people = init(server, server.api_key)
    assert "create an environment key" in for_people.stdout
    assert "hourglass up --environment-id env_" in for_people.stdout
    assert server.api_key not in for_people.stdout


def test_without_a_key_it_says_which_to_set(server: RecordedServer) -> None:
    done = init(server, "")
    assert done.returncode == 1
    assert "no API key" in done.stderr
    assert "ANTHROPIC_API_KEY" in done.stderr


def test_a_refused_key_leaves_nothing_behind(server: RecordedServer) -> None:
    done = init(server, "sk-ant-api03-wrong")
    assert done.returncode == 1
    assert "401" in done.stderr
    assert "next:" in done.stderr


def test_an_environment_whose_agent_failed_is_archived_again(server: RecordedServer) -> None:
    server.inject("status", "/v1/agents", method="POST", status=400)
    done = init(server, server.api_key)
    assert done.returncode == 1
    environments = server.call(lambda platform: [one.shape() for one in platform.environments.all(archived=True)])
    assert environments
    assert all(one["archived_at"] for one in environments)
