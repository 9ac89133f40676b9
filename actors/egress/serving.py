"""What a guest wants of the network, as it is asked on the machine's stream: judged, served, and recorded.

`EgressServing` is the `Egress` (actors.machines.protocol) of one sandbox, whatever machine it has; the policy is asked
for at each request, so what the log says is in force from a machine's first instruction on.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from actors.egress.passage import Traffic
from actors.egress.recorder import EgressRecorder
from actors.egress.refused import Broken, Refused
from actors.entity import Replaced
from actors.machines.mux import ChannelLeft, ChannelRefused
from actors.machines.protocol import MachineError
from events.egress_policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.egress.gateway import Gateway
    from actors.entity import Entity
    from actors.machines.protocol import Asked
    from events.egress_types import Protocol
    from events.sandbox import Command, SandboxState

    SandboxEntity = Entity[SandboxState, Command]

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256
"""Connections of one sandbox at once."""

_Host = Annotated[str, Field(min_length=1, max_length=255)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Resolve(_Request):
    kind: Literal["resolve"]
    name: _Host


class _Connect(_Request):
    kind: Literal["egress"]
    host: _Host
    port: Annotated[int, Field(ge=1, le=65535)]


class _Datagram(_Request):
    kind: Literal["datagram"]
    host: _Host


_REQUEST: TypeAdapter[_Resolve | _Connect | _Datagram] = TypeAdapter(
    Annotated[_Resolve | _Connect | _Datagram, Field(discriminator="kind")]
)


def serve_egress(entity: SandboxEntity, gateway: Gateway) -> EgressServing:
    """The way out of the sandbox whose stream this is, by the policy of its state."""

    @lru_cache(maxsize=1)
    def parsed(allow: tuple[str, ...]) -> Policy:
        return Policy.parse(allow)

    def during() -> str:
        return next((call.tool_use_id for call in entity.state.open_calls), "")

    async def record(*commands: Command) -> None:
        # What was asked for during a call led to it, or may have.
        await entity.execute(f"egress-{secrets.token_hex(8)}", *commands, causation_id=during())

    return EgressServing(
        entity.state.sandbox_id, lambda: parsed(entity.state.egress), gateway, EgressRecorder(record, during)
    )


class EgressServing:
    """The way out of one sandbox."""

    def __init__(self, sandbox_id: str, policy: Callable[[], Policy], gateway: Gateway, record: EgressRecorder) -> None:
        self._sandbox_id = sandbox_id
        self._policy = policy
        self._gateway = gateway
        self._recorder = record
        self._live: dict[asyncio.Task[None], tuple[str, int, str]] = {}
        """Host, port, and the address that was reached; "" until it was."""

    def requested(self, channel: Asked, request: bytes) -> None:
        """See `Egress.requested`."""
        try:
            asked = _REQUEST.validate_json(request)
        except ValidationError:
            # Nothing of it is worth being written down.
            self._refuse(channel, "?", None, "tcp", Refused("malformed", "the guest agent's request makes no sense"))
            return
        match asked:
            case _Resolve():
                self._resolve(channel, asked.name)
            case _Datagram():
                refused = Refused("protocol", "there is no way out for datagrams")
                self._refuse(channel, _printable(asked.host), None, "udp", refused)
            case _Connect() if len(self._live) >= CONNECTIONS_MAX:
                refused = Refused("too_many", f"{CONNECTIONS_MAX} connections are open")
                self._refuse(channel, _printable(asked.host), asked.port, "tcp", refused)
            case _Connect():
                task = asyncio.create_task(self._connect(channel, asked.host, asked.port), name="egress")
                self._live[task] = (asked.host, asked.port, "")
                task.add_done_callback(self._ended)

    def policy_changed(self) -> None:
        """End the connections that are not allowed any more."""
        policy = self._policy()
        for task, (host, port, address) in self._live.items():
            try:
                self._gateway.check(host, port, address, policy)
            except Refused:
                task.cancel()

    async def tell(self) -> None:
        """Record what was not recorded yet."""
        await self._recorder.tell()

    async def close(self) -> None:
        """End all of it, and record what was not recorded yet."""
        live = list(self._live)
        for task in live:
            task.cancel()
        if live:
            await asyncio.wait(live)
        await self._recorder.close()

    def _resolve(self, channel: Asked, name: str) -> None:
        try:
            self._gateway.name_allowed(name, self._policy())
        except Refused as refused:
            self._refuse(channel, _printable(name), None, "dns", refused)
        else:
            channel.accept()

    async def _connect(self, channel: Asked, host: str, port: int) -> None:
        traffic = Traffic()
        began = 0.0

        async def connected(address: str, rule: str) -> None:
            nonlocal began
            # The list may be another one by now.
            self._gateway.check(host, port, address, self._policy())
            if (task := asyncio.current_task()) in self._live:
                self._live[task] = (host, port, address)
            await self._recorder.connected(host, port, address, rule)
            began = time.monotonic()
            # It may have changed while that was written; nothing has passed yet.
            self._gateway.check(host, port, address, self._policy())

        try:
            # In the one spelling, or each would be a place of its own in the log.
            host = str(self._gateway.decide(host, port, self._policy()).host)
            await self._gateway.connect(host, port, self._policy(), channel, connected, traffic)
        except Refused as refused:
            self._refuse(channel, _printable(host), port, "tcp", refused)
        except asyncio.CancelledError:
            channel.refuse("not allowed any more")
            raise
        except (OSError, Broken, ChannelRefused, ChannelLeft, MachineError, Replaced) as error:
            log.debug("connection ended sandbox_id=%s %s", self._sandbox_id, error)
            channel.refuse("the connection ended")
        finally:
            channel.leave()
            if began:
                self._recorder.closed(host, port, traffic.sent, traffic.received, time.monotonic() - began)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._live.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection failed sandbox_id=%s", self._sandbox_id, exc_info=error)

    def _refuse(self, channel: Asked, host: str, port: int | None, protocol: Protocol, refused: Refused) -> None:
        channel.refuse(refused.reason)
        self._recorder.refused(host, port, protocol, refused)


def _printable(said: str) -> str:
    """The text, bounded, with nothing in it that steers a terminal."""
    return "".join(char if char.isprintable() else "?" for char in said[:255])
