"""Following a log: what is there, then what comes.

The writer of this process rings a bell after each commit. A log that was opened for reading has no writer to ring it,
so it looks at the file now and then: that way the appends of other processes are seen.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from events.errors import LogClosed
from events.log import CaughtUp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

POLL_SECONDS = 0.05
"""How often a reader looks at the file of another process: what a person who follows it does not notice."""


class _Placed(Protocol):
    @property
    def position(self) -> int: ...


T = TypeVar("T", bound=_Placed)


class Signal:
    """Rings when something was appended; counts, so that nothing rung between two looks is missed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._closed = False
        self._loops: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    @property
    def count(self) -> int:
        """How often it rang."""
        return self._count

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more."""
        return self._closed

    def notify(self) -> None:
        """Ring."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()
            for bell, loop in self._loops.items():
                # RuntimeError: the loop was closed without closing its subscription.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(bell.set)

    def close(self) -> None:
        """Ring for the last time."""
        self._closed = True
        self.notify()

    def wait(self, seen: int, timeout: float | None) -> None:
        """Wait until it has rung more than `seen` times, for at most `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._count > seen or self._closed, timeout)

    def listen(self) -> asyncio.Event:
        """A bell for the running loop, set at each ring; give it back with `forget`."""
        bell = asyncio.Event()
        with self._changed:
            self._loops[bell] = asyncio.get_running_loop()
        return bell

    def forget(self, bell: asyncio.Event) -> None:
        """Stop ringing a bell."""
        with self._changed:
            self._loops.pop(bell, None)


class _Patience:
    """How long to wait for the next look, and when to give up."""

    def __init__(self, poll: bool, timeout: float | None) -> None:
        self._poll = POLL_SECONDS if poll else None
        self._timeout = timeout
        self._since = time.monotonic()

    def renew(self) -> None:
        self._since = time.monotonic()

    def left(self) -> float | None:
        """Seconds until the next look; None: until it rings. 0 or less: give up."""
        if self._timeout is None:
            return self._poll
        left = self._since + self._timeout - time.monotonic()
        return left if self._poll is None else min(left, self._poll)


def follow(
    tail: Callable[[int], Sequence[T]], signal: Signal, after: int, *, poll: bool, timeout: float | None
) -> Iterator[T | CaughtUp]:
    """Yield what `tail(position)` gives, page by page, with a marker whenever it gives nothing more.

    Args:
        tail: events after a position, some of them where there are many.
        poll: look at the file now and then, as nobody here rings.
        timeout: seconds of silence after which it ends; None: never.
    """
    patience = _Patience(poll, timeout)
    fresh = True
    while True:
        seen = signal.count
        try:
            page = tail(after)
        except LogClosed:
            return
        if page:
            yield from page
            after, fresh = page[-1].position, True
            patience.renew()
            continue
        if fresh:
            yield CaughtUp(after)
            fresh = False
        wait = patience.left()
        if signal.closed or (wait is not None and wait <= 0):
            return
        signal.wait(seen, wait)


async def follow_async(
    tail: Callable[[int], Sequence[T]], signal: Signal, after: int, *, poll: bool, timeout: float | None
) -> AsyncIterator[T | CaughtUp]:
    """`follow` for a coroutine; reads in a thread."""
    patience = _Patience(poll, timeout)
    fresh = True
    bell = signal.listen()
    try:
        while True:
            bell.clear()
            try:
                page = await asyncio.to_thread(tail, after)
            except LogClosed:
                return
            if page:
                for event in page:
                    yield event
                after, fresh = page[-1].position, True
                patience.renew()
                continue
            if fresh:
                yield CaughtUp(after)
                fresh = False
            wait = patience.left()
            if signal.closed or (wait is not None and wait <= 0):
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(bell.wait(), wait)
    finally:
        signal.forget(bell)
