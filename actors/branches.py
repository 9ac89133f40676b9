"""A branch becomes a session's sandbox, where the session's metadata name it and it may be had.

What is in the metadata is anybody's word. So only a branch that no session uses is given, never a fork and never what
serves a session; only before the session's first machine; and only in the environment that the branch comes from. It is
all one append: the session goes on in the branch, the branch is the session's, and the sandbox that it would have had,
in which nothing has run, is over. Whoever dies before has changed nothing, and whoever comes after finds it in the log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from actors.entity import execute_together
from actors.handle import SandboxFailed
from actors.keeping import read_state
from actors.life import sandbox_entity
from events import sandbox as fold
from events import session
from events.continuing import BRANCH_KEY, MOST_PARENTS, branch_named, why_not
from events.errors import IllegalTransition
from events.types import SessionClaimed

if TYPE_CHECKING:
    from actors.handle import SandboxHandle
    from actors.host import Host
    from actors.journal import Journal

log = logging.getLogger(__name__)

_UNUSED = (fold.Phase.CREATED, fold.Phase.ABSENT)
NEXT_STEP = (
    f"name a branch that is free, or take {BRANCH_KEY} out of the session's metadata for a new sandbox, and send "
    "another message; `hourglass sandboxes` shows what there is"
)


class BranchRefused(SandboxFailed):
    """Raised when a session can't have the branch that its metadata name; the message says why."""


async def adopt(host: Host, session_id: str, claim_id: str, named: str) -> SandboxHandle | None:
    """Let a session go on in a branch, while `claim_id` serves it; durable when it returns.

    None where there is nothing to do: it does already, or it has a sandbox in which something ran, and keeps that.

    Raises:
        BranchRefused: it can't have this one. Nothing was changed.
    """
    current = await host.sandbox_of(session_id)
    if current == named:
        return None
    before = await read_state(host.journal, current)
    if before.phase not in _UNUSED:
        log.info("metadata name another sandbox, ignored session_id=%s sandbox_id=%s", session_id, current)
        return None
    try:
        branch_named({BRANCH_KEY: named})
    except ValueError as error:
        raise BranchRefused(str(error)) from error
    # Before any lock is held: from here on one is a branch and the other is not, so nobody waits in a circle.
    await _check(host.journal, session_id, named)
    async with host.sandbox_lock(current), host.sandbox_lock(named):
        # Whoever held them wrote their streams; and visitors of the branch are sent away.
        await host.let_go(current)
        await host.let_go(named)
        try:
            if not await _record(host, session_id, current, named):
                return None
        except IllegalTransition as error:
            # Another session was faster, or somebody killed it.
            raise BranchRefused(str(error)) from error
    host.serves(claim_id, named)
    await host.suspender.make_room(named)
    log.info("session goes on in a branch session_id=%s sandbox_id=%s", session_id, named)
    return await host.sandbox(named, session_id)


async def _record(host: Host, session_id: str, current: str, named: str) -> bool:
    """Whether it does: not where something has begun to run in the sandbox that it has, since that was looked at."""
    of_session = host.session(session_id)
    await of_session.load()
    previous, branch = (
        sandbox_entity(one, session_id, host.journal, epoch=host.epoch, metadata=host.metadata)
        for one in (current, named)
    )
    await previous.load()
    if previous.state.phase not in _UNUSED:
        return False
    is_there = previous.state.phase is not fold.Phase.ABSENT
    told = session.KeepSandbox(
        sandbox_id=named,
        previous=current,
        ended=(current,) if is_there else (),
        # Nothing has run for this session, so no call of it was started.
        waiting=tuple(call.tool_use_id for call in of_session.state.open_calls),
    )
    await execute_together(
        host.journal,
        f"adopt-{named}-{of_session.version}",
        (of_session, (told,)),
        (branch, (fold.Adopt(session_id=session_id),)),
        *([(previous, (fold.Kill(reason="replaced"),))] if is_there else []),
    )
    return True


async def _check(journal: Journal, session_id: str, named: str) -> None:
    """Raises `BranchRefused`."""
    state = await read_state(journal, named)
    refused = why_not(state, session_id)
    if refused:
        raise BranchRefused(refused)
    origin = await _session_behind(journal, state)
    ours, theirs = await _environment_of(journal, session_id), await _environment_of(journal, origin)
    if not theirs:
        raise BranchRefused(f"this log does not say which environment branch {named} comes from")
    if ours != theirs:
        raise BranchRefused(f"branch {named} comes from another environment, {theirs}; this session is of {ours}")


async def _session_behind(journal: Journal, state: fold.SandboxState) -> str:
    """The session that the nearest parent belongs to; "" where none does."""
    seen: set[str] = set()
    while state.parent and state.parent not in seen and len(seen) < MOST_PARENTS:
        seen.add(state.parent)
        state = await read_state(journal, state.parent)
        if state.session_id:
            return state.session_id
    return ""


async def _environment_of(journal: Journal, session_id: str) -> str:
    """As its last claim has it; "" where it was never claimed."""
    claims = [one.data for one in await journal.read(f"session-{session_id}") if isinstance(one.data, SessionClaimed)]
    return claims[-1].environment_id if claims else ""
