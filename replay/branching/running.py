"""The calls that a branch runs as its own, in the machine that was rebuilt for it: as itself, and not as its parent."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.machines.identity import identity_of
from actors.machines.protocol import MachineError, MachineSpec
from events.types import ToolCallCompleted, ToolCallStarted
from replay.rebuild.checks import Check, Verdict, check
from replay.rebuild.errors import MachineFailed
from replay.rebuild.rebuilding import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from actors.machines.protocol import Machine, ToolResult
    from replay.branching.what_if import NextCall, WhatIf


@dataclass(frozen=True, slots=True)
class Run:
    """A call that ran in a branch."""

    call: NextCall
    check: Check
    """Its result beside the one that the parent has."""
    started: ToolCallStarted
    completed: ToolCallCompleted

    @property
    def diverged(self) -> bool:
        """Whether the results differ in what matters."""
        return self.check.verdict is Verdict.DIFFERS

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **self.check.plain(),
            "tool": self.call.tool,
            "input": self.call.input,
            "replaced": self.call.replaced,
            "is_error": self.completed.is_error,
            "content": self.completed.content,
        }


async def run_on(
    machine: Machine,
    spec: MachineSpec,
    planned: WhatIf,
    known: Collection[str],
    heard: Callable[[Step], None],
) -> tuple[Run, ...]:
    """Make a quiet machine the branch's own, and run the calls in order. One that fails has a result, as any has.

    Args:
        spec: of the branch.
        known: ids of calls that its memory may know.

    Raises `MachineFailed`, `IdentityRefused`.
    """
    doing = "as it was made itself"
    runs: list[Run] = []
    try:
        await machine.guest.restored(identity_of(spec, fresh=True))
        for number, one in enumerate(planned.calls):
            at = one.recorded.call.at
            doing = f"while {one.tool} {'in place of that' if one.replaced else 'of'} at {at} ran"
            heard(Step(f"{one.tool} {'instead of' if one.replaced else 'at'} {at}", number, len(planned.calls)))
            began = time.monotonic()
            result = await machine.guest.run_tool(
                _guest_id(one, known), one.tool, one.input, timeout=spec.limits.tool_seconds
            )
            runs.append(_run(one, result, time.monotonic() - began))
    except (MachineError, OSError) as error:
        raise MachineFailed(
            target=str(planned.target), when=doing, detail=str(error) or type(error).__name__
        ) from error
    return tuple(runs)


def _guest_id(one: NextCall, known: Collection[str]) -> str:
    """Its own id, unless the memory may answer it with the result of an earlier call of that id."""
    own = one.recorded.call.tool_use_id
    return own if own not in known else f"{own}-branched-{one.recorded.call.at.version}"


def _run(one: NextCall, result: ToolResult, seconds: float) -> Run:
    which = one.recorded.call.tool_use_id
    return Run(
        one,
        check(one.recorded, result.content, result.is_error, seconds),
        ToolCallStarted(tool_use_id=which, tool=one.tool, input=one.input),
        ToolCallCompleted(
            tool_use_id=which,
            content=list(result.content),
            is_error=result.is_error,
            seconds=seconds,
            output_bytes=result.output_bytes,
        ),
    )
