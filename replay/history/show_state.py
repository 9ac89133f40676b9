"""What `hourglass state` prints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.text import Text

from events.console import clean, first_line, table
from replay.history.states import plain

if TYPE_CHECKING:
    from rich.table import Table

    from replay.history.states import State

_SHOWN_APART = ("stream", "version", "calls", "limits")
_OPEN = ("requested", "started")
"""Statuses of calls that wait for their outcome, in sessions and in sandboxes."""


def drawn(state: State) -> tuple[Table, Table | None]:
    """The state's fields, and the calls that are open; None where none is."""
    told = plain(state)
    rows: list[tuple[str, object]] = [("version", f"{told['version']:,}")]
    rows += [
        (name.replace("_", " "), _short(value))
        for name, value in told.items()
        if name not in _SHOWN_APART and value not in ("", None, [], {})
    ]
    rows += [("limits", _short(told.get("limits")))] if told.get("limits") else []
    counts = Counter(call["status"] for call in told["calls"].values())
    rows.append(("calls", ", ".join(f"{number:,} {status}" for status, number in sorted(counts.items())) or "none"))
    return table(["", clean(told["stream"])], [(Text(name, "dim"), value) for name, value in rows]), _open(
        told["calls"]
    )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _open(calls: dict[str, Any]) -> Table | None:
    rows = [
        (one["tool_use_id"], one["tool"], first_line(str(one["input"])))
        for one in calls.values()
        if one["status"] in _OPEN
    ]
    return table(["open call", "tool", "input"], sorted(rows)) if rows else None
