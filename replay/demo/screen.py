"""The timelines of the demo's sessions as they grow, one panel for each."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from events.console import duration
from replay.timeline.describe import asked, printed
from replay.timeline.live import tail
from replay.timeline.model import MICROSECONDS, Call, Mood, Status
from replay.timeline.source import Source, Subject
from replay.timeline.text import line
from replay.timeline.view import MOOD_STYLE, clock, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from events.sqlite_log import SqliteLog
    from replay.demo.app import Errand
    from replay.timeline.model import Claim, Note

_CLOCK, _TOOL, _SECONDS, _OUTCOME = 8, 6, 7, 8
_FRAME = 4
"""Cells of a panel's border and padding."""


@dataclass
class Story:
    """One session's timeline."""

    errand: Errand
    log: SqliteLog
    home: Path
    source: Source | None = None
    shown: set[int] = field(default_factory=set)
    """Positions of the items that were printed for good, where nothing moves."""

    def advance(self) -> None:
        """Take in what is new in the log."""
        if self.source is None and self.errand.session_id:
            self.source = Source(self.log, Subject(self.errand.session_id))
        if self.source is not None:
            self.source.advance()

    @property
    def items(self) -> list[tuple[Claim, Call | Note]]:
        """Everything that happened, in order."""
        if self.source is None:
            return []
        return [(claim, item) for claim in self.source.builder.timeline.claims for item in claim.items]

    @property
    def complete(self) -> bool:
        """Whether the log has the whole turn, too."""
        return self.errand.over and self.source is not None and self.source.builder.timeline.is_at_rest

    @property
    def failure(self) -> str:
        """Why the session could not be served; "" where it could."""
        failed = [item.text for _, item in self.items if not isinstance(item, Call) and item.type == "session.failed"]
        return failed[-1] if failed else ""

    def panel(self, width: int, rows: int) -> Panel:
        """Its last rows, and what the agent said last."""
        room = width - _FRAME
        lines = [text for claim, item in self.items for text in self._rows(claim, item, room)]
        table = Table.grid()
        for text in lines[-rows:] + [Text()] * (rows - len(lines)):
            table.add_row(text)
        says = line(self.errand.says, room - 8) if self.errand.says else "…"
        style = "green" if self.complete else "cyan"
        return Panel(
            Group(table, Text("agent  ", "bold magenta").append(says, "not bold italic")),
            title=Text(f" {self.errand.name} ", f"bold {style}"),
            subtitle=Text(f" session {self.errand.session_id or '…'} ", "dim"),
            title_align="left",
            subtitle_align="left",
            border_style=style,
            width=width,
        )

    def news(self, width: int) -> Iterator[RenderableType]:
        """Rows of what has ended since the last time, for an output where nothing can be drawn over."""
        for claim, item in self.items:
            if item.position in self.shown or (isinstance(item, Call) and not item.status.is_over):
                continue
            self.shown.add(item.position)
            for text in self._rows(claim, item, width - 16):
                yield Text(f"{line(self.errand.name, 14):<14}  ", "dim").append_text(text)

    def _rows(self, claim: Claim, item: Call | Note, width: int) -> Iterator[Text]:
        start = Text(f"{clock(claim, item.at_us):>{_CLOCK}}  ", "dim")
        if not isinstance(item, Call):
            style = MOOD_STYLE[Mood.PLAIN] if item.mood is Mood.GOOD else MOOD_STYLE[item.mood]
            yield start.append(line(item.text, width - _CLOCK - 2), f"not dim {style}")
            return
        room = width - _CLOCK - _TOOL - _SECONDS - _OUTCOME - 8
        took = duration(item.seconds)
        if item.status is Status.RUNNING:
            took = duration(max(0, time.time_ns() // 1000 - item.at_us) / MICROSECONDS)
        start.append(f"{line(item.tool, _TOOL):<{_TOOL}}  ", "not dim bold")
        subject = Text(asked(item, room), "not dim not bold")
        subject.pad_right(max(0, room - subject.cell_len))
        start.append_text(subject).append(f"  {took:>{_SECONDS}}  ", "dim not bold")
        yield start.append_text(outcome(item))
        for text in self._beneath(item, width - _CLOCK - _TOOL - 6):
            yield Text(f"{'':{_CLOCK + _TOOL + 4}}│ {text}", "dim cyan" if item.status is Status.RUNNING else "dim")

    def _beneath(self, call: Call, width: int) -> Iterator[str]:
        """The last line of what failed, or of what runs: enough to follow the plot."""
        said = ""
        if call.status is Status.RUNNING:
            said = tail(self.home, call.sandbox_id, call.tool_use_id)
        elif call.tool == "bash":
            said = printed(call)
        last = said.rstrip("\n").rpartition("\n")[2]
        if last:
            yield line(last, width)
