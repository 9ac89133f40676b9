"""What a timeline is made of. Everything is as far as the log tells it: it fills up while the session runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.payload import JsonObject

MICROSECONDS = 1_000_000


class Status(StrEnum):
    """How far a tool call got."""

    REQUESTED = "requested"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    """The command failed: a result as any other."""
    INTERRUPTED = "interrupted"
    DENIED = "denied"
    UNREADABLE = "unreadable"
    """It ended, and the log's row of that can't be read."""

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more but the post."""
        return self not in (Status.REQUESTED, Status.RUNNING)


class Posted(StrEnum):
    """Whether Anthropic has the result."""

    NO = "no"
    POSTED = "posted"
    ALREADY_ANSWERED = "already_answered"
    REFUSED = "refused"


class Mood(StrEnum):
    """How a note is meant."""

    PLAIN = "plain"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(slots=True)
class Call:
    """One tool call."""

    tool_use_id: str
    tool: str
    input: JsonObject
    position: int
    """Of the event that brought it."""
    thread_id: str = ""
    sandbox_id: str = ""
    """"" before it was started."""
    status: Status = Status.REQUESTED
    reason: str = ""
    """Why it was interrupted, or who denied it."""
    requested_us: int | None = None
    """Times are in microseconds since the epoch, by the writer's clock."""
    started_us: int | None = None
    ended_us: int | None = None
    posted_us: int | None = None
    content: list[JsonObject] = field(default_factory=list)
    """The result's content blocks; of a denied call, what the agent is told."""
    measured: float | None = None
    """Seconds, where the sandbox measured them."""
    output_bytes: int = 0
    """What the command printed in all, before truncation."""
    posted: Posted = Posted.NO
    posted_detail: str = ""
    version: int | None = None
    """Of the sandbox's stream after the call ended: it names the machine's state then."""

    @property
    def at_us(self) -> int:
        """When it began, or was asked for where it has not begun."""
        return self.started_us or self.requested_us or self.ended_us or 0

    @property
    def seconds(self) -> float | None:
        """How long it took; None where it has not ended, or was never started."""
        if self.measured is not None:
            return self.measured
        if self.started_us is None or self.ended_us is None:
            return None
        return (self.ended_us - self.started_us) / MICROSECONDS

    @property
    def is_owed(self) -> bool:
        """Whether Anthropic waits for its result: not where it was denied, nor for a call of a variant in a fork."""
        return self.status is not Status.DENIED and self.requested_us is not None

    @property
    def is_settled(self) -> bool:
        """Whether all of it is known: it ended, and its result is posted or owed to nobody."""
        return self.status.is_over and (not self.is_owed or self.posted is not Posted.NO)


@dataclass(frozen=True, slots=True)
class Note:
    """Anything else that happened, in words that are safe to print."""

    at_us: int
    position: int
    stream: str
    version: int
    type: str
    text: str
    mood: Mood = Mood.PLAIN
    of: str = ""
    """The sandbox that it is of, where that is not the timeline's first; as it is, not clean."""


@dataclass(slots=True)
class Claim:
    """What happened from one claim of the session to the next."""

    number: int
    """From 1; 0: before any claim."""
    claim_id: str = ""
    environment_id: str = ""
    worker_id: str = ""
    credential: str = ""
    began_us: int = 0
    last_us: int = 0
    """Of its last event so far."""
    ended: str = ""
    """Type of the event by which it was given up; "" while it is held."""
    abandoned: bool = False
    """Never given up: the next claim shows that what held it died."""
    ended_us: int | None = None
    items: list[Call | Note] = field(default_factory=list)

    @property
    def calls(self) -> list[Call]:
        """Its tool calls, in order."""
        return [item for item in self.items if isinstance(item, Call)]


@dataclass(frozen=True, slots=True)
class Totals:
    """A timeline in figures."""

    claims: int
    calls: int
    ok: int
    errors: int
    interrupted: int
    denied: int
    open: int
    """Not ended yet."""
    posted: int
    """Whose result Anthropic has from here."""
    unposted: int
    """Ended, with a result that Anthropic has not."""
    tool_seconds: float
    """In tools, all calls together."""
    held_seconds: float
    """From each claim to its end, or to its last event."""
    output_bytes: int
    files_written: int
    edits: int
    crashes: int


@dataclass(slots=True)
class Timeline:
    """A session's history, its sandbox's included."""

    session_id: str
    """"" for a sandbox that no session uses."""
    sandboxes: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    stop_reason: str = ""
    """Why the agent's last turn ended; "" while one goes on."""
    crashes: int = 0

    @property
    def calls(self) -> list[Call]:
        """All tool calls, in order."""
        return [call for claim in self.claims for call in claim.calls]

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is going on: no claim is held, or the turn is over and every call settled."""
        last = self.claims[-1] if self.claims else None
        if last is None or last.number == 0:
            return False
        return bool(last.ended) or (bool(self.stop_reason) and all(call.is_settled for call in self.calls))

    @property
    def totals(self) -> Totals:
        """In figures."""
        calls = self.calls
        by_status = [call.status for call in calls]
        done = [call for call in calls if call.status is Status.OK]
        return Totals(
            claims=sum(claim.number > 0 for claim in self.claims),
            calls=len(calls),
            ok=by_status.count(Status.OK),
            errors=by_status.count(Status.ERROR),
            interrupted=by_status.count(Status.INTERRUPTED),
            denied=by_status.count(Status.DENIED),
            open=sum(not status.is_over for status in by_status),
            posted=sum(call.posted is Posted.POSTED for call in calls),
            unposted=sum(call.status.is_over and not call.is_settled for call in calls),
            tool_seconds=sum(call.seconds or 0.0 for call in calls),
            held_seconds=sum(self._held()),
            output_bytes=sum(call.output_bytes for call in calls),
            files_written=sum(call.tool == "write" for call in done),
            edits=sum(call.tool == "edit" for call in done),
            crashes=self.crashes,
        )

    def _held(self) -> Iterator[float]:
        for claim in self.claims:
            if claim.number:
                yield ((claim.ended_us or claim.last_us) - claim.began_us) / MICROSECONDS
