"""What a shell prints for one command: its last part, and where it ends."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FNV_PRIME = 0x1000000000000000000013B
_FNV_BASIS = 0x6C62272E07BB014262B821756295C58D
_STATUS_DIGITS = 3


def mark_for(name: str) -> str:
    """The mark that ends the output of the call `name`: 49 characters, as many as the SDK's has.

    The length shows where output is truncated. It is made from the name, not by chance, so that running a call again
    after a restore prints the same bytes even where a command shows the mark (`set -x`). (FNV-1a: `hashlib` costs more
    to import than everything else that the agent does at a start.)
    """
    value = _FNV_BASIS
    for byte in name.encode(errors="replace"):
        value = ((value ^ byte) * _FNV_PRIME) & ((1 << 128) - 1)
    return f"__HG_CALL_{value:032x}_DONE__"


class Tail:
    """Takes output in pieces, keeps the last `limit` bytes and finds the mark with the exit status behind it.

    Each piece is handed on to `on_output` without the mark.
    """

    def __init__(self, mark: bytes, limit: int, on_output: Callable[[bytes], None]) -> None:
        self._mark = b"\n" + mark
        self._limit = limit
        self._on_output = on_output
        self._buffer = bytearray()
        self._cut = 0
        """Bytes of output that have left the buffer."""
        self._handed = 0
        """How much of all output was handed on."""
        self._searched = 0
        """Up to where in all output there is no mark."""
        self._fed = 0
        self._end = -1
        """Where in the buffer the newline before the mark is."""
        self.complete = False
        self.status = -1

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self._buffer += data
        self._fed += len(data)
        self._find()
        if not self.complete:
            self._hand_on(self._fed - self._unsure())
        # Cut seldom, so that a flood of output costs one copy for many pieces.
        if len(self._buffer) > 4 * self._limit:
            self._trim()

    def flush(self) -> None:
        """Hand on what was held back: no mark will come."""
        if not self.complete:
            self._hand_on(self._fed)
        self._trim()

    @property
    def kept(self) -> bytes:
        """The last part of everything, the mark too where there is one. Only after `flush`."""
        return bytes(self._buffer)

    @property
    def output(self) -> bytes:
        """The last part of what came before the mark. Only after `flush` and where `complete`."""
        return bytes(self._buffer[: max(self._end, 0)])

    @property
    def truncated(self) -> bool:
        """Whether bytes were left out. The mark and the status count, as in the SDK."""
        return self._cut > 0

    @property
    def total(self) -> int:
        """Bytes printed in all, without the mark."""
        return self._cut + self._end if self.complete else self._fed

    def _find(self) -> None:
        while (at := self._buffer.find(self._mark, max(0, self._searched - self._cut))) >= 0:
            begin = at + len(self._mark)
            newline = self._buffer.find(b"\n", begin, begin + _STATUS_DIGITS + 1)
            digits = self._buffer[begin:newline] if newline >= 0 else self._buffer[begin : begin + _STATUS_DIGITS + 1]
            if newline >= 0 and digits.isdigit():
                self._hand_on(self._cut + at)
                self.complete, self.status, self._end = True, int(digits), at
                # What a job prints after the mark is no part of this; the SDK drops it as well.
                del self._buffer[newline + 1 :]
                return
            if newline < 0 and (not digits or digits.isdigit()) and len(digits) <= _STATUS_DIGITS:
                # The status is still to come.
                return
            self._searched = self._cut + at + 1
        self._searched = max(self._searched, self._fed - len(self._mark))

    def _unsure(self) -> int:
        """How many of the last bytes may be the beginning of the mark."""
        longest = len(self._mark) + _STATUS_DIGITS + 1
        last = bytes(self._buffer[-longest:])
        at = last.find(b"\n")
        while at >= 0:
            rest = last[at:]
            if self._mark.startswith(rest[: len(self._mark)]):
                return len(rest)
            at = last.find(b"\n", at + 1)
        return 0

    def _hand_on(self, upto: int) -> None:
        if upto > self._handed:
            self._on_output(bytes(self._buffer[self._handed - self._cut : upto - self._cut]))
            self._handed = upto

    def _trim(self) -> None:
        over = len(self._buffer) - self._limit
        if over > 0:
            del self._buffer[:over]
            self._cut += over
            self._end -= over
