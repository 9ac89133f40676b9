"""Bytes as a script: what a fuzzer makes up, read as steps and as frames.

Left to itself, a fuzzer spends its time on headers that are none. So a few bytes of it make a whole frame here, with
any kind, any channel and a payload of any size; bytes that are no frame at all are a step of their own.
"""

from __future__ import annotations

from actors.guest import frames

CHANNELS = (0, 1, 2, 3, 4, 5, 7, 9, 11, 1023, 1024, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1)
KINDS = (0, *sorted(frames.KINDS), 9, 255)
_LITERAL = 200
"""Payloads below this are the fuzzer's own bytes; others are filled up."""
_STEP = 1300


class Script:
    """Reads it from the front; what it lacks is zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """The next byte."""
        found = self.take(1)
        return found[0] if found else 0

    def take(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def payload(self) -> bytes:
        """A payload; now and then one that is too long for a frame."""
        size = self.byte()
        if size < _LITERAL:
            return self.take(size)
        return self.take(4).ljust((size - _LITERAL) * _STEP, b"o")

    def frame(self) -> bytes:
        """A frame, or what only looks like one."""
        kind = KINDS[self.byte() % len(KINDS)]
        channel = CHANNELS[self.byte() % len(CHANNELS)]
        return raw(kind, channel, self.payload())


def raw(kind: int, channel: int, payload: bytes = b"") -> bytes:
    """The bytes of a frame, be it allowed or not."""
    return frames.HEADER.pack(kind, channel, len(payload)) + payload


def step(number: int, *more: int | bytes) -> bytes:
    """A step of a script, for seeds: small numbers as bytes, and bytes as they are."""
    return bytes([number]) + b"".join(bytes([one]) if isinstance(one, int) else one for one in more)


def said(kind: int, channel: int, payload: bytes = b"") -> bytes:
    """What `Script.frame` makes this frame of, for seeds. At most `_LITERAL` bytes."""
    assert len(payload) < _LITERAL
    return bytes([KINDS.index(kind), CHANNELS.index(channel), len(payload)]) + payload
