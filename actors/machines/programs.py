"""A program that runs in a guest, as its host holds it. What the agent says of it is hostile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.machines.answers import Exit, parsed
from actors.machines.protocol import GuestProtocolError

if TYPE_CHECKING:
    from actors.machines.mux import Channel

_STREAMS = {b"o": 1, b"e": 2}
_EXIT_MAX = 1024


class GuestProcess:
    """A `RunningProcess` on a channel of the guest agent."""

    def __init__(self, channel: Channel) -> None:
        self.exit_code = -1
        self._channel = channel
        self._told = bytearray()

    async def begun(self) -> None:
        """Return once it runs; raises `ChannelRefused` where it can't."""
        if await self._channel.receive() != b"bb":
            raise GuestProtocolError("the guest agent did not say that a program began")

    async def read(self) -> tuple[int, bytes] | None:
        """See `RunningProcess`."""
        while data := await self._channel.receive():
            tag, rest = data[:1], data[1:]
            if tag == b"x":
                self._told += rest
                if len(self._told) > _EXIT_MAX:
                    raise GuestProtocolError("the guest agent says too much of how a program ended")
            elif self._told or tag not in _STREAMS or not rest:
                raise GuestProtocolError("the guest agent sent output of an unknown sort")
            else:
                return _STREAMS[tag], rest
        self.exit_code = parsed(Exit, self._told, "the end of a program").exit_code
        return None

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """See `RunningProcess`."""
        await self._channel.send(data, last=last)
