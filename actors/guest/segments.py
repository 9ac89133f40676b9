"""A TCP segment that no connection sent, for a program whose other end was lost with the memory that it lay in.

The packet filter of a kernel that was brought back has forgotten which connections it had turned to the agent, so a
reset of the agent's end does not find the program's. Spoken to out of turn, as from the address that it connected to,
the program's end answers; nobody knows of that connection, and the kernel's own reset is what it hears (RFC 9293,
3.10.7.4).
"""

from __future__ import annotations

from struct import Struct

try:
    import _socket  # the `socket` module around it costs ten times the memory of this
except ImportError:
    import socket as _socket  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    End = tuple[str, int]

_IPPROTO_RAW = 255
_ACK = 0x10
_IP = Struct("!BBHHHBBH4s4s")
_TCP = Struct("!HHIIBBHHH")
_PSEUDO = Struct("!4s4sBBH")


def provoke(ends: Iterable[tuple[End, End]]) -> None:
    """Have each program's end answer: (what it connected to, its own end). Before the packet filter is there again.

    Raises `OSError`.
    """
    raw = _socket.socket(_socket.AF_INET, _socket.SOCK_RAW, _IPPROTO_RAW)
    try:
        for (meant, port), (own, own_port) in ends:
            packet = segment(_socket.inet_aton(meant), port, _socket.inet_aton(own), own_port)
            try:
                raw.sendto(packet, (own, 0))
            except OSError:
                # Its program hears of it later, when it says something.
                continue
    finally:
        raw.close()


def segment(source: bytes, source_port: int, target: bytes, target_port: int) -> bytes:
    """An empty acknowledgement of nothing, with its IP header."""
    head = (source_port, target_port, 0, 0, _TCP.size // 4 << 4, _ACK, 0)
    text = _PSEUDO.pack(source, target, 0, _socket.IPPROTO_TCP, _TCP.size) + _TCP.pack(*head, 0, 0)
    packet = _IP.pack(0x45, 0, _IP.size + _TCP.size, 0, 0, 64, _socket.IPPROTO_TCP, 0, source, target)
    return packet + _TCP.pack(*head, _checksum(text), 0)


def _checksum(data: bytes) -> int:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
