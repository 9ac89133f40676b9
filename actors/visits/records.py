"""How visits end in the log, whoever finds it out."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from events import sandbox as fold
from events.types import SandboxForwardOpened, SandboxProcessStarted

if TYPE_CHECKING:
    from actors.journal import Journal
    from actors.life import SandboxEntity

End = fold.EndProcess | fold.CloseForward | fold.RecordCopy


async def record_end(entity: SandboxEntity, told: End) -> None:
    """Record how a visit ended. A repeat of it appends nothing; each copy is one of its own."""
    if isinstance(told, fold.RecordCopy):
        await entity.execute(f"copy-{secrets.token_hex(8)}", told)
    else:
        which = told.process_id if isinstance(told, fold.EndProcess) else told.forward_id
        await entity.execute(f"{which}/end", told)


async def end_visits_of_the_dead(entity: SandboxEntity, journal: Journal) -> None:
    """Record the end of what a host before this one had open: its visitors went with it."""
    state = entity.state
    if not (state.open_processes or state.open_forwards):
        return
    began: dict[str, int] = {}
    for event in await journal.read(entity.stream):
        if isinstance(event.data, SandboxProcessStarted):
            began[event.data.process_id] = event.recorded_at_us
        elif isinstance(event.data, SandboxForwardOpened):
            began[event.data.forward_id] = event.recorded_at_us

    def seconds(which: str) -> float:
        return max(0, time.time_ns() // 1000 - began[which]) / 1e6

    for which in state.open_processes:
        await record_end(entity, fold.EndProcess(process_id=which, exit_code=None, seconds=seconds(which), bytes_out=0))
    for which in state.open_forwards:
        await record_end(entity, fold.CloseForward(forward_id=which, seconds=seconds(which), bytes_in=0, bytes_out=0))
