"""How much begins at the same moment on a node: what makes a crowd of short calls, and their snapshots, take turns.

gVisor's threads spin for a while before they sleep. A hundred sandboxes that wake up together spin against each other:
on two cores each of a hundred trivial calls was seen to use 360 to 740 ms of CPU, and 15 ms alone. So a call has a
place for its first moments, in the order in which they came. Most calls are over by then; a longer one gives its place
up, and runs on beside the others.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_FIRST_S = 0.1
"""A short call, thaw included, is over after a fifth of this."""


class Pace:
    """Of one host."""

    def __init__(self, places: int, first_seconds: float = _FIRST_S) -> None:
        """Args:
        places: how many calls are in their first moments at once.
        first_seconds: how long those are.
        """
        self._places = asyncio.Semaphore(places)
        self.snapshot = asyncio.Semaphore(max(1, places // 4))
        """A place of the snapshots; held until the guest runs again."""
        self._first_seconds = first_seconds

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it until the end of the block, or of the call's first moments."""
        await self._places.acquire()
        held = True

        def give_up() -> None:
            nonlocal held
            if held:
                held = False
                self._places.release()

        timer = asyncio.get_running_loop().call_later(self._first_seconds, give_up)
        try:
            yield
        finally:
            timer.cancel()
            give_up()
