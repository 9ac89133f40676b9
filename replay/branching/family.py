"""Which sandbox came from which: sandboxes, their forks and their branches, from the views of the log."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from events.views import SANDBOXES

if TYPE_CHECKING:
    from events.sqlite_log import SqliteLog

_SESSION, _SANDBOX = "session-", "sandbox-"
_HOW: dict[str, Literal["forked", "branched"]] = {"sandbox.branched": "branched", "sandbox.created": "forked"}


@dataclass(frozen=True, slots=True)
class Member:
    """A sandbox, and where it came from."""

    sandbox_id: str
    how: Literal["created", "forked", "branched"]
    parent: str
    """"" where it was created."""
    parent_version: int | None
    depth: int
    """How many of its ancestors the log has."""
    session_id: str
    """"" where none uses it."""
    phase: str
    version: int
    """The last of its stream."""
    calls: int
    """In its own stream."""
    began: str
    """ISO 8601, in UTC."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def family(log: SqliteLog, stream: str | None = None) -> list[Member]:
    """Every sandbox, each after its parent and beneath it, the oldest first.

    Args:
        stream: `sandbox-<id>` or `session-<id>`: only the trees in which that sandbox is, or one of that session.

    Raises `LogError`.
    """
    first = dict(log.query("SELECT stream, type FROM events WHERE version = 1 AND stream LIKE 'sandbox-%'"))
    rows = {row["sandbox_id"]: row for row in log.query_dicts(f"SELECT * FROM ({SANDBOXES}) ORDER BY first_at")}
    children: dict[str, list[str]] = defaultdict(list)
    for name, row in rows.items():
        children[row["parent"] if row["parent"] in rows else ""].append(name)
    wanted = _roots(rows, stream) if stream is not None else None
    found: list[Member] = []
    left = [(name, 0) for name in reversed(children[""]) if wanted is None or name in wanted]
    while left:
        name, depth = left.pop()
        found.append(_member(rows[name], first.get(_SANDBOX + name, ""), depth))
        left += [(child, depth + 1) for child in reversed(children[name])]
    return found


def _roots(rows: dict[str, dict[str, Any]], stream: str) -> set[str]:
    """The oldest ancestors of the sandboxes that are meant."""
    name = stream.removeprefix(_SANDBOX)
    meant = [name]
    if stream.startswith(_SESSION):
        session_id = stream.removeprefix(_SESSION)
        meant = [one for one, row in rows.items() if row["session_id"] == session_id]
    found = set()
    for one in meant:
        seen: set[str] = set()
        while one in rows and rows[one]["parent"] in rows and one not in seen:
            seen.add(one)
            one = rows[one]["parent"]
        found.add(one)
    return found


def _member(row: dict[str, Any], begins: str, depth: int) -> Member:
    parent = row["parent"] or ""
    return Member(
        row["sandbox_id"],
        _HOW.get(begins, "created") if parent else "created",
        parent,
        row["parent_version"],
        depth,
        row["session_id"] or "",
        row["phase"] or "unknown",
        row["version"],
        row["tool_calls"],
        row["first_at"],
    )
