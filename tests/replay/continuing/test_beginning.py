"""What is refused before a session is created; that one is created and served is shown with the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic

from events import types
from events.envelope import new_events
from replay.continuing.beginning import Origin, agent_of, origin_of, reader
from replay.continuing.errors import AgentUnknown, BranchNotFree, EnvironmentUnknown
from replay.record import SessionUnreadable
from replay.server.recorded import RecordedServer
from tests.replay.history.boxes import SESSION, A, B, C, branched, created, put, suspended

if TYPE_CHECKING:
    from events.sqlite_log import SqliteLog


def free(parent: str, version: int) -> types.SandboxBranched:
    return branched(parent, version, "s").model_copy(update={"session_id": ""})


def test_where_a_branch_of_a_branch_comes_from(log: SqliteLog) -> None:
    put(log, A, [created()])
    put(log, B, [free(A, 1), suspended("s", "fork")])
    put(log, C, [free(B, 2), suspended("s", "fork")])
    with pytest.raises(EnvironmentUnknown) as caught:
        origin_of(log, C)
    assert C in str(caught.value)
    claim = types.SessionClaimed(
        environment_id="env_1", work_id="w", claim_id="c", worker_id="w", credential="session_token"
    )
    log.append(f"session-{SESSION}", new_events("s", [claim]), expected=0)
    assert origin_of(log, C) == Origin(SESSION, "env_1")


def test_a_branch_of_what_the_log_does_not_have(log: SqliteLog) -> None:
    put(log, B, [free(A, 1), suspended("s", "fork")])
    with pytest.raises(EnvironmentUnknown):
        origin_of(log, B)


def test_what_is_no_free_branch_is_refused_before_anybody_is_asked(log: SqliteLog) -> None:
    put(log, A, [created()])
    put(log, B, [free(A, 1)])
    for name, because in ((A, "is no branch"), (B, "is not made to its end"), (C, "there is no sandbox")):
        with pytest.raises(BranchNotFree, match=because):
            origin_of(log, name)


def test_an_api_that_knows_no_such_session_or_is_not_there() -> None:
    with RecordedServer() as server, Anthropic(api_key=server.api_key, base_url=server.base_url) as client:
        with pytest.raises(AgentUnknown, match="sesn_none") as caught:
            agent_of(client, "sesn_none")
        assert "--agent" in caught.value.advice
        with pytest.raises(SessionUnreadable, match="sesn_none"):
            reader(client)("sesn_none")
    with Anthropic(api_key="k", base_url=server.base_url, max_retries=0) as client:
        with pytest.raises(AgentUnknown):
            agent_of(client, "sesn_none")
        with pytest.raises(SessionUnreadable):
            reader(client)("sesn_none")
