"""What a plain HTTP request must be, so that it reaches the name that was asked for and no other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import h11

from actors.egress.refused import Refused
from events.egress_policy import normal_name

if TYPE_CHECKING:
    from events.egress_types import RefusalReason as Reason

METHODS_REFUSED = {
    b"CONNECT": "asks for a tunnel",
    b"TRACE": "asks that its own headers are told back",
    b"PRI": "is HTTP/2 without TLS, whose requests can't be seen",
}
_ABSOLUTE = re.compile(rb"http://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"([A-Za-z0-9._-]{1,254})(?::([0-9]{1,5}))?")
_UPGRADE_HEADERS = frozenset((b"upgrade", b"http2-settings"))

Headers = list[tuple[bytes, bytes]]


def admit(request: h11.Request, name: str | None, port: int) -> h11.Request:
    """The request as it may go on to the server at `name`, or at an address (None), at `port`. Raises `Refused`.

    Its target is a path, its Host is the name. An upgrade is asked for where it is to websocket; a server may pass over
    any other, and so do we: HTTP/2 would carry requests that nobody looks at.
    """
    if request.method.upper() in METHODS_REFUSED:
        said = request.method.decode("ascii").upper()
        raise refusal("protocol", f"{said} {METHODS_REFUSED[request.method.upper()]}")
    if request.http_version not in (b"1.0", b"1.1"):
        raise refusal("protocol", f"HTTP/{request.http_version.decode('ascii')} is not HTTP/1")
    headers: Headers = list(request.headers.raw_items())
    _check_framing(request)
    target = _path(request, name, port)
    hosts = _values(headers, b"host")
    if len(hosts) > 1:
        raise refusal("malformed", "it names its host twice")
    if name is not None:
        if not hosts:
            # HTTP/1.0 has none; what goes on is HTTP/1.1, and names the host that was connected to.
            headers.insert(0, (b"Host", _authority(name, port)))
        elif not _is_name(hosts[0], name, port):
            raise refusal("wrong_name", f"its Host is {_shown(hosts[0])}, and the connection is to {name}")
    elif not hosts:
        headers.insert(0, (b"Host", b""))
    if request.http_version == b"1.0" or not _is_websocket(headers):
        headers = _without_upgrade(headers)
    return h11.Request(method=request.method, target=target, headers=headers)


def refusal(reason: Reason, detail: str, *, status: int = 0) -> Refused:
    """A refusal of a request, with the response that tells its program so."""
    status = status or (400 if reason == "malformed" else 403)
    refused = Refused(reason, detail)
    text = f"This request was refused by the sandbox's egress policy: {refused.detail}.\n".encode()
    head = (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    refused.farewell = head.encode() + text
    return refused


_PHRASES = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}


def _check_framing(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names and b"content-length" in names:
        raise refusal("malformed", "it has both a Content-Length and a Transfer-Encoding")
    if b"transfer-encoding" in names and request.http_version == b"1.0":
        raise refusal("malformed", "HTTP/1.0 has no Transfer-Encoding")


def _path(request: h11.Request, name: str | None, port: int) -> bytes:
    """The target as a path; what else it names must be the name."""
    target = request.target
    if target.startswith(b"/") or (target == b"*" and request.method == b"OPTIONS"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise refusal("malformed", f"its target is {_shown(target)}, and not a path")
    authority, path = absolute.groups()
    if name is not None and not _is_name(authority, name, port):
        raise refusal("wrong_name", f"it asks for {_shown(authority)}, and the connection is to {name}")
    path = path.partition(b"#")[0]
    return path if path.startswith(b"/") else b"/" + path


def _is_name(authority: bytes, name: str, port: int) -> bool:
    found = _AUTHORITY.fullmatch(authority.decode("latin-1"))
    if found is None or (found[2] is not None and int(found[2]) != port):
        return False
    try:
        return normal_name(found[1]) == name
    except ValueError:
        return False


def _authority(name: str, port: int) -> bytes:
    return (name if port == 80 else f"{name}:{port}").encode("ascii")


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for found, value in headers if found.lower() == name]


def _is_websocket(headers: Headers) -> bool:
    upgrades = b",".join(_values(headers, b"upgrade")).lower().split(b",")
    return [upgrade.strip() for upgrade in upgrades] == [b"websocket"]


def _without_upgrade(headers: Headers) -> Headers:
    kept: Headers = []
    for name, value in headers:
        if name.lower() in _UPGRADE_HEADERS:
            continue
        if name.lower() == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            value = b", ".join(token for token in tokens if token.lower() not in _UPGRADE_HEADERS)
            if not value:
                continue
        kept.append((name, value))
    return kept


def _shown(raw: bytes) -> str:
    return repr(raw[:100].decode("latin-1"))


class PlainDesk:
    """Looks at the requests of one connection, and leaves what comes back as it is."""

    def __init__(self, name: str | None, port: int) -> None:
        """`name`: what each request is to name; None for an address."""
        self._name = name
        self._port = port

    def request(self, request: h11.Request) -> h11.Request:
        """See `admit`."""
        return admit(request, self._name, self._port)

    def headers(self, headers: Headers) -> Headers:
        """As they are."""
        return headers

    def reason(self, reason: bytes) -> bytes:
        """As it is."""
        return reason

    def body(self, data: bytes) -> bytes:
        """All of it."""
        return data

    def rest(self) -> bytes:
        """Nothing was kept back."""
        return b""
