"""Time and ids of a recorded-session server: time strictly increases, ids look like production's."""

from __future__ import annotations

import random
import string
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_ALPHABET = string.ascii_letters + string.digits
_TICK = timedelta(microseconds=1)


class Clock:
    """Wall time for stamps, monotonic seconds for leases."""

    def __init__(
        self,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._last = datetime.min.replace(tzinfo=UTC)
        self.monotonic = monotonic

    def stamp(self) -> str:
        """RFC 3339 with microseconds, later than every stamp before it, so that sorting by time is sorting by order."""
        self._last = max(self._wall(), self._last + _TICK)
        return self._last.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Ids:
    """Mints ids: a prefix of contract §1 and 24 letters and digits."""

    def __init__(self, seed: int | None = None) -> None:
        """With a `seed` two servers mint the same ids in the same order; without one no two servers share an id."""
        self._random = random.Random(seed)

    def mint(self, prefix: str) -> str:
        """A new id, e.g. `mint("sevt_")`."""
        return prefix + "".join(self._random.choices(_ALPHABET, k=24))
