"""Two tables of the guest kernel's packet filter: what the guest sends anywhere but to itself comes to the agent.

The `nat` table turns every TCP connection and every datagram that is not for 127.0.0.0/8 to a port of the agent's; the
`filter` table drops the rest (ICMP, which the all-embracing loopback would answer to itself). Written as the kernel
takes them (`struct ipt_replace` of linux/netfilter_ipv4/ip_tables.h, on 64-bit machines), since the program `iptables`
is in no template, and the agent has the right to do this alone.
"""

from __future__ import annotations

from struct import Struct, pack

try:
    import _socket  # the `socket` module around it costs ten times the memory of this
except ImportError:
    import socket as _socket  # type: ignore[no-redef]

_SET_REPLACE = 64
_IPPROTO_RAW = 255
_TCP, _UDP, _ICMP = 6, 17, 1
_PREROUTING, _INPUT, _FORWARD, _OUTPUT, _POSTROUTING = range(5)
_NOT_DESTINATION = 0x10
_ACCEPT, _DROP = -2, -1
_PORT_GIVEN = 2
_LOOPBACK = (b"\x7f\0\0\0", b"\xff\0\0\0")

# Source, destination, their masks; interfaces and their masks; protocol, flags, inverse flags.
_IP = Struct("=4s4s4s4s64xHBB")
# Of an entry: the above, cache, offset of the target, offset of the next entry, mark, two counters.
_ENTRY = Struct("=84sIHHIQQ")
# Of a target or a match: its size, its name, its revision.
_EXTENSION = Struct("=H29sB")
_REPLACE = Struct("=32sIII5I5IIQ")

assert (_IP.size, _ENTRY.size, _EXTENSION.size, _REPLACE.size) == (84, 112, 32, 96)


def _verdict(number: int) -> bytes:
    return _EXTENSION.pack(40, b"", 0) + pack("=i4x", number)


def _redirect(port: int) -> bytes:
    return (
        _EXTENSION.pack(56, b"REDIRECT", 0)
        + pack("=III", 1, _PORT_GIVEN, 0)
        + pack("=I", 0)
        + pack("!HH4x", port, port)
    )


def _to_port(port: int) -> bytes:
    """A match: datagrams for this port."""
    return _EXTENSION.pack(48, b"udp", 0) + pack("=HHHHB7x", 0, 0xFFFF, port, port, 0)


def _entry(target: bytes, protocol: int = 0, match: bytes = b"") -> bytes:
    """One rule: for a protocol that goes anywhere but to loopback, or, without one, for everything."""
    if protocol:
        ip = _IP.pack(b"", _LOOPBACK[0], b"", _LOOPBACK[1], protocol, 0, _NOT_DESTINATION)
    else:
        ip = _IP.pack(b"", b"", b"", b"", 0, 0, 0)
    begin = _ENTRY.size + len(match)
    return _ENTRY.pack(ip, 0, begin, begin + len(target), 0, 0, 0) + match + target


def _table(name: bytes, hooks: tuple[int, ...], output: list[bytes]) -> bytes:
    """The table with these rules for what the guest sends, and nothing else in it."""
    entries = b""
    at, policies = [0] * 5, [0] * 5
    count = 0
    for hook in hooks:
        at[hook] = len(entries)
        rules = output if hook == _OUTPUT else []
        entries += b"".join(rules)
        policies[hook] = len(entries)
        entries += _entry(_verdict(_ACCEPT))
        count += len(rules) + 1
    entries += _entry(_EXTENSION.pack(64, b"ERROR", 0) + b"ERROR".ljust(32, b"\0"))
    valid = sum(1 << hook for hook in hooks)
    return _REPLACE.pack(name, valid, count + 1, len(entries), *at, *policies, 0, 0) + entries


def redirect(tcp: int, udp: int, names: int) -> None:
    """Have TCP connections come to port `tcp`, datagrams for port 53 to `names`, and all others to `udp`.

    Replaces what was there. Raises `OSError` where this kernel, or our rights, do not allow it.
    """
    nat = _table(
        b"nat",
        (_PREROUTING, _INPUT, _OUTPUT, _POSTROUTING),
        [
            _entry(_redirect(tcp), _TCP),
            _entry(_redirect(names), _UDP, _to_port(53)),
            _entry(_redirect(udp), _UDP),
        ],
    )
    rest = _table(b"filter", (_INPUT, _FORWARD, _OUTPUT), [_entry(_verdict(_DROP), _ICMP)])
    raw = _socket.socket(_socket.AF_INET, _socket.SOCK_RAW, _IPPROTO_RAW)
    try:
        for table in (nat, rest):
            raw.setsockopt(_socket.IPPROTO_IP, _SET_REPLACE, table)
    finally:
        raw.close()
