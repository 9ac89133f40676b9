"""A secret in the forms in which it could lie about, each as bytes to search for.

Each half of it counts on its own, so that what was split is found, and what is whole all the more.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LEAST = 12
"""Characters of the shortest piece that is searched for: a shorter one may be anywhere by chance."""


def forms(secret: str) -> dict[str, bytes]:
    """What to search for, by what it is. Raises `ValueError` where halves of the secret are too short."""
    middle = len(secret) // 2
    if middle < LEAST:
        raise ValueError(f"a secret of {len(secret)} characters has no halves of {LEAST}")
    found: dict[str, bytes] = {}
    for half, text in (("first", secret[:middle]), ("second", secret[middle:])):
        for name, piece in _forms(text.encode()):
            if piece not in found.values():
                found[f"{half} half {name}"] = piece
    return found


def _forms(raw: bytes) -> Iterator[tuple[str, bytes]]:
    yield "as it is", raw
    yield "reversed", raw[::-1]
    for name, digits in (("hex", raw.hex()), ("HEX", raw.hex().upper())):
        yield name, digits.encode()
        yield f"percent-encoded {name}", "".join(f"%{one}" for one in _pairs(digits)).encode()
    yield "in UTF-16", raw.decode().encode("utf-16-le")
    for shift in range(3):
        standard = _within(raw, shift)
        yield f"base64 at {shift}", standard
        yield f"urlsafe base64 at {shift}", standard.translate(bytes.maketrans(b"+/", b"-_"))


def _pairs(digits: str) -> Iterator[str]:
    return (digits[at : at + 2] for at in range(0, len(digits), 2))


def _within(raw: bytes, shift: int) -> bytes:
    """The characters of base64 that depend on nothing else, where `shift` bytes of a group of three come before it."""
    first, last = -(-8 * shift // 6), 8 * (shift + len(raw)) // 6
    return base64.b64encode(bytes(shift) + raw)[first:last]


@dataclass(frozen=True, slots=True)
class Found:
    """One secret in one place."""

    secret: str
    form: str
    place: str


class Needles:
    """Several secrets, by name, in all forms."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._forms = [(name, form, piece) for name, secret in secrets.items() for form, piece in forms(secret).items()]
        # The end of each has an aligned word of four bytes in it, wherever it begins. Its beginning would do as well,
        # but for what all keys begin with.
        ends = [piece[-7:] for _, _, piece in self._forms]
        self._words = np.unique(np.array([end[at : at + 4] for end in ends for at in range(4)], dtype="S4").view("u4"))
        self._low = np.zeros(1 << 16, dtype=bool)
        self._low[self._words & 0xFFFF] = True

    def search(self, places: Iterable[tuple[str, bytes]]) -> list[Found]:
        """What is where, of places by name."""
        return [
            Found(name, form, place)
            for place, data in places
            if self._maybe(data)
            for name, form, piece in self._forms
            if piece in data
        ]

    def _maybe(self, data: bytes) -> bool:
        """Whether any of them can be there: a hundred of them are looked for at once, and almost nowhere is one."""
        words = np.frombuffer(data, dtype="u4", count=len(data) // 4)
        return bool(np.isin(words[self._low[words & 0xFFFF]], self._words).any())
