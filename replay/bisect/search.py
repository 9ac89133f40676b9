"""The search: which versions to probe next, given what was found of others. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Told(StrEnum):
    """What was found of a version."""

    GOOD = "good"
    BAD = "bad"
    SKIPPED = "skipped"
    """It can't be told."""


class Search:
    """Looks for the first bad version between a good and a bad one."""

    def __init__(self, good: int, between: Iterable[int], bad: int) -> None:
        self._good, self._bad = good, bad
        self._between = sorted({one for one in between if good < one < bad})
        self._told: dict[int, Told] = {}

    def tell(self, version: int, what: Told) -> None:
        """Take in what was found of a version in between."""
        self._told[version] = what

    @property
    def high(self) -> int:
        """The first version that is bad, as far as is known."""
        return min(self._all(Told.BAD), default=self._bad)

    @property
    def low(self) -> int:
        """The last one before it that is good."""
        return max((one for one in self._all(Told.GOOD) if one < self.high), default=self._good)

    @property
    def skipped(self) -> list[int]:
        """Versions between the two that can't be told."""
        return [one for one in self._all(Told.SKIPPED) if self.low < one < self.high]

    @property
    def good_after_bad(self) -> list[int]:
        """Good versions after a bad one: there is more than one place where it breaks."""
        return [one for one in self._all(Told.GOOD) if one > self.high]

    @property
    def left(self) -> list[int]:
        """Versions that may still be the first bad one, or the last good one."""
        return [one for one in self._between if self.low < one < self.high and one not in self._told]

    def next(self, count: int) -> list[int]:
        """The versions to probe now, at most `count`, splitting what is left in `count + 1` parts; empty at the end.

        After one that can't be told, a neighbour is tried; after more, ones further away, since whatever is the matter
        may be so for all around.
        """
        left = self.left
        if len(left) <= count:
            return left
        missed = len(self.skipped)
        if missed > 1:
            shares = [_spread(missed + number) for number in range(count)]
        else:
            shares = [number / (count + 1) for number in range(1, count + 1)]
        return [left[place] for place in sorted({int(len(left) * share) for share in shares})]

    def rounds(self, count: int) -> int:
        """How many more there will be at most, where none is skipped."""
        left, rounds = len(self.left), 0
        while left > 0:
            left, rounds = left // (count + 1), rounds + 1
        return rounds

    def _all(self, what: Told) -> list[int]:
        return sorted(one for one, told in self._told.items() if told is what)


def _spread(number: int) -> float:
    """Places from 0 to 1 that lie far from all before: 1/2, 1/4, 3/4, 1/8, 5/8 …"""
    place, part = 0.0, 0.5
    while number:
        place += part * (number & 1)
        number, part = number >> 1, part / 2
    return place
