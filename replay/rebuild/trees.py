"""The work tree of a rebuild, beside the one that was there: as a snapshot of the same state has it, or the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.machines.images import Images
from events.store_errors import StoreError
from events.tree_reader import TooMuch
from events.types import SandboxSnapshotted
from events.work_tree import Lines, digest_of, lines_in_listing, lines_on_disk
from replay.history.lineage import line_to
from replay.history.planned import Fate
from replay.rebuild.errors import TreeUnreadable

if TYPE_CHECKING:
    from actors.machines.gvisor import GvisorDriver
    from events.log import EventLog
    from replay.history.lineage import Line, Place
    from replay.history.planned import Plan, Version
    from replay.history.presence import Snapshots

_MOST_PATHS = 20


@dataclass(frozen=True, slots=True)
class Expected:
    """The work tree as it was."""

    of: str
    """The snapshot that has it."""
    digest: str
    lines: Lines | None
    """None where the log has the digest alone."""


@dataclass(frozen=True, slots=True)
class TreeCheck:
    """The work tree of a rebuild, and how it compares."""

    digest: str
    expected: str
    """The digest of what was there; "" where nothing tells."""
    of: str
    """The snapshot that tells; "" likewise."""
    changed: tuple[str, ...]
    """Encoded paths from the work folder that differ, with `+`, `-` or `~`; at most some, and how many more."""

    @property
    def equal(self) -> bool | None:
        """None where there is nothing to compare with."""
        return self.digest == self.expected if self.expected else None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "digest": self.digest,
            "expected": self.expected or None,
            "snapshot_id": self.of or None,
            "equal": self.equal,
            "changed": list(self.changed),
        }


def read_work(driver: GvisorDriver, sandbox_id: str, target: Version) -> Lines:
    """The work tree of a machine that is quiet. Raises `TreeUnreadable`."""
    tree = driver.tree(sandbox_id)
    if tree is None:
        raise TreeUnreadable(target=str(target), detail="its files are gone")
    try:
        return lines_on_disk(tree)
    except (OSError, TooMuch) as error:
        raise TreeUnreadable(target=str(target), detail=str(error)) from error


def expected_tree(log: EventLog, made: Plan, snapshots: Snapshots, driver: GvisorDriver) -> Expected | None:
    """The work tree that the version had, where a snapshot of the same files exists, or the log has its digest.

    That is one of the version itself, or of one before or after it with nothing in between that changes files.

    Raises `TreeUnreadable`, `LogError`, `StoreError`.
    """
    line = line_to(log, made.target.stream, made.target.version)
    recorded = _recorded_digests(line)
    for one in reversed(line.snapshots()):
        if not _same_files(line, made, one.place):
            continue
        if one.snapshot_id in recorded:
            return Expected(one.snapshot_id, recorded[one.snapshot_id], None)
        where = snapshots.where(one.snapshot_id)
        try:
            if "node" in where:
                images = Images(driver.volumes.snapshots)
                with driver.volumes.view(images.path(one.snapshot_id)) as tree:
                    lines = lines_on_disk(tree)
            elif "store" in where and snapshots.store is not None:
                store = snapshots.store
                manifest, _ = store.manifest(one.snapshot_id)
                lines = lines_in_listing(lambda: store.lines(manifest), store.chunk(manifest))  # noqa: B023
            else:
                continue
        except (OSError, ValueError, StoreError) as error:
            raise TreeUnreadable(target=str(made.target), detail=f"{one.snapshot_id}: {error}") from error
        return Expected(one.snapshot_id, digest_of(lines), lines)
    return None


def compare_tree(lines: Lines, expected: Expected | None) -> TreeCheck:
    """Compare a work tree with the one that was there."""
    digest = digest_of(lines)
    if expected is None:
        return TreeCheck(digest, "", "", ())
    changed = _changed(expected.lines, lines) if expected.lines is not None and digest != expected.digest else []
    more = [f"… {len(changed) - _MOST_PATHS:,} more"] if len(changed) > _MOST_PATHS else []
    return TreeCheck(digest, expected.digest, expected.of, tuple(changed[:_MOST_PATHS] + more))


def _changed(before: Lines, after: Lines) -> list[str]:
    signs = {
        path: "~" if path in before and path in after else "-" if path in before else "+" for path in before | after
    }
    return [f"{signs[path]} {path or '.'}" for path in sorted(signs) if before.get(path) != after.get(path)]


def _recorded_digests(line: Line) -> dict[str, str]:
    events = [event for part in (*line.events, *line.later) for event in part]
    told = (event.data for event in events)
    return {one.snapshot_id: one.tree_digest for one in told if isinstance(one, SandboxSnapshotted) and one.tree_digest}


def _same_files(line: Line, made: Plan, place: Place) -> bool:
    """Whether nothing that changes files lies between a snapshot's state and the version."""
    if place > line.end:
        return False
    order = {one.stream: number for number, one in enumerate(line.segments)}
    changing = [one.at for one in made.calls if one.fate in (Fate.AGAIN, Fate.LOST)]
    changing += [one.at for one in made.gaps]
    # What is in the snapshot that the plan begins from is before it; one that is older is of no use.
    start = made.start.at
    begun = (order[start.stream], start.version) if start is not None else (0, 0)
    return tuple(place) >= begun and all((order[at.stream], at.version) <= tuple(place) for at in changing)
