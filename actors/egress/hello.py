"""The name in a TLS client's first message (RFC 8446 §4.1.2, RFC 6066 §3), from hostile bytes."""

from __future__ import annotations

from dataclasses import dataclass

HELLO_MAX = 64 * 1024
"""Bytes of a ClientHello, in its records, that are waited for."""
HANDSHAKE = 22
CHANGE_CIPHER_SPEC = 20
APPLICATION_DATA = 23
RECORD_HEADER = 5
_RECORD_MAX = 16 * 1024 + 256
_CLIENT_HELLO = 1
_SERVER_HELLO = 2
_SERVER_NAME = 0
_ENCRYPTED_HELLO = 0xFE0D
_OLD_ENCRYPTED_NAME = 0xFFCE
_HOST_NAME = 0
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
RETRY_SEEN_BY = RECORD_HEADER + 4 + 2 + len(_RETRY)
"""So many bytes of a server tell whether it asks for another ClientHello."""


class HelloInvalid(ValueError):
    """Raised when bytes are no ClientHello."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a ClientHello says of the name."""

    name: str | None
    """As it is written there; None where there is none."""
    encrypted: bool
    """Whether another, encrypted one is inside (ECH), or only an encrypted name. Servers may follow it."""
    length: int
    """Bytes that it took, its records' headers among them."""


class HelloReader:
    """Takes a connection's first bytes, in whatever pieces, up to the end of its ClientHello."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._message = bytearray()
        self._left = 0
        """Of the record that is being read."""
        self._taken = 0

    def feed(self, data: bytes) -> Hello | None:
        """The ClientHello, once it is whole; None while more is needed. Raises `HelloInvalid`."""
        self._waiting += data
        while self._waiting:
            if not self._left and not self._header():
                break
            piece = self._waiting[: self._left]
            del self._waiting[: len(piece)]
            self._message += piece
            self._left -= len(piece)
            self._taken += len(piece)
            if (size := self._size()) is not None and len(self._message) >= size:
                if len(self._message) > size or self._left:
                    raise HelloInvalid("something follows its ClientHello in the same record")
                name, encrypted = _names(bytes(self._message[4:size]))
                return Hello(name, encrypted, self._taken)
            if self._taken > HELLO_MAX:
                raise HelloInvalid(f"its ClientHello is longer than {HELLO_MAX} bytes")
        return None

    def _header(self) -> bool:
        header = self._waiting[:RECORD_HEADER]
        if header[0] != HANDSHAKE or bytes(header[1:2]) not in (b"", b"\x03"):
            raise HelloInvalid("its ClientHello is cut by something else")
        if len(header) < RECORD_HEADER:
            return False
        self._left = int.from_bytes(header[3:5], "big")
        if not 0 < self._left <= _RECORD_MAX:
            raise HelloInvalid(f"a record has {self._left} bytes")
        del self._waiting[:RECORD_HEADER]
        self._taken += RECORD_HEADER
        return True

    def _size(self) -> int | None:
        """Bytes of the message, once it says so."""
        if self._message and self._message[0] != _CLIENT_HELLO:
            raise HelloInvalid("its first message is no ClientHello")
        if len(self._message) < 4:
            return None
        size = 4 + int.from_bytes(self._message[1:4], "big")
        if size > HELLO_MAX:
            raise HelloInvalid(f"its ClientHello is longer than {HELLO_MAX} bytes")
        return size


def asks_again(answer: bytes | bytearray) -> bool | None:
    """Whether what a server begins with asks for another ClientHello (HelloRetryRequest); None: too early to say."""
    start = bytes([HANDSHAKE])
    if bytes(answer[:1]) not in (b"", start):
        return False
    if len(answer) < RETRY_SEEN_BY:
        return None
    kind = answer[RECORD_HEADER]
    return kind == _SERVER_HELLO and answer[RECORD_HEADER + 6 : RETRY_SEEN_BY] == _RETRY


class _Bytes:
    """Reads from the front. Raises `HelloInvalid` where there is too little."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bool__(self) -> bool:
        return bool(self._data)

    def take(self, size: int) -> bytes:
        if len(self._data) < size:
            raise HelloInvalid("its ClientHello is cut short")
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Bytes:
        return _Bytes(self.take(self.number(size)))


def _names(body: bytes) -> tuple[str | None, bool]:
    hello = _Bytes(body)
    hello.take(2 + 32)
    hello.vector(1)  # session
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression
    if not hello:
        return None, False  # as before extensions were
    extensions = hello.vector(2)
    if hello:
        raise HelloInvalid("its ClientHello goes on behind its end")
    name: str | None = None
    encrypted = False
    seen: set[int] = set()
    while extensions:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise HelloInvalid("its ClientHello says something twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(content)
        elif kind in (_ENCRYPTED_HELLO, _OLD_ENCRYPTED_NAME):
            encrypted = True
    return name, encrypted


def _server_name(content: _Bytes) -> str:
    names = content.vector(2)
    kind, name = names.number(1), names.vector(2)
    if kind != _HOST_NAME or names or content:
        raise HelloInvalid("its ClientHello does not name one server")
    try:
        return name.take(len(name._data)).decode("ascii")
    except UnicodeDecodeError:
        raise HelloInvalid("its ClientHello names no server") from None
