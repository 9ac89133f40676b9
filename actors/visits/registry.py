"""The visits of one sandbox that are open: it is not idle while there are any."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.handle import SandboxFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS_MAX = 32
"""Connections to ports at once; others wait. The guest's stream has 64 channels, and tool calls need theirs."""
VISITS_MAX = 20
"""Programs, forwards and copies at once, likewise."""


@dataclass(slots=True)
class OpenForward:
    """A forward that connections go through."""

    port: int
    bytes_in: int = 0
    bytes_out: int = 0
    connections: set[asyncio.Task[None]] = field(default_factory=set)


class Visits:
    """Who is in, and how to wait until nobody is."""

    def __init__(self) -> None:
        self._open: dict[object, asyncio.Task[None] | None] = {}
        self._copies: set[object] = set()
        self._none = asyncio.Event()
        self._no_copies = asyncio.Event()
        self._changed()
        self.closed = ""
        """Why nobody is let in any more."""
        self.connections = asyncio.Semaphore(CONNECTIONS_MAX)
        self.forwards: dict[str, OpenForward] = {}
        """By their ids."""

    def __len__(self) -> int:
        return len(self._open)

    @property
    def copying(self) -> bool:
        """Whether files go in or out."""
        return bool(self._copies)

    @contextmanager
    def entered(self, *, copies: bool, guest: bool) -> Iterator[None]:
        """Be in. A guest's task is cancelled by `end_all`; anybody else is waited for, and let in always.

        Raises `SandboxFailed` where nobody is let in, or too many are.
        """
        if guest and self.closed:
            raise SandboxFailed(self.closed)
        if guest and len(self._open) >= VISITS_MAX + CONNECTIONS_MAX:
            raise SandboxFailed(f"{len(self._open)} visits to this sandbox are open; end some first")
        token = object()
        self._open[token] = asyncio.current_task() if guest else None
        if copies:
            self._copies.add(token)
        self._changed()
        try:
            yield
        finally:
            del self._open[token]
            self._copies.discard(token)
            self._changed()

    def _changed(self) -> None:
        for event, there in ((self._none, self._open), (self._no_copies, self._copies)):
            if there:
                event.clear()
            else:
                event.set()

    async def wait_none(self, *, copies: bool = False) -> None:
        """Return when nobody is in; with `copies`, when no files go in or out. Look again: others may have come."""
        await (self._no_copies if copies else self._none).wait()

    async def end_all(self) -> None:
        """Send all guests away, and return when they are gone."""
        guests = {task for task in self._open.values() if task is not None and task is not asyncio.current_task()}
        for task in guests:
            task.cancel()
        if guests:
            await asyncio.wait(guests)
