"""How those who handed in an append hear of it: threads by a future, coroutines by one wake-up for each commit."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from events.requests import Placed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.requests import Outcome, Request


def settle_futures(settled: Sequence[tuple[Request, Outcome]]) -> None:
    """A waiter whose requests carry a `concurrent.futures.Future` as their token."""
    for request, outcome in settled:
        future: Future[Any] = request.token
        # False where it was cancelled: the append happened all the same.
        if future.set_running_or_notify_cancel():
            _settle(future, outcome)


def _settle(future: Future[Any] | asyncio.Future[Any], outcome: Outcome) -> None:
    if isinstance(outcome, Placed):
        future.set_result(outcome.events())
    elif isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


class LoopWaiter:
    """The waiter of one event loop; its requests carry an `asyncio.Future` as their token."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def __call__(self, settled: Sequence[tuple[Request, Outcome]]) -> None:
        """Wake the loop once for all of them."""
        # RuntimeError: the loop was closed, and with it everybody who waited.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._settle, settled)

    @staticmethod
    def _settle(settled: Sequence[tuple[Request, Outcome]]) -> None:
        for request, outcome in settled:
            future: asyncio.Future[Any] = request.token
            if not future.done():
                _settle(future, outcome)
