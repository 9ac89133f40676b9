"""What `hourglass top` shows: the sandboxes that a service holds, the busiest first, and all of them together."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from events.console import clean, duration, size, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

_COLUMNS = ("sandbox", "phase", "session", "fork of", ">calls", ">CPU", ">CPU time", ">memory")


class Top:
    """Draws one look after the other; the share of a CPU is what was used since the look before."""

    def __init__(self) -> None:
        self._cpu: dict[str, float] = {}
        self._at = 0.0

    def draw(self, views: Sequence[dict[str, Any]], at: float | None = None) -> RenderableType:
        """A table with a line below it.

        Args:
            views: of `Operations.sandboxes`.
            at: seconds of a clock that only goes forward; now, if None.
        """
        at = time.monotonic() if at is None else at
        passed, self._at = at - self._at, at
        before, self._cpu = self._cpu, {one["sandbox_id"]: one["cpu_seconds"] or 0.0 for one in views}
        shares = {name: max(used - before[name], 0.0) / passed for name, used in self._cpu.items() if name in before}
        if not views:
            return Text("no sandbox is held now; `hourglass sandboxes` shows every one that there is")
        ordered = sorted(
            views, key=lambda one: (-shares.get(one["sandbox_id"], 0.0), -(one["memory_bytes"] or 0), one["sandbox_id"])
        )
        rows = [_row(one, shares.get(one["sandbox_id"])) for one in ordered]
        return Group(table(_COLUMNS, rows), Text(_together(views, shares), "dim"))


def _row(one: dict[str, Any], share: float | None) -> tuple[object, ...]:
    return (
        clean(one["sandbox_id"]),
        one["phase"] + (", a call runs" if one["busy"] else "") + (", visited" if one["visits"] else ""),
        clean(one["session_id"]),
        clean(one["parent"]),
        f"{one['calls']:,}",
        "" if share is None else f"{share:.0%}",
        duration(one["cpu_seconds"]),
        size(one["memory_bytes"]),
    )


def _together(views: Sequence[dict[str, Any]], shares: dict[str, float]) -> str:
    phases = Counter(str(one["phase"]) for one in views)
    told = [", ".join(f"{count} {phase}" for phase, count in phases.most_common())]
    if shares:
        told.append(f"{sum(shares.values()):.0%} of a CPU")
    told.append(f"{size(sum(one['memory_bytes'] or 0 for one in views))} of memory")
    return "; ".join(told)
