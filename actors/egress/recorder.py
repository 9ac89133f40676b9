"""What a sandbox reached and was refused, as events: each connection before its first byte, and storms as counts.

The first connection to a name and port is an event that is durable before the connection carries anything, so whoever
reads the log knows that a call may have had an effect outside. Those that follow within the window, the ends of all of
them, and refusals are counted, and told together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.entity import Replaced
from events import sandbox as fold

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.egress.refused import Refused
    from events.egress_types import Protocol
    from events.egress_types import RefusalReason as Reason

log = logging.getLogger(__name__)

WINDOW_S = 5.0
"""How long connections to the same name and port, and refusals, are counted before they are told."""
SOON_S = 0.05
"""How long the first of them waits for company."""
REFUSALS_MAX = 100
"""Refusals that are told apart within a window; the others are one event that counts them."""


@dataclass(slots=True)
class _Ended:
    """Connections to one name and port that ended and were not told yet."""

    connections: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0

    def add(self, other: _Ended) -> None:
        """Count others too."""
        self.connections += other.connections
        self.sent += other.sent
        self.received += other.received
        self.seconds += other.seconds


class EgressRecorder:
    """Of one sandbox; `record` appends to its stream, and returns when that is durable."""

    def __init__(self, record: Callable[..., Awaitable[None]], during: Callable[[], str] = str) -> None:
        """`during` tells the tool call that runs, "" for none: each call's connections have an event of its own."""
        self._record = record
        self._during = during
        self._known: dict[tuple[str, int, str, str], tuple[float, asyncio.Future[None]]] = {}
        self._ended: dict[tuple[str, int], _Ended] = {}
        self._refused: dict[tuple[str, int | None, Protocol, Reason, str], tuple[str, int]] = {}
        self._told = 0.0
        self._task: asyncio.Task[None] | None = None

    async def connected(self, host: str, port: int, address: str, rule: str) -> None:
        """A connection stands, and carries nothing yet; returns when the log knows of one to this name and port.

        Raises `Replaced` and what the log raises: it must not carry anything then.
        """
        key = (host, port, rule, self._during())
        now = time.monotonic()
        began, known = self._known.get(key, (0.0, None))
        if known is None or now - began >= WINDOW_S:
            self._known = {old: told for old, told in self._known.items() if now - told[0] < WINDOW_S}
            known = asyncio.ensure_future(
                self._record(fold.ConnectEgress(host=host, port=port, address=address, rule=rule))
            )
            self._known[key] = (now, known)
        try:
            await asyncio.shield(known)
        except BaseException:  # also of who is cancelled; the next one tries again where the append failed
            if known.done() and self._known.get(key, (0.0, None))[1] is known:
                del self._known[key]
            raise

    def closed(self, host: str, port: int, sent: int, received: int, seconds: float) -> None:
        """A connection ended, which `connected` was told of; bytes from the guest and to it."""
        self._ended.setdefault((host, port), _Ended()).add(_Ended(1, sent, received, seconds))
        self._tell_soon()

    def refused(self, host: str, port: int | None, protocol: Protocol, refused: Refused) -> None:
        """Something was refused."""
        key = (host, port, protocol, refused.reason, refused.rule)
        detail = refused.detail
        if key not in self._refused and len(self._refused) >= REFUSALS_MAX:
            key, detail = ("*", None, protocol, refused.reason, ""), "more than are told apart"
        detail, count = self._refused.get(key, (detail, 0))
        self._refused[key] = (detail, count + 1)
        self._tell_soon()

    async def tell(self) -> None:
        """Tell now what was not told yet: before a call's end, or a snapshot, so that it does not seem later."""
        await self._tell()

    async def close(self) -> None:
        """Tell what was not told yet, for the last time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        await self._tell()

    def _tell_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tell_until_told(), name="egress-recorder")

    async def _tell_until_told(self) -> None:
        while self._ended or self._refused:
            await asyncio.sleep(max(SOON_S, self._told + WINDOW_S - time.monotonic()))
            await self._tell()

    async def _tell(self) -> None:
        """One append of all there is. What could not be written is told with the next."""
        ended, self._ended = self._ended, {}
        refused, self._refused = self._refused, {}
        told: list[fold.Command] = [
            fold.CloseEgress(
                host=host,
                port=port,
                connections=one.connections,
                bytes_sent=one.sent,
                bytes_received=one.received,
                seconds=round(one.seconds, 3),
            )
            for (host, port), one in ended.items()
        ]
        told += [
            fold.RefuseEgress(
                host=host, port=port, protocol=protocol, reason=reason, rule=rule, detail=detail, count=count
            )
            for (host, port, protocol, reason, rule), (detail, count) in refused.items()
        ]
        self._told = time.monotonic()
        if not told:
            return
        try:
            await self._record(*told)
        except Replaced:
            # The sandbox is another host's now.
            log.info("egress not recorded, its sandbox is another's: %d events", len(told))
        except Exception:
            log.exception("egress not recorded, to be tried again")
            self._keep(ended, refused)

    def _keep(
        self,
        ended: dict[tuple[str, int], _Ended],
        refused: dict[tuple[str, int | None, Protocol, Reason, str], tuple[str, int]],
    ) -> None:
        """Add what was not written to what came since."""
        for place, since in self._ended.items():
            if (known := ended.setdefault(place, since)) is not since:
                known.add(since)
        self._ended = ended
        for key, (detail, count) in self._refused.items():
            refused[key] = (detail, count + refused.get(key, (detail, 0))[1])
        self._refused = refused
