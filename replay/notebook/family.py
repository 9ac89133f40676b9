"""Which sandbox came from which: parents before their children, each beneath the one that it came from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from replay.notebook.reading import loaded, pages

if TYPE_CHECKING:
    from events.sqlite_log import SqliteLog
    from replay.notebook.reading import Scope

_SANDBOX = "sandbox-"


@dataclass(slots=True)
class Member:
    """A sandbox; times in microseconds since the epoch."""

    sandbox_id: str
    session_id: str
    began_us: int
    last_us: int
    version: int = 0
    parent: str = ""
    parent_version: int = 0
    how: str = "created"
    """`created`, `forked` or `branched`."""
    ended_us: int | None = None
    kept: bool = False
    """It became its session's sandbox in its parent's place."""
    calls_us: list[int] = field(default_factory=list)
    snapshots_us: list[int] = field(default_factory=list)


def family(log: SqliteLog, within: Scope) -> list[Member]:
    """Every sandbox, in the order of a tree. Raises `LogError`."""
    found: dict[str, Member] = {}
    kept: set[str] = set()
    columns = ("stream", "version", "type", "recorded_at", "correlation_id")
    for page in pages(log, columns, within):
        for stream, version, kind, at_us, session in page:
            if not stream.startswith(_SANDBOX):
                continue
            one = found.get(stream)
            if one is None:
                one = found[stream] = Member(stream.removeprefix(_SANDBOX), session, at_us, at_us)
            one.version, one.last_us = version, max(one.last_us, at_us)
            if kind == "sandbox.adopted":
                one.session_id = session
            elif kind == "tool_call.started":
                one.calls_us.append(at_us)
            elif kind == "sandbox.snapshotted":
                one.snapshots_us.append(at_us)
            elif kind == "sandbox.killed":
                one.ended_us = at_us
    _origins(log, within, found)
    for page in pages(log, ("data", "blob"), within, ["session.sandbox_kept"]):
        kept.update(str((loaded(log, data, blob) or {}).get("sandbox_id", "")) for data, blob in page)
    for one in found.values():
        one.kept = one.sandbox_id in kept and one.parent != ""
    return _in_order(found)


def _origins(log: SqliteLog, within: Scope, found: dict[str, Member]) -> None:
    columns = ("stream", "type", "data", "blob")
    for page in pages(log, columns, within, ["sandbox.created", "sandbox.branched"]):
        for stream, kind, data, blob in page:
            told = loaded(log, data, blob) or {}
            parent, version = told.get("parent"), told.get("parent_version")
            if stream in found and isinstance(parent, str) and parent:
                one = found[stream]
                one.parent, one.parent_version = parent, version if isinstance(version, int) else 0
                one.how = "branched" if kind == "sandbox.branched" else "forked"


def _in_order(found: dict[str, Member]) -> list[Member]:
    children: dict[str, list[Member]] = defaultdict(list)
    names = {one.sandbox_id for one in found.values()}
    for one in sorted(found.values(), key=lambda one: one.began_us):
        children[one.parent if one.parent in names else ""].append(one)
    ordered: list[Member] = []
    left = children.pop("", [])[::-1]
    while left:
        one = left.pop()
        ordered.append(one)
        left += children.pop(one.sandbox_id, [])[::-1]
    return ordered
