"""What a bench gives back, and how two things are measured in turns."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Progress = Callable[[str], None]
"""Told now and then what is being done, in a few words."""

SCRATCH = Path("/var/tmp")
"""Where benches write: a disk, as `/tmp` is RAM on many machines and RAM needs no `fdatasync`."""


@dataclass(eq=False)
class BenchImpossible(HourglassError):
    """The bench {bench} can't run here: {reason}."""

    bench: str
    reason: str
    remedy: str
    next_step = "{remedy}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value."""

    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Promise:
    """A bound, and what was measured against it."""

    name: str
    value: float
    bound: float
    at_least: bool
    """Whether the bound is the least value that is good enough, or the greatest."""

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass
class Result:
    """What one bench found."""

    bench: str
    figures: dict[str, Figure] = field(default_factory=dict)
    promises: list[Promise] = field(default_factory=list)

    def figure(self, name: str, value: float, unit: str) -> None:
        """Add a figure."""
        self.figures[name] = Figure(value, unit)

    def at_least(self, name: str, value: float, bound: float) -> None:
        """Add a promise that `value` is no less than `bound`."""
        self.promises.append(Promise(f"{name}, at least", value, bound, at_least=True))

    def at_most(self, name: str, value: float, bound: float) -> None:
        """Add a promise that `value` is no more than `bound`."""
        self.promises.append(Promise(f"{name}, at most", value, bound, at_least=False))

    @property
    def holds(self) -> bool:
        """Whether every promise is kept."""
        return all(promise.holds for promise in self.promises)

    def shape(self, machine: dict[str, Any]) -> dict[str, Any]:
        """`{"bench", "machine", "figures": {name: {"value", "unit"}}, "promises": [{"name", "value", …}]}`."""
        return {
            "bench": self.bench,
            "machine": machine,
            "figures": {name: {"value": one.value, "unit": one.unit} for name, one in self.figures.items()},
            "promises": [
                {"name": one.name, "value": one.value, "bound": one.bound, "holds": one.holds} for one in self.promises
            ],
        }


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """An empty directory on a disk, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"hourglass-bench-{name}-", dir=SCRATCH) as directory:
        yield Path(directory)


def in_turns(rounds: int, *measured: Callable[[int], float]) -> list[list[float]]:
    """Measure each in turn, `rounds` times; the values of each.

    Args:
        measured: gets the number of the round, from 0.
    """
    values: list[list[float]] = [[] for _ in measured]
    for number in range(rounds):
        for index, measure in enumerate(measured):
            values[index].append(measure(number))
    return values


def ratio(ours: Sequence[float], yardstick: Sequence[float]) -> float:
    """The median of the turns' ratios: both sides of a turn had the same neighbours."""
    return statistics.median(one / other for one, other in zip(ours, yardstick, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of all are no greater than: an observed one, not one in between."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
