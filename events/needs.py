"""Which snapshots can't be done without, by the log: what sandboxes that live go on from, and what they began with.

A sandbox that was killed needs none; what the store still has of it is there to look back at.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from events.sandbox import Phase, load
from events.types import SandboxBranched, SandboxSuspended

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from events.log import EventLog
    from events.manifest import Manifest

_PREFIX = "sandbox-"


def sandboxes_of(log: EventLog) -> list[str]:
    """Every sandbox that the log knows."""
    return [stream.removeprefix(_PREFIX) for stream in log.streams() if stream.startswith(_PREFIX)]


def needs(log: EventLog, stored: Iterable[Manifest]) -> dict[str, list[str]]:
    """By snapshot: what needs it, for people. A snapshot that is not in it may go.

    Args:
        stored: of the store; the newest of each sandbox that lives is needed, whatever else there is.
    """
    found: dict[str, list[str]] = {}
    newest: dict[str, Manifest] = {}
    for one in stored:
        if one.sandbox_id not in newest or one.taken_at > newest[one.sandbox_id].taken_at:
            newest[one.sandbox_id] = one
    for sandbox_id in sandboxes_of(log):
        state = load(log, sandbox_id)
        if state.phase is Phase.KILLED:
            continue
        if state.snapshot_id:
            why = "lies suspended in it" if state.phase is Phase.SUSPENDED else "was last snapshotted in it"
            found.setdefault(state.snapshot_id, []).append(f"{sandbox_id} {why}")
        if sandbox_id in newest and newest[sandbox_id].snapshot_id != state.snapshot_id:
            found.setdefault(newest[sandbox_id].snapshot_id, []).append(f"{sandbox_id} has no newer one in the store")
        began = _beginning(log, sandbox_id)
        if began and began != state.snapshot_id:
            found.setdefault(began, []).append(f"{sandbox_id} began with it")
    return found


def begun_with(log: EventLog, snapshots: Collection[str]) -> set[str]:
    """Those of these snapshots that a fork or a branch began with which is not killed."""
    found = set()
    for sandbox_id in sandboxes_of(log):
        began = _beginning(log, sandbox_id)
        if began in snapshots and began not in found and load(log, sandbox_id).phase is not Phase.KILLED:
            found.add(began)
    return found


def _beginning(log: EventLog, sandbox_id: str) -> str:
    """The snapshot that a fork or a branch began with; "" where it is neither."""
    for data in islice(log.read_data(_PREFIX + sandbox_id), 2):
        if isinstance(data, SandboxBranched) or (isinstance(data, SandboxSuspended) and data.reason == "fork"):
            return data.snapshot_id
    return ""
