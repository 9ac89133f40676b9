"""What a connection speaks, by the guest's first bytes."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["tls", "http", "other"]

LINE_MAX = 16 * 1024
"""Bytes of a request's first line."""
_METHOD_MAX = 64
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
_BLANKS = b" \t\v\f\r\x1c\x1d\x1e\x1f\x85\xa0"
"""What servers split a line at that are less strict than RFC 9112."""


def kind_of(data: bytes | bytearray) -> tuple[Kind | None, int]:
    """What `data` begins, None where more bytes are needed; and how many of them may be passed on before it is known.

    What may be passed is a request's method, or a part of it: it is the same whatever else the request turns out to be,
    and a protocol whose first message is one word must not wait. Anything that a lenient server could take for an HTTP
    request is "http", so that none gets by unseen.
    """
    if data[:1] == b"\x16":
        return (None, 0) if len(data) < 2 else ("tls" if data[1] == 3 else "other", 0)
    begin = len(data) - len(data.lstrip(_BLANKS))
    found = _TOKEN.match(data, begin)
    method = found.group() if found else b""
    rest = bytes(data[begin + len(method) : begin + len(method) + LINE_MAX])
    if not rest:
        return (None, 0 if begin else len(method)) if begin + len(method) <= _METHOD_MAX else ("other", 0)
    if not method or rest[0] not in _BLANKS:
        return "other", 0
    target = rest.lstrip(_BLANKS)
    if target and method.upper() != b"CONNECT" and not _may_be_target(target):
        return "other", 0
    line, end, _ = rest.partition(b"\n")
    if not end:
        return (None, 0) if len(rest) < LINE_MAX else ("http", 0)  # where it is refused: no request is so long
    return "http" if b"HTTP/" in line.upper() else "other", 0


def _may_be_target(target: bytes) -> bool:
    return target[:1] in (b"/", b"*") or b"http".startswith(target[:4].lower())
