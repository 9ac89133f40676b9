"""A timeline as it grows: what is settled is printed for good, what runs is shown beneath until it is settled."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text

from replay.timeline import plain
from replay.timeline.live import tail
from replay.timeline.model import Call
from replay.timeline.pauses import Pauses
from replay.timeline.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from rich.console import Console, RenderableType

    from replay.timeline.model import Claim, Note, Timeline
    from replay.timeline.source import Source

LOOK_SECONDS = 0.1
"""How often the file is looked at: what a person who follows it does not notice."""


class Settling:
    """Gives each item of a timeline once, in order, as soon as nothing of it and of those before it will change."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._given: set[int] = set()
        self._heads: set[int] = set()

    def settled(self, *, everything: bool = False) -> Iterator[tuple[Claim, Call | Note | None]]:
        """What has settled since the last time; a claim's head comes with None.

        Args:
            everything: also what has not settled: nothing more is waited for.
        """
        for index, claim in enumerate(self._timeline.claims):
            if index not in self._heads:
                self._heads.add(index)
                yield claim, None
            for item in claim.items:
                if item.position in self._given:
                    continue
                if isinstance(item, Call) and not (item.is_settled or claim.ended or claim.abandoned or everything):
                    return
                self._given.add(item.position)
                yield claim, item

    def pending(self) -> list[Call]:
        """Calls that have not settled, in order."""
        return [call for call in self._timeline.calls if call.position not in self._given]


class Scroll:
    """Draws what has settled, its many pauses as one line."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._pauses = Pauses()
        self._claim: Claim | None = None

    def lines(self, settled: Iterable[tuple[Claim, Call | Note | None]]) -> Iterator[RenderableType]:
        """The lines of what `Settling` gives."""
        for claim, item in settled:
            if item is None:
                yield from self.rest()
                yield Text()
                yield self._view.claim(claim)
                self._claim = claim
            else:
                yield from (self._view.item(claim, one) for one in self._pauses.take(item))

    def rest(self) -> Iterator[RenderableType]:
        """What was held back for later pauses, of which there are no more."""
        if self._claim is not None:
            yield from [self._view.item(self._claim, one) for one in self._pauses.rest()]


def follow(source: Source, home: Path, console: Console, lines: int) -> None:
    """Draw the timeline until the session is at rest. KeyboardInterrupt is the caller's.

    Args:
        home: where spools of live output are looked for.
        lines: of output, for each call.
    """
    timeline = source.builder.timeline
    settling = Settling(timeline)
    view = View(console.width, lines)
    scroll = Scroll(view)
    source.advance()
    console.print(view.head(timeline))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            over = timeline.is_at_rest
            for drawn in scroll.lines(settling.settled(everything=over)):
                console.print(drawn)
            if over:
                for drawn in scroll.rest():
                    console.print(drawn)
                break
            if console.is_terminal:
                live.update(_pending(view, settling, home), refresh=True)
            time.sleep(LOOK_SECONDS)
            source.advance()
    console.print(Text(), view.totals(timeline.totals), sep="\n")


def _pending(view: View, settling: Settling, home: Path) -> RenderableType:
    now = time.time_ns() // 1000
    running = [call for call in settling.pending() if call.started_us is not None]
    waiting = len(settling.pending()) - len(running)
    rows: list[RenderableType] = [
        view.running(call, now, tail(home, call.sandbox_id, call.tool_use_id)) for call in running
    ]
    if waiting:
        rows.append(Text(f"{'':12}{waiting:,} more to run", "dim"))
    return Group(*rows)


def follow_json(source: Source, write: Callable[[str], None]) -> None:
    """The same as JSON Lines: `{"claim"}` for each claim, each item as it settles, `{"totals"}` at the end."""
    timeline = source.builder.timeline
    settling = Settling(timeline)
    source.advance()
    while True:
        over = timeline.is_at_rest
        for claim, item in settling.settled(everything=over):
            write(plain.dumps({"claim": plain.claim(claim)} if item is None else plain.item(item)))
        if over:
            break
        time.sleep(LOOK_SECONDS)
        source.advance()
    write(plain.dumps({"totals": plain.timeline(timeline)["totals"]}))
