"""What looking back found: events of the stream `replay-<sandbox id>`.

Not of the sandbox's own: its versions name states of its machine, and whoever runs it expects to be its one writer.
A log that has them there is read.
"""

from __future__ import annotations

from typing import Literal

from events.payload import Payload


class ReplayVerified(Payload):
    """A rebuild gave the same results as the log has, and the same work trees as its snapshots."""

    type: Literal["replay.verified"] = "replay.verified"
    version: int
    """Of the sandbox's stream: what was rebuilt, and all on the way to it."""
    snapshot_id: str
    """What it began from; "" where it was the template."""
    calls: int
    """Tool calls that were run again."""
    tree_digest: str
    """Of the work tree at the end; "" where the last calls can't be repeated."""
    seconds: float
    aside: int = 0
    """Of the calls, those that were equal but for what differs by nature, as the clock."""
    lost: int = 0
    """Calls that can't be repeated, and those after them until the next snapshot: nothing is said of them."""


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
