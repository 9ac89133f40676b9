"""The chain of evidence: each step of a bisect, recorded in a stream of its own before anybody is told of it.

The stream's name is derived from what the bisect asks: of which sandbox, with which command, on whose machines. So one
that was cut short goes on where it was when it is started again, and what is asked later of other versions knows the
verdicts that there are. Its expected version is the fence: of two that ask the same at once, one stops.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import orjson

from events.envelope import new_events
from events.log import Append
from events.types import BisectProbed
from replay.rebuild.findings import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from events.log import EventLog
    from events.types import BisectBegun, EventData

_DIGITS = 16
SKIP = 125
"""The exit code that says that a version can't be told."""


def stream_of(begun: BisectBegun) -> str:
    """The stream of what a bisect asks, whichever versions it begins from."""
    asked = [begun.stream, begun.command, begun.driver, begun.anyway]
    return f"bisect-{hashlib.sha256(orjson.dumps(asked)).hexdigest()[:_DIGITS]}"


class Evidence:
    """What one bisect records, and what was recorded for it before. `opened` makes one."""

    def __init__(self, log: EventLog, begun: BisectBegun, recorder: Recorder | None) -> None:
        self.stream = stream_of(begun) if recorder is not None else ""
        """"" where nothing is recorded."""
        self._begun = begun
        self._recorder = recorder
        self._token = secrets.token_hex(8)
        self._turn = asyncio.Lock()
        self._version = log.version(self.stream) if self.stream else 0
        [first] = log.read(begun.stream, limit=1)
        self._correlation_id = first.correlation_id
        self.known = _known(log, self.stream) if self.stream else {}
        """What earlier bisects that asked the same found, by version: verdicts of the command alone."""

    @classmethod
    @contextmanager
    def opened(cls, log: EventLog, begun: BisectBegun, path: Path | None, *, anew: bool = False) -> Iterator[Self]:
        """For a bisect of a log at `path`; None: nothing is recorded, and nothing is known.

        Args:
            anew: forget what was found before.

        Raises `LogError`.
        """
        if path is None:
            yield cls(log, begun, None)
            return
        with Recorder(path) as recorder:
            made = cls(log, begun, recorder)
            made.known = {} if anew else made.known
            yield made

    async def begin(self) -> None:
        """Record that it begins. Raises `NotRecorded`."""
        await self.add(self._begun)

    async def add(self, data: EventData) -> None:
        """Record a step; durable when it returns. Raises `NotRecorded`."""
        if self._recorder is None:
            return
        async with self._turn:
            events = new_events(f"bisect-{self._token}-{self._version}", [data], correlation_id=self._correlation_id)
            write = Append(self.stream, events, self._version)
            appending = asyncio.ensure_future(asyncio.to_thread(self._recorder.append, write, self._begun.stream))
            try:
                await asyncio.shield(appending)
            except asyncio.CancelledError:
                # The thread can't be stopped, and what it appends with is to be closed after it.
                await asyncio.wait([appending])
                raise
            self._version += 1


def _known(log: EventLog, stream: str) -> dict[int, BisectProbed]:
    told = (data for data in log.read_data(stream) if isinstance(data, BisectProbed))
    # What could not be rebuilt may be now, and what hung may have had too little time.
    counting = (one for one in told if one.verdict in ("good", "bad") or one.exit_code == SKIP)
    return {one.version: one for one in counting}
