"""A timeline drawn for a terminal: claims as groups, a line for each call and note, what it printed beneath."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from events.console import duration, size
from replay.timeline.describe import asked, changed, printed, tool
from replay.timeline.model import MICROSECONDS, Call, Mood, Posted, Status
from replay.timeline.pauses import folded
from replay.timeline.text import count, excerpt, line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from replay.timeline.model import Claim, Note, Timeline, Totals

_CLOCK, _TOOL, _SECONDS, _OUTCOME = 10, 6, 10, 13
_INDENT = _CLOCK + 2 + _TOOL + 2
_MARGIN = 2
_STATUS_STYLE = {
    Status.REQUESTED: "dim",
    Status.RUNNING: "cyan",
    Status.OK: "green",
    Status.ERROR: "red",
    Status.INTERRUPTED: "yellow",
    Status.DENIED: "magenta",
    Status.UNREADABLE: "red",
}
MOOD_STYLE = {Mood.PLAIN: "dim", Mood.GOOD: "green", Mood.WARNING: "yellow", Mood.BAD: "red"}
"""How a note of each mood is written."""
_TOOLS_WITH_OUTPUT = frozenset({"bash", "read", "glob", "grep"})
"""The others print what they changed, which is shown as such."""


@dataclass(frozen=True, slots=True)
class View:
    """How a timeline is drawn."""

    width: int
    """Of the terminal, in cells."""
    lines: int = 6
    """How many lines of each call's output are shown; 0: none."""

    def whole(self, timeline: Timeline) -> RenderableType:
        """Everything."""
        parts: list[RenderableType] = [self.head(timeline)]
        for claim in timeline.claims:
            parts += [Text(), self.claim(claim), *(self.item(claim, item) for item in folded(claim.items))]
        return Group(*parts, Text(), self.totals(timeline.totals))

    def head(self, timeline: Timeline) -> Text:
        """Whose timeline it is."""
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(line(f"session {timeline.session_id}" if timeline.session_id else "no session", self.width), "bold")
        for sandbox in timeline.sandboxes:
            text.append(line(f"  sandbox {sandbox}", self.width), "cyan")
        return text

    def claim(self, claim: Claim) -> Text:
        """The line above a claim's items."""
        began = datetime.fromtimestamp(claim.began_us / MICROSECONDS, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        text = Text(no_wrap=True, overflow="ellipsis")
        if claim.number == 0:
            return text.append("before any claim", "bold").append(f"  {began}", "dim")
        text.append(f"claim {claim.number}", "bold").append(f"  {began}")
        if claim.ended_us is not None:
            text.append(f"  {duration((claim.ended_us - claim.began_us) / MICROSECONDS)}")
        if claim.abandoned:
            text.append("  never given back: what held it died", "yellow")
        served_with = f"  {claim.environment_id}, by {claim.worker_id}, with its {claim.credential.replace('_', ' ')}"
        return text.append(line(served_with, self.width), "dim")

    def item(self, claim: Claim, item: Call | Note) -> RenderableType:
        """A call with what it printed, or a note."""
        if not isinstance(item, Call):
            text = f"{item.of}: {item.text}" if item.of else item.text
            return self._row(claim, item.at_us, Text(line(text, self.width), MOOD_STYLE[item.mood]))
        call = item
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(width=_CLOCK, justify="right", no_wrap=True)
        row.add_column(width=_TOOL, no_wrap=True)
        row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        row.add_column(width=_SECONDS, justify="right", no_wrap=True)
        row.add_column(width=_OUTCOME, no_wrap=True)
        row.add_row(
            Text(clock(claim, call.at_us), "dim"),
            Text(line(tool(call), _TOOL), "bold"),
            Text(asked(call, self.width)),
            Text(duration(call.seconds) if call.seconds is not None else "", "dim"),
            outcome(call),
        )
        beneath = [Text(f"{'':{_INDENT}}{text}", style, no_wrap=True) for text, style in self._beneath(call)]
        return Padding(Group(row, *beneath), (0, 0, 0, _MARGIN))

    def _beneath(self, call: Call) -> Iterator[tuple[str, str]]:
        """Lines under a call, each with its style."""
        width = self.width - _INDENT - _MARGIN - 2
        if call.reason:
            yield f"{line(call.status.value, width)}: {line(call.reason.replace('_', ' '), width)}", "yellow"
        if call.status.is_over and call.is_owed and call.posted is not Posted.POSTED:
            yield line(_post(call), width), "dim" if call.posted is Posted.ALREADY_ANSWERED else "yellow"
        for text in changed(call, width):
            yield text, {"+": "green", "-": "red"}.get(text[:1], "dim")
        if call.tool in _TOOLS_WITH_OUTPUT or call.status is not Status.OK:
            for text in excerpt(printed(call), self.lines, width):
                yield f"│ {text}", "dim"

    def _row(self, claim: Claim, at_us: int, text: Text) -> RenderableType:
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(width=_CLOCK, justify="right", no_wrap=True)
        row.add_column(ratio=1)
        row.add_row(Text(clock(claim, at_us), "dim"), text)
        return Padding(row, (0, 0, 0, _MARGIN))

    def totals(self, totals: Totals) -> Text:
        """The last line."""
        kinds = [
            (totals.ok, "ok", "green"),
            (totals.errors, "with an error", "red"),
            (totals.interrupted, "interrupted", "yellow"),
            (totals.denied, "denied", "magenta"),
            (totals.open, "open", "cyan"),
            (totals.posted, "posted ↑", "dim"),
            (totals.unposted, "not posted", "yellow"),
        ]
        text = Text(count(totals.calls, "call"), "bold")
        for number, what, style in kinds:
            if number:
                text.append(", ", "not bold").append(f"{number:,} {what}", f"not bold {style}")
        rest = [
            f"{duration(totals.tool_seconds)} in tools",
            *([f"{duration(totals.held_seconds)} held"] if totals.claims else []),
            *([f"{count(totals.claims, 'claim')}"] if totals.claims > 1 else []),
            *([f"{size(totals.output_bytes)} printed"] if totals.output_bytes else []),
            *([f"{count(totals.files_written, 'file')} written"] if totals.files_written else []),
            *([count(totals.edits, "edit")] if totals.edits else []),
            *([count(totals.crashes, "crash", "crashes")] if totals.crashes else []),
        ]
        return text.append(f"  ({'; '.join(rest)})", "not bold dim")

    def running(self, call: Call, now_us: int, output: str) -> RenderableType:
        """A call that is not settled, with what it has printed so far."""
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{'':{_MARGIN + _CLOCK + 2}}{line(tool(call), _TOOL):{_TOOL}}  ", "bold cyan")
        text.append(asked(call, self.width - _INDENT - 20))
        if call.started_us is not None:
            text.append(f"  {call.status.value} {duration(max(0, now_us - call.started_us) / MICROSECONDS)}", "cyan")
        width = self.width - _INDENT - _MARGIN - 2
        shown = excerpt(output, max(self.lines, 1), width) if output else []
        return Group(text, *(Text(f"{'':{_INDENT + _MARGIN}}│ {one}", "dim cyan", no_wrap=True) for one in shown))


def clock(claim: Claim, at_us: int) -> str:
    """Time since the claim: `0:04.12`, `1:02:03.50`."""
    hundredths = max(0, at_us - claim.began_us) // 10_000
    seconds, rest = divmod(hundredths, 100)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{clock}.{rest:02}"


def outcome(call: Call) -> Text:
    """How far a call got, and an arrow where Anthropic has its result."""
    text = Text(call.status.value, _STATUS_STYLE[call.status])
    return text.append(" ↑", "dim") if call.posted is Posted.POSTED else text


def _post(call: Call) -> str:
    what = {
        Posted.NO: "result not posted",
        Posted.REFUSED: "the result was refused",
        Posted.ALREADY_ANSWERED: "answered before the result was posted",
        Posted.POSTED: "posted",
    }[call.posted]
    return f"{what}: {call.posted_detail}" if call.posted_detail else what
