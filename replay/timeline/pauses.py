"""Many pauses as one line: a machine that is frozen between tool calls would fill the screen otherwise.

For people alone: the JSON of a timeline has every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from events.console import duration
from replay.timeline.model import MICROSECONDS, Note
from replay.timeline.text import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from replay.timeline.model import Call

_FROZEN, _THAWED = "sandbox.frozen", "sandbox.thawed"


@dataclass(slots=True)
class _Run:
    """Pauses of one sandbox with nothing but tool calls between them."""

    pairs: int = 0
    """Frozen and thawed again; the first is shown as it is, the others are summed."""
    frozen_us: int = 0
    """In the others, together."""
    frozen: Note | None = None
    """Not thawed yet."""
    last: Note | None = None
    """By which the last of the others ended."""

    def take(self, note: Note) -> list[Note]:
        if note.type == _FROZEN:
            self.frozen = note
            return [] if self.pairs else [note]
        frozen, self.frozen = self.frozen, None
        if frozen is None:
            return [note]
        self.pairs += 1
        if self.pairs == 1:
            return [note]
        self.frozen_us += max(0, note.at_us - frozen.at_us)
        self.last = note
        return []

    def rest(self) -> list[Note]:
        told: list[Note] = []
        if self.last is not None:
            last, times = self.last, count(self.pairs - 1, "more time")
            text = f"frozen {times} between calls, {duration(self.frozen_us / MICROSECONDS)} in all"
            told.append(Note(last.at_us, last.position, last.stream, last.version, last.type, text, of=last.of))
        if self.pairs and self.frozen is not None:
            told.append(self.frozen)
        return told


class Pauses:
    """Takes the items of a claim one by one, and gives back what is to be shown by then."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}

    def take(self, item: Call | Note) -> list[Call | Note]:
        """What to show now. Anything but a call or another pause ends a run."""
        if not isinstance(item, Note):
            return [item]
        if item.type in (_FROZEN, _THAWED):
            return [*self._runs.setdefault(item.stream, _Run()).take(item)]
        return [*self.rest(), item]

    def rest(self) -> list[Call | Note]:
        """What was held back, in order; nothing more is expected of these runs."""
        held = [note for run in self._runs.values() for note in run.rest()]
        self._runs.clear()
        return [*sorted(held, key=lambda note: note.position)]


def folded(items: Iterable[Call | Note]) -> Iterator[Call | Note]:
    """A claim's items, with its many pauses as one line."""
    pauses = Pauses()
    for item in items:
        yield from pauses.take(item)
    yield from pauses.rest()
