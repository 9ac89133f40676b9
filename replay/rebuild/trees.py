"""The work tree of a rebuild, beside the one that was there: as a snapshot of the same state has it, or the log."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from actors.machines.images import Images
from events.store_errors import StoreError
from events.types import SandboxSnapshotted
from events.work_tree import Lines, digest_of, lines_in_listing, lines_on_disk, text_in_listing, text_on_disk
from replay.history.lineage import line_to
from replay.history.planned import Fate
from replay.rebuild.checks import Verdict
from replay.rebuild.errors import TreeUnreadable
from replay.rebuild.normalise import file_kind, needed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.machines.gvisor import GvisorDriver
    from events.log import EventLog
    from replay.history.lineage import Line, Place
    from replay.history.planned import Plan, Version
    from replay.history.presence import Snapshots

_MOST_PATHS = 20
_MOST_TEXTS = 50
_MOST_BYTES = 256 * 1024
"""How many files have their text compared with what differs by nature set aside, and of which size; others differ."""

_CONTENT = re.compile(r" size=\d+| \d+:[0-9a-f]{64}")
"""What a line of `events.work_tree` says of a file's content."""

Text = Callable[[str], str | None]
"""Reads a text file by its encoded path from the work folder; None where it is no text, or too long."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The work tree as it was."""

    of: str
    """The snapshot that has it."""
    digest: str
    lines: Lines | None
    """None where the log has the digest alone."""
    text: Text
    """Of a file of it."""


@dataclass(frozen=True, slots=True)
class TreeCheck:
    """The work tree of a rebuild, and how it compares."""

    digest: str
    expected: str
    """The digest of what was there; "" where nothing tells."""
    of: str
    """The snapshot that tells; "" likewise."""
    changed: tuple[str, ...]
    """Encoded paths from the work folder that differ, with `+`, `-` or `~`."""
    aside: tuple[str, ...] = ()
    """Those that differ by nature alone, each with the kind in brackets."""

    @property
    def verdict(self) -> Verdict | None:
        """None where there is nothing to compare with."""
        if not self.expected:
            return None
        if self.digest == self.expected:
            return Verdict.EQUAL
        return Verdict.ASIDE if self.aside and not self.changed else Verdict.DIFFERS

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "digest": self.digest,
            "expected": self.expected or None,
            "snapshot_id": self.of or None,
            "verdict": self.verdict.value if self.verdict else None,
            "changed": list(self.changed),
            "aside": list(self.aside),
        }


def some(paths: Sequence[str]) -> list[str]:
    """The first paths, and how many more there are."""
    more = [f"… {len(paths) - _MOST_PATHS:,} more"] if len(paths) > _MOST_PATHS else []
    return [*paths[:_MOST_PATHS], *more]


def check_tree(driver: GvisorDriver, sandbox_id: str, target: Version, expected: Expected | None) -> TreeCheck:
    """Compare the work tree of a machine that is quiet with the one that was there. Raises `TreeUnreadable`."""
    tree = driver.tree(sandbox_id)
    if tree is None:
        raise TreeUnreadable(target=str(target), detail="its files are gone")
    try:
        lines = lines_on_disk(tree)
        digest = digest_of(lines)
        if expected is None:
            return TreeCheck(digest, "", "", ())
        if expected.lines is None or digest == expected.digest:
            return TreeCheck(digest, expected.digest, expected.of, ())
        changed, aside = _changed(
            expected.lines, lines, expected.text, lambda path: text_on_disk(tree, path, _MOST_BYTES)
        )
    except (OSError, ValueError, StoreError) as error:
        raise TreeUnreadable(target=str(target), detail=str(error)) from error
    return TreeCheck(digest, expected.digest, expected.of, tuple(changed), tuple(aside))


def expected_tree(log: EventLog, made: Plan, snapshots: Snapshots, driver: GvisorDriver) -> Expected | None:
    """The work tree that the version had, where a snapshot of the same files exists, or the log has its digest.

    That is one of the version itself, or of one before it with nothing in between that changes files.

    Raises `TreeUnreadable`, `LogError`, `StoreError`.
    """
    line = line_to(log, made.target.stream, made.target.version)
    recorded = _recorded_digests(line)
    for one in reversed(line.snapshots()):
        if not _same_files(line, made, one.place):
            continue
        try:
            found = _kept(one.snapshot_id, snapshots, driver)
        except (OSError, ValueError, StoreError) as error:
            raise TreeUnreadable(target=str(made.target), detail=f"{one.snapshot_id}: {error}") from error
        if found is not None:
            return found
        if one.snapshot_id in recorded:
            return Expected(one.snapshot_id, recorded[one.snapshot_id], None, lambda path: None)
    return None


def _kept(snapshot_id: str, snapshots: Snapshots, driver: GvisorDriver) -> Expected | None:
    """The work tree of a snapshot, from wherever it is; None where it is nowhere."""
    where, store = snapshots.where(snapshot_id), snapshots.store
    if "node" in where:
        folder = Images(driver.volumes.snapshots).path(snapshot_id)

        def text(path: str) -> str | None:
            with driver.volumes.view(folder) as tree:
                return text_on_disk(tree, path, _MOST_BYTES)

        with driver.volumes.view(folder) as tree:
            lines = lines_on_disk(tree)
        return Expected(snapshot_id, digest_of(lines), lines, text)
    if store is None or "store" not in where:
        return None
    manifest, _ = store.manifest(snapshot_id)
    listing, get = partial(store.lines, manifest), store.chunk(manifest)
    lines = lines_in_listing(listing, get)
    return Expected(snapshot_id, digest_of(lines), lines, lambda path: text_in_listing(listing, get, path, _MOST_BYTES))


def _changed(before: Lines, after: Lines, then: Text, now: Text) -> tuple[list[str], list[str]]:
    """Paths that differ in what matters, and those that differ by nature alone."""
    changed: list[str] = []
    aside: list[str] = []
    texts = 0
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) == after.get(path):
            continue
        kind = file_kind(path)
        sign = "~" if path in before and path in after else "-" if path in before else "+"
        if kind is None and sign == "~" and texts < _MOST_TEXTS:
            texts += 1
            kind = _text_kind(path, before[path], after[path], then, now)
        if kind is None:
            changed.append(f"{sign} {path or '.'}")
        else:
            aside.append(f"{sign} {path} ({kind})")
    return changed, aside


def _text_kind(path: str, before: str, after: str, then: Text, now: Text) -> str | None:
    """What two texts differ in by nature; None where anything else of the two files differs."""
    if _CONTENT.sub("", before) != _CONTENT.sub("", after) or "kind='file'" not in before:
        return None
    one, other = then(path), now(path)
    kinds = needed(one, other) if one is not None and other is not None else None
    return ", ".join(kinds) if kinds else None


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
