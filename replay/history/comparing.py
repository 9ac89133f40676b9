"""What differs between two versions, of one sandbox or of two: files, packages, results of calls, the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from events.types import ToolCallCompleted, ToolCallInterrupted, ToolCallStarted
from replay.history.lineage import Place, line_to
from replay.history.packages import Packages, package_changes
from replay.history.planned import Version
from replay.history.states import plain, state_at
from replay.history.tree_diff import differing_lines, tree_changes
from replay.history.trees import tree_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.log import EventLog
    from events.types import JsonObject
    from replay.history.lineage import Line
    from replay.history.presence import Snapshots
    from replay.history.target import Target
    from replay.history.tree_diff import FileChange
    from replay.history.trees import FileTree

_OF_EACH = ("stream", "sandbox_id", "version", "calls", "stored")
"""What differs between any two versions, or is told apart."""


@dataclass(frozen=True, slots=True)
class CallResult:
    """A call that one of the versions has behind it, and the other has not."""

    at: Version
    """Of its `tool_call.started`."""
    tool_use_id: str
    tool: str
    input: JsonObject
    status: str
    """`completed`, `interrupted`, or `started` where it had no outcome by then."""
    is_error: bool
    content: list[JsonObject]
    """Of the result, as the log has it."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "stream": self.at.stream,
            "version": self.at.version,
            "tool_use_id": self.tool_use_id,
            "tool": self.tool,
            "input": self.input,
            "status": self.status,
            "is_error": self.is_error,
            "content": self.content,
        }


@dataclass(frozen=True, slots=True)
class Files:
    """Two trees, and what differs between them."""

    a: FileTree
    b: FileTree
    changes: tuple[FileChange, ...]
    packages: Packages
    """Of package managers, in the same trees."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions, and what differs between them."""

    a: Version
    b: Version
    common: Version | None
    """The last version that both have behind them; None where they have nothing in common."""
    files: Files | None
    """None where they were not to be compared."""
    only_a: tuple[CallResult, ...]
    """Calls after `common`, or with an outcome after it, on the way to `a`."""
    only_b: tuple[CallResult, ...]
    state: dict[str, tuple[Any, Any]]
    """Fields that differ, with both values, as JSON has them; calls left out."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        files = self.files
        return {
            "a": _version(self.a),
            "b": _version(self.b),
            "common": _version(self.common) if self.common else None,
            "files": [one.plain() for one in files.changes] if files else None,
            "packages": files.packages.plain() if files else None,
            "files_of": {"a": _version(files.a.of), "b": _version(files.b.of)} if files else None,
            "calls": {"a": [one.plain() for one in self.only_a], "b": [one.plain() for one in self.only_b]},
            "state": {name: {"a": a, "b": b} for name, (a, b) in self.state.items()},
        }


def compare(
    log: EventLog, a: Target, b: Target, snapshots: Snapshots, *, files: bool = True, nearest: bool = False
) -> Comparison:
    """What differs between two versions.

    Args:
        files: whether to compare file trees and the packages in them, which takes a snapshot of both in the store.
        nearest: take the trees of the nearest snapshots, whatever was done since.

    Raises:
        NoTree, FilesMayDiffer: a version's files are not to be had; not without `files`.
        HistoryError, LogError, StoreError: as `tree_at` and `state_at`.
    """
    line_a, line_b = line_to(log, a.stream, a.version), line_to(log, b.stream, b.version)
    common = _common(line_a, line_b)
    return Comparison(
        Version(a.stream, a.version),
        Version(b.stream, b.version),
        Version(line_a.segments[common.segment].stream, common.version) if common else None,
        _files(log, a, b, snapshots, nearest=nearest) if files else None,
        tuple(_calls(line_a, common)),
        tuple(_calls(line_b, common)),
        _fields(plain(state_at(log, a.stream, version=a.version)), plain(state_at(log, b.stream, version=b.version))),
    )


def _files(log: EventLog, a: Target, b: Target, snapshots: Snapshots, *, nearest: bool) -> Files:
    one = tree_at(log, a, snapshots, nearest=nearest)
    other = tree_at(log, b, snapshots, nearest=nearest)
    if one.snapshot_id == other.snapshot_id:
        return Files(one, other, (), Packages((), 0))
    old, new = one.listing, other.listing
    return Files(one, other, tuple(tree_changes(old, new)), package_changes(old, new, differing_lines(old, new)))


def _common(a: Line, b: Line) -> Place | None:
    """The last place that both lines have."""
    found = None
    for number, (one, other) in enumerate(zip(a.segments, b.segments, strict=False)):
        if one.stream != other.stream:
            break
        found = Place(number, min(one.until, other.until))
        if one.until != other.until:
            break
    return found


def _calls(line: Line, common: Place | None) -> Iterator[CallResult]:
    # By segment, too: what a branch runs again has the ids that it had.
    begun: dict[tuple[int, str], tuple[Version, ToolCallStarted]] = {}
    ended: dict[tuple[int, str], ToolCallCompleted | ToolCallInterrupted] = {}
    late: set[tuple[int, str]] = set()
    for place, event in line.all():
        data = event.data
        if isinstance(data, ToolCallStarted):
            begun[place.segment, data.tool_use_id] = (Version(event.stream, event.version), data)
        elif isinstance(data, ToolCallCompleted | ToolCallInterrupted):
            ended[place.segment, data.tool_use_id] = data
        else:
            continue
        if common is None or place > common:
            late.add((place.segment, data.tool_use_id))
    for which, (at, asked) in begun.items():
        if which in late:
            yield _result(at, asked, ended.get(which))


def _result(at: Version, asked: ToolCallStarted, outcome: ToolCallCompleted | ToolCallInterrupted | None) -> CallResult:
    status = "started" if outcome is None else outcome.type.removeprefix("tool_call.")
    return CallResult(
        at,
        asked.tool_use_id,
        asked.tool,
        asked.input,
        status,
        isinstance(outcome, ToolCallInterrupted) or (outcome is not None and outcome.is_error),
        list(outcome.content) if outcome is not None else [],
    )


def _fields(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (a.get(name), b.get(name))
        for name in dict.fromkeys([*a, *b])
        if name not in _OF_EACH and a.get(name) != b.get(name)
    }


def _version(version: Version) -> dict[str, Any]:
    return {"stream": version.stream, "version": version.version}
