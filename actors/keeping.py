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
    from actors.records import SessionEntity
    from events.envelope import Event


OVER = (sandbox.Phase.ABSENT, sandbox.Phase.KILLED)


@dataclass(frozen=True, slots=True)
class Choice:
    """What keeping a sandbox means."""

    kept: str
    previous: str
    """The sandbox that it takes the place of; itself where its forks are given up."""
    ended: tuple[str, ...]
    session_id: str


@dataclass(frozen=True, slots=True)
class Asked:
    """The tool call that asks for keeping, and its result, which is part of the same append."""

    tool_use_id: str
    result: sandbox.CompleteCall
    waiting: tuple[str, ...]
    """Calls of the session that no sandbox has started."""


async def choose(journal: Journal, sandbox_id: str) -> Choice:
    """What keeping this sandbox would end. Raises `SandboxFailed` where it is none that can be kept."""
    state = await read_state(journal, sandbox_id)
    if state.phase in OVER:
        raise SandboxFailed(f"sandbox {sandbox_id} is {state.phase}: there is nothing to keep")
    if not state.session_id:
        raise SandboxFailed(f"sandbox {sandbox_id} is no session's; `hourglass continue` lets one go on in a branch")
    # A branch is of no family but its own: what it comes from lives on.
    parent = state.forked_from or sandbox_id
    family = [parent, *forks_of(await journal.read(f"sandbox-{parent}"))]
    states = [(one, await read_state(journal, one)) for one in family if one != sandbox_id]
    ended = tuple(one for one, its in states if its.phase not in OVER)
    return Choice(sandbox_id, parent, ended, state.session_id)


def forks_of(history: list[Event], asked_by: str | None = None) -> list[str]:
    """The sandboxes that were made from the one whose history it is; `asked_by` a tool call, those alone."""
    return [
        event.data.child
        for event in history
        if isinstance(event.data, SandboxForked) and asked_by in (None, event.causation_id)
    ]


async def keep(
    journal: Journal,
    choice: Choice,
    of_session: SessionEntity,
    ended: list[SandboxEntity],
    asked: Asked | None = None,
) -> None:
    """Record it. Raises `IllegalTransition` where a call of the session has no posted result, `Replaced`."""
    told = session.KeepSandbox(
        sandbox_id=choice.kept,
        previous=choice.previous,
        ended=choice.ended,
        asked_by=asked.tool_use_id if asked else "",
        waiting=asked.waiting if asked else (),
    )
    parts = []
    for entity in ended:
        await entity.load()
        replaced = entity.state.sandbox_id == choice.previous
        kill = sandbox.Kill(reason="replaced" if replaced else "not_kept")
        parts.append((entity, (asked.result, kill) if asked and replaced else (kill,)))
    await execute_together(
        journal,
        f"keep-{choice.kept}-{of_session.version}",
        (of_session, (told,)),
        *parts,
        causation_id=asked.tool_use_id if asked else "",
    )


async def read_state(journal: Journal, sandbox_id: str) -> sandbox.SandboxState:
    """A sandbox as the log has it."""
    state = sandbox.SandboxState(sandbox_id)
    return sandbox.fold(state, await journal.read(state.stream))
