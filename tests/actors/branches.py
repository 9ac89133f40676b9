"""A branch made by hand: what stands in the log of one that lies on its parent's snapshot, as a fork does."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from events import types
from events.envelope import new_events
from events.log import Append

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.types import EventData


def branched(parent: str, version: int, snapshot_id: str, session_id: str = "") -> types.SandboxBranched:
    return types.SandboxBranched(
        parent=parent,
        parent_version=version,
        snapshot_id=snapshot_id,
        session_id=session_id,
        driver="gvisor",
        template="base",
        limits=types.Limits(),
    )


def branch(parent: str, version: int, snapshot_id: str, *, whole: bool = True) -> tuple[str, Append]:
    """A new branch's id, and what makes it; it lacks its end where it is not `whole`."""
    made = f"sbx-{secrets.token_hex(8)}"
    asleep = types.SandboxSuspended(reason="fork", snapshot_id=snapshot_id)
    events: Sequence[EventData] = [branched(parent, version, snapshot_id), *([asleep] if whole else [])]
    return made, Append(f"sandbox-{made}", new_events(f"branch-{made}", events, correlation_id=""), 0)
