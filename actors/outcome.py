"""What the agent is told of a call: its result, or, where the machine failed under it, in plain words what was lost.

A failed machine and a failed command are different things, but the agent has one channel for both: a tool result. So
the text says which it was, what is kept, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from actors.machines.protocol import EndReason, GuestProtocolError, MachineEnd, MachineError
from events.sandbox import CallStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.sandbox import SandboxCall
    from events.types import JsonObject, Limits

InterruptReason = Literal["user", "thread_terminated"]
"""Why a call that runs is ended on purpose."""


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What the agent is to be told of a call."""

    content: Sequence[JsonObject]
    """Content blocks; empty where the call was interrupted and the server has its answer already."""
    is_error: bool
    interrupted: bool = False
    exit_code: int | None = None
    """Of a command that ended by itself just now; the log does not keep it, the agent is not told (contract §12)."""


def recorded_outcome(known: SandboxCall) -> CallOutcome | None:
    """The outcome that the log has of a call; None where it has none yet."""
    if known.status is CallStatus.STARTED:
        return None
    interrupted = known.status is CallStatus.INTERRUPTED
    return CallOutcome(known.content, known.is_error or interrupted, interrupted)


def _text(text: str) -> list[JsonObject]:
    return [{"type": "text", "text": text}]


MEMORY_LOST = _text(
    "The sandbox was restarted: its files are as they were, but its processes and the shell's state are gone. "
    "The command was not run; send it again."
)


def half_way(tool: str) -> list[JsonObject]:
    """For a call that was started and whose end nobody saw."""
    return _text(
        f"The sandbox was restarted while this {tool} call ran: it may have been done in part. Files are kept; "
        "processes and the shell's state are gone. Look at what it did before sending it again."
    )


def out_of_memory_text(limits: Limits) -> list[JsonObject]:
    """For a call under which the machine reached its memory limit."""
    return _text(
        f"The sandbox ran out of memory (limit {limits.memory_bytes // 1024**2} MiB) and was restarted. Files are "
        "kept; processes and the shell's state are gone. The command may have been done in part."
    )


def machine_lost_text(end: MachineEnd | None) -> list[JsonObject]:
    """For a call under which the machine ended, or stopped answering (None)."""
    how = "ended" if end is not None else "stopped answering"
    return _text(
        f"The sandbox {how} while this call ran and was restarted. Files are kept; processes and the shell's state are "
        "gone. The command may have been done in part."
    )


def crash_reason(
    error: MachineError, end: MachineEnd | None
) -> Literal["out_of_memory", "exited", "protocol_violation", "unresponsive"]:
    """What is recorded of a machine that failed under a call."""
    if isinstance(error, GuestProtocolError):
        return "protocol_violation"
    if end is None:
        return "unresponsive"
    return "out_of_memory" if end.reason is EndReason.OUT_OF_MEMORY else "exited"
