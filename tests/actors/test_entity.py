"""An entity's shell: commands in, events in the log, state and stream never apart."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from actors.entity import Entity, Fold, Replaced, execute_together
from actors.journal import LocalJournal
from actors.life import Life, sandbox_entity
from events import sandbox, session
from events.sqlite_log import SqliteLog
from events.types import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from actors.entity import Entity as EntityOf
    from events.envelope import Event
    from events.log import Append

    SessionEntity = EntityOf[session.SessionState, session.Command]

FOLD: Fold[session.SessionState, session.Command] = Fold(session.decide, session.evolve)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db") as opened:
        yield opened


def entity(log: SqliteLog) -> SessionEntity:
    state = session.SessionState("s1")
    return Entity(state.stream, state, FOLD, LocalJournal(log), epoch=1, correlation_id="s1", metadata={})


def claim(number: int) -> session.Claim:
    return session.Claim(
        claim_id=f"c{number}", environment_id="e", work_id="s1", worker_id="w", credential="environment_key"
    )


async def test_a_command_becomes_events_and_state(log: SqliteLog) -> None:
    one = entity(log)
    await one.execute("first", claim(1))
    assert one.state.claim_id == "c1"
    assert one.version == log.version("session-s1") == 1
    assert await one.execute("again", claim(1)) == []


async def test_a_cancelled_append_leaves_no_entity_behind_its_stream(log: SqliteLog) -> None:
    one = entity(log)
    task = asyncio.create_task(one.execute("first", claim(1)))
    await asyncio.sleep(0)  # it has begun, and waits for the disk
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await one.execute("second", claim(2))
    assert one.version == log.version("session-s1")
    assert one.state.claim_id == "c2"


async def test_whoever_is_cancelled_knows_what_was_appended(log: SqliteLog) -> None:
    one = entity(log)
    task = asyncio.create_task(one.execute("first", claim(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert one.version == log.version("session-s1") == 1
    assert one.state.claim_id == "c1"


async def test_a_cancelled_append_of_several_leaves_none_behind(log: SqliteLog) -> None:
    one = entity(log)
    task = asyncio.create_task(execute_together(LocalJournal(log), "first", (one, [claim(1)])))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await one.execute("second", claim(2))
    assert one.version == log.version("session-s1") == 2


async def test_several_go_on_where_one_was_written_to_meanwhile(log: SqliteLog) -> None:
    """As by its host, where a sandbox has no actor: its snapshot came into the store."""
    one, same = entity(log), entity(log)
    journal = LocalJournal(log)
    append, left = journal.append, [2]

    async def late(*writes: Append) -> list[list[Event]]:
        if left[0]:
            left[0] -= 1
            await same.load()
            await same.execute(f"meanwhile-{left[0]}", claim(10 + left[0]))
        return await append(*writes)

    journal.append = late  # type: ignore[method-assign]
    await execute_together(journal, "first", (one, [claim(1)]))
    assert one.version == log.version("session-s1") == 3
    left[0] = 9
    with pytest.raises(Replaced):
        await execute_together(journal, "second", (one, [claim(2)]))


async def test_what_follows_a_cancelled_command_is_not_taken_for_its_repeat(log: SqliteLog) -> None:
    one = sandbox_entity("sbx-1", "s1", LocalJournal(log), epoch=1, metadata={})
    await one.execute("create", sandbox.Create(session_id="s1", driver="gvisor", template="base", limits=Limits()))
    life = Life(one, cast("Any", SimpleNamespace(gateway=None)))  # what it records needs no more of a context
    start = sandbox.Start(machine_id="m", node="n", seconds=0.1, agent_version="1")
    task = asyncio.create_task(life.record(start))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await life.record(sandbox.Kill(reason="requested"))
    assert [event.type for event in log.read("sandbox-sbx-1")] == [
        "sandbox.created",
        "sandbox.started",
        "sandbox.killed",
    ]


async def test_whoever_was_replaced_is_told_and_writes_nothing(log: SqliteLog) -> None:
    old, new = entity(log), entity(log)
    await old.load()
    await new.execute("first", claim(1))
    with pytest.raises(Replaced):
        await old.execute("other", claim(2))
    assert log.version("session-s1") == 1
