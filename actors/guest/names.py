"""The guest's resolver, as far as it is bytes: questions of RFC 1035, and addresses that stand for names.

A name that the host allows gets an address of 198.18.0.0/15, which is for tests of networks (RFC 2544) and nobody's. It
keeps it, here and in whatever is brought back of this memory, so that the agent knows which name was meant.
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED, NO_NAME, NOTHING_WRONG = 5, 3, 0
TYPE_A, TYPE_PTR, TYPE_ANY = 1, 12, 255
NAMES_MAX = 8192
"""Names that have an address at once; the one that was asked for longest ago loses its own first."""
_FIRST, _LAST = 0xC6120001, 0xC613FFFE
_TTL_S = 30
_HEADER = Struct("!HHHHHH")
_NUMBERS = Struct("!HH")
_POINTER_ANSWER = Struct("!HHHIH")
_REVERSE = ".in-addr.arpa"


class Question:
    """What a program asked: one name, of one type."""

    __slots__ = ("_number", "_text", "name", "type")

    def __init__(self, number: int, name: str, type_: int, text: bytes) -> None:
        self._number = number
        self._text = text
        self.name = name
        """In lower case, with no final dot."""
        self.type = type_

    def answer(self, code: int, address: bytes = b"", target: str = "") -> bytes:
        """The answer to send back: an error, an address, a name, or that there is no such record."""
        data, kind = (address, TYPE_A) if address else (_wire(target), TYPE_PTR) if target else (b"", 0)
        header = _HEADER.pack(self._number, 0x8580 | code, 1, 1 if data else 0, 0, 0)
        record = _POINTER_ANSWER.pack(0xC00C, kind, 1, _TTL_S, len(data)) + data if data else b""
        return header + self._text + record


def parse(data: bytes) -> Question | None:
    """The question in a datagram; None where it is none that a resolver has to answer."""
    if not _HEADER.size + 5 <= len(data) <= 512:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(data)
    if flags & 0xF800 or questions != 1:
        return None
    labels, at = [], _HEADER.size
    while at < len(data) and (length := data[at]):
        label = data[at + 1 : at + 1 + length]
        if length > 63 or len(label) < length:
            return None
        labels.append(label)
        at += 1 + length
    at += 1
    if at + _NUMBERS.size > len(data):
        return None
    type_, class_ = _NUMBERS.unpack_from(data, at)
    if class_ != 1:
        return None
    # As it is, and not as text that means the same: the host is who judges it.
    name = b".".join(labels).decode("ascii", "replace").lower()
    return Question(number, name, type_, data[_HEADER.size : at + _NUMBERS.size])


def _wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode("ascii", "replace") for label in name.split(".")) + b"\0"


class Names:
    """Which address stands for which name."""

    def __init__(self) -> None:
        self._address: dict[str, bytes] = {}
        self._name: dict[bytes, str] = {}
        self._fresh = self._all()

    def address(self, name: str) -> bytes:
        """Its four bytes."""
        found = self._address.pop(name, None)
        if found is None:
            if len(self._address) >= NAMES_MAX:
                oldest = next(iter(self._address))
                del self._name[self._address.pop(oldest)]
            found = next(address for address in self._fresh if address not in self._name)
            self._name[found] = name
        self._address[name] = found  # the last that was asked for
        return found

    def name(self, address: bytes) -> str | None:
        """Which name an address stands for, if any."""
        return self._name.get(address)

    def reverse(self, name: str) -> str | None:
        """Which name is meant by one such as `5.0.18.198.in-addr.arpa`, if any."""
        parts = name.removesuffix(_REVERSE).split(".")
        if (
            not name.endswith(_REVERSE)
            or len(parts) != 4
            or not all(part.isdigit() and len(part) < 4 for part in parts)
        ):
            return None
        numbers = [int(part) for part in reversed(parts)]
        return self.name(bytes(numbers)) if max(numbers) < 256 else None

    @staticmethod
    def _all() -> Iterator[bytes]:
        while True:
            for number in range(_FIRST, _LAST + 1):
                yield number.to_bytes(4, "big")
