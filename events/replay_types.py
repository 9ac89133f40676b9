"""What looking back found: events of the stream of the sandbox that was rebuilt.

Reserved: nothing writes them yet, and a log that has them is read.
"""

from __future__ import annotations

from typing import Literal

from events.payload import Payload


class ReplayVerified(Payload):
    """A rebuild gave the same results and the same work tree as the log has."""

    type: Literal["replay.verified"] = "replay.verified"
    version: int
    """What was rebuilt."""
    snapshot_id: str
    """What it began from; "" where it was the template."""
    calls: int
    """Tool calls that were run again."""
    tree_digest: str
    seconds: float


class ReplayDiverged(Payload):
    """A rebuild gave something else than the log has."""

    type: Literal["replay.diverged"] = "replay.diverged"
    version: int
    snapshot_id: str
    calls: int
    tool_use_id: str
    """The first call that differs; "" where all are equal and the work tree is not."""
    recorded: str
    """Digest that the log has."""
    rebuilt: str
    """Digest that the rebuild gave."""
    detail: str = ""
    """How they differ, for a person."""
