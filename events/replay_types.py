"""What looking back found: events of the stream `replay-<sandbox id>`, and of a bisect's own, `bisect-<id>`.

Not of the sandbox's own: its versions name states of its machine, and whoever runs it expects to be its one writer.
A log that has verifications there is read.
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


class BisectBegun(Payload):
    """Somebody looks for the first version at which a command fails. One that was cut short is begun again."""

    type: Literal["bisect.begun"] = "bisect.begun"
    stream: str
    """Of the sandbox."""
    good: int
    """Version at which the command is said to succeed."""
    bad: int
    """Version at which it is said to fail."""
    command: list[str]
    """Program and arguments."""
    driver: str
    """Of the machines that it runs in."""
    timeout_seconds: float
    """How long it may run in each."""
    jobs: int
    """How many machines at once."""
    anyway: bool = False
    """Whether versions count that don't come back as they were."""


class BisectProbed(Payload):
    """The command ran at one version, or that version can't be told."""

    type: Literal["bisect.probed"] = "bisect.probed"
    version: int
    """Of the sandbox's stream."""
    verdict: Literal["good", "bad", "skipped", "ended"]
    """`ended`: it was killed or hung, and the bisect ended with it."""
    exit_code: int | None = None
    """None where it did not run, or did not end by itself."""
    output_digest: str = ""
    """SHA-256 of all that a result has of its output, in hex; "" where it did not run."""
    output: str = ""
    """The last of it, for a person."""
    because: str = ""
    """Why it was skipped or ended, for a person."""
    seconds: float
    """Of machine and command together."""


class BisectFound(Payload):
    """What a bisect came to: the command succeeds at one version, and fails at another."""

    type: Literal["bisect.found"] = "bisect.found"
    good: int
    """The last version at which it was seen to succeed."""
    bad: int
    """The first after that at which it was seen to fail."""
    tool_use_ids: list[str]
    """The calls in between; one, where nothing had to be skipped."""
    skipped: list[int]
    """Versions in between that could not be told."""
    probes: int
    """How many versions were probed, those of an earlier attempt included."""
    seconds: float
