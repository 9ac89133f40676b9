"""The log as an actor sees it: awaited, and the same whether it lies in this process or behind a Ray call.

A host owns the log's writer, in its own process. With `isolation = "process"` a session or a sandbox reaches it through
a handle of its host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from events.envelope import Event
    from events.log import Append, EventLog


class Journal(Protocol):
    """What an actor needs of the log. Errors are those of `EventLog`."""

    async def append(self, *writes: Append) -> list[list[Event]]:
        """Append to one stream or to several, in one transaction. Durable when it returns."""
        ...

    async def read(self, stream: str, after_version: int = 0) -> list[Event]:
        """The events of a stream, in order."""
        ...


class LocalJournal:
    """The log in this process."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def append(self, *writes: Append) -> list[list[Event]]:
        """See `Journal`."""
        return await self._log.append_many_async(writes)

    async def read(self, stream: str, after_version: int = 0) -> list[Event]:
        """See `Journal`. Reads on the caller's thread: a stream is some hundred rows in the page cache."""
        return list(self._log.read(stream, after_version=after_version))


class RemoteJournal:
    """The log behind a host's handle (a Ray actor handle)."""

    def __init__(self, host: Any) -> None:
        self._host = host

    async def append(self, *writes: Append) -> list[list[Event]]:
        """See `Journal`."""
        appended: list[list[Event]] = await self._host.append.remote(list(writes))
        return appended

    async def read(self, stream: str, after_version: int = 0) -> list[Event]:
        """See `Journal`."""
        events: list[Event] = await self._host.read.remote(stream, after_version)
        return events
