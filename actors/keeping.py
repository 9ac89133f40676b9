"""Keeping one of a sandbox's forks: it becomes the session's sandbox, and the others end, in one append."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.entity import execute_together
from actors.handle import SandboxFailed
from events import sandbox, session
from events.types import SandboxForked

if TYPE_CHECKING:
    from actors.journal import Journal
    from actors.life import SandboxEntity
    from actors.session import SessionEntity
    from events.envelope import Event


@dataclass(frozen=True, slots=True)
class Choice:
    """What keeping a sandbox means."""

    kept: str
    previous: str
    """The sandbox that it takes the place of; itself where its forks are given up."""
    ended: tuple[str, ...]
    session_id: str


async def choose(journal: Journal, sandbox_id: str) -> Choice:
    """What keeping this sandbox would end. Raises `SandboxFailed` where it is none that can be kept."""
    state = await _state(journal, sandbox_id)
    if state.phase in (sandbox.Phase.ABSENT, sandbox.Phase.KILLED):
        raise SandboxFailed(f"sandbox {sandbox_id} is {state.phase}: there is nothing to keep")
    parent = state.parent or sandbox_id
    family = [parent, *forks_of(await journal.read(f"sandbox-{parent}"))]
    states = [(one, await _state(journal, one)) for one in family if one != sandbox_id]
    over = (sandbox.Phase.ABSENT, sandbox.Phase.KILLED)
    ended = tuple(one for one, its in states if its.phase not in over)
    return Choice(sandbox_id, parent, ended, state.session_id)


def forks_of(history: list[Event]) -> list[str]:
    """The sandboxes that were made from the one whose history it is."""
    return [event.data.child for event in history if isinstance(event.data, SandboxForked)]


async def keep(journal: Journal, choice: Choice, of_session: SessionEntity, ended: list[SandboxEntity]) -> None:
    """Record it. Raises `IllegalTransition` where a call of the session has no posted result, `Replaced`."""
    told = session.KeepSandbox(sandbox_id=choice.kept, previous=choice.previous, ended=choice.ended)
    for entity in ended:
        await entity.load()
    kills = [
        (
            entity,
            (sandbox.Kill(reason="replaced" if entity.state.sandbox_id == choice.previous else "not_kept"),),
        )
        for entity in ended
    ]
    await execute_together(journal, f"keep-{choice.kept}-{of_session.version}", (of_session, (told,)), *kills)


async def _state(journal: Journal, sandbox_id: str) -> sandbox.SandboxState:
    state = sandbox.SandboxState(sandbox_id)
    return sandbox.fold(state, await journal.read(state.stream))
