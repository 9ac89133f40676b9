"""Which sandboxes are to be suspended: those that nobody has used for long, and, when memory runs short, the others.

Pure; `Host` asks now and then, and does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Idle:
    """A sandbox with a machine that no session uses."""

    sandbox_id: str
    idle_seconds: float
    memory_bytes: int


def to_suspend(
    idle: Iterable[Idle], *, suspend_after: float, available_bytes: int, reserve_bytes: int
) -> list[tuple[str, Literal["idle", "pressure"]]]:
    """What to suspend now, in this order, and why.

    Args:
        suspend_after: seconds.
        available_bytes: memory that the node can give without hurting anybody.
        reserve_bytes: how much of it there should always be.
    """
    chosen: list[tuple[str, Literal["idle", "pressure"]]] = []
    # The least recently used first.
    for one in sorted(idle, key=lambda one: one.idle_seconds, reverse=True):
        if one.idle_seconds >= suspend_after:
            chosen.append((one.sandbox_id, "idle"))
        elif available_bytes < reserve_bytes:
            chosen.append((one.sandbox_id, "pressure"))
        else:
            continue
        available_bytes += one.memory_bytes
    return chosen


def available_memory() -> int:
    """`MemAvailable` of this node, in bytes."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo says nothing of MemAvailable")
