"""The frame: how one byte stream carries many channels.

A frame is a nine-byte header, then the payload::

    kind u8 | channel u32 | payload length u32 (at most MAX_PAYLOAD), big-endian

Shared by the guest agent, the supervisor of a machine's stream and the host, so it imports nothing that a bare
`python3 -I -S` does not have at once. What the frames mean is told in `actors.guest.agent`.
"""

from __future__ import annotations

from struct import Struct

HELLO = 1
"""Channel 0. Host to guest: a new host speaks, all channels are void. Guest to host: the answer."""
OPEN = 2
"""Begin a channel; JSON `{"kind": …, …}`."""
DATA = 3
"""Bytes of a channel; uses up the sender's credit."""
CREDIT = 4
"""The receiver allows this many bytes more: one big-endian u32."""
END = 5
"""The sender has no more to say on this channel."""
RESET = 6
"""The channel is void at once, in both directions; JSON `{"error": …}`."""
PING = 7
"""Channel 0; the payload comes back in a PONG."""
PONG = 8
"""Channel 0."""

KINDS = frozenset(range(HELLO, PONG + 1))

MAX_PAYLOAD = 65536
"""Bytes of payload that one frame may carry."""
WINDOW = 256 * 1024
"""Bytes of DATA that a sender may have on the way, for each channel and direction, before CREDIT returns some."""
CONTROL = 0
"""The channel of the stream itself."""

HEADER = Struct("!BII")
HEADER_BYTES = HEADER.size
CREDIT_PAYLOAD = Struct("!I")


class FrameError(ValueError):
    """Raised when bytes are not a frame: an unknown kind, a payload above `MAX_PAYLOAD`. The stream is beyond use."""


class Frame(tuple[int, int, bytes]):
    """One frame, taken apart. (Not a `NamedTuple`: importing `typing` costs the guest 5 ms of its start.)"""

    __slots__ = ()

    @property
    def kind(self) -> int:
        """One of `KINDS`."""
        return self[0]

    @property
    def channel(self) -> int:
        """Odd: opened by the host. Even: by the guest. 0: control."""
        return self[1]

    @property
    def payload(self) -> bytes:
        """At most `MAX_PAYLOAD` bytes."""
        return self[2]


def encode(kind: int, channel: int, payload: bytes = b"") -> bytes:
    """The bytes of one frame. Raises `FrameError` for a payload above `MAX_PAYLOAD` bytes."""
    if len(payload) > MAX_PAYLOAD:
        raise FrameError(f"a payload of {len(payload)} bytes does not fit a frame of {MAX_PAYLOAD}")
    return HEADER.pack(kind, channel, len(payload)) + payload


def header(raw: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int, int]:
    """(kind, channel, payload length) of the frame that begins at `offset`; raises `FrameError` where there is none."""
    kind, channel, length = HEADER.unpack_from(raw, offset)
    if kind not in KINDS:
        raise FrameError(f"frame of unknown kind {kind}")
    if length > MAX_PAYLOAD:
        raise FrameError(f"frame announces {length} bytes, more than {MAX_PAYLOAD}")
    return kind, channel, length


class Decoder:
    """Turns a stream of bytes, cut anywhere, into frames. Holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with `data`; raises `FrameError`, after which the decoder is of no use."""
        rest = self._rest
        rest += data
        frames: list[Frame] = []
        at = 0
        while len(rest) - at >= HEADER_BYTES:
            kind, channel, length = header(rest, at)
            end = at + HEADER_BYTES + length
            if end > len(rest):
                break
            frames.append(Frame((kind, channel, bytes(rest[at + HEADER_BYTES : end]))))
            at = end
        del rest[:at]
        return frames

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame that wait for the rest."""
        return len(self._rest)
