"""Credentials that stay outside: the host adds them to plain requests, and the guest sees neither them nor a stand-in.

For a credential of `api.example.com` a guest asks `http://api.example.com.internal/`. Its connection ends at the host,
which speaks TLS to the real name. What the guest itself sends as that header is taken out, and in responses the secret
is overwritten.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from typing import TYPE_CHECKING

import h11

from actors.egress.redaction import Redactor
from actors.egress.refused import Refused
from actors.egress.requests import admit, refusal
from events.egress_policy import normal_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.egress.requests import Headers
    from actors.egress_settings import EgressCredential

INTERNAL = ".internal"
"""What an internal name ends with; the real one is before it."""
INTERNAL_PORT = 80
REAL_PORT = 443
SECRET_BYTES_MAX = 8192
_ALWAYS_OUT = frozenset((b"authorization", b"proxy-authorization"))
# An answer in parts, or compressed, would have the secret where it can't be seen.
_NOT_ASKED = frozenset((b"accept-encoding", b"range", b"if-range", b"te", b"upgrade", b"connection", b"keep-alive"))


def read(credential: EgressCredential) -> Secret:
    """A credential's value, as it is now. Raises `Refused`, with nothing of the value in it."""
    try:
        if credential.file is not None:
            with credential.file.open("rb") as file:
                raw = file.read(SECRET_BYTES_MAX + 1)
        else:
            raw = os.environb.get(os.fsencode(credential.env), b"")
    except OSError as error:
        raise Refused("unreachable", f"the credential's file can't be read: {error.strerror}") from None
    value = raw.strip()
    place = "file" if credential.file is not None else f"variable {credential.env}"
    if not value:
        raise Refused("unreachable", f"the credential's {place} is empty")
    if len(value) > SECRET_BYTES_MAX or not re.fullmatch(rb"[\x20-\x7e]+", value):
        raise Refused("unreachable", f"the credential's {place} holds no line of printable ASCII")
    return Secret(credential.kind, credential.user.encode() + b":" + value if credential.user else value)


def header_name(credential: EgressCredential) -> str:
    """The header that carries it."""
    return credential.header or "Authorization"


class Secret:
    """A value that was read. Nothing of it is in its text."""

    def __init__(self, kind: str, value: bytes) -> None:
        self._value = value
        encoded = base64.b64encode(value)
        self.header_value = {"bearer": b"Bearer " + value, "basic": b"Basic " + encoded}.get(kind, value)
        """What the header says."""
        self.parts = [value]
        """What is not to come back."""
        if kind == "basic" and (password := value.partition(b":")[2]):
            self.parts.append(password)

    def __repr__(self) -> str:
        return "<Secret>"


class Credentials:
    """All credentials, by the real name."""

    def __init__(
        self, table: Mapping[str, EgressCredential] | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        """`tls`: how the real names are spoken to; else as the system's authorities say. Raises `ValueError` for a name
        that is none.
        """
        self._table = {normal_name(name): credential for name, credential in (table or {}).items()}
        self._tls = tls

    @property
    def tls(self) -> ssl.SSLContext:
        """How the real names are spoken to: verified, and by HTTP/1."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def of(self, internal: str) -> tuple[str, EgressCredential] | None:
        """The real name and the credential of a normalised internal name; None where there is none."""
        real = internal.removesuffix(INTERNAL)
        credential = self._table.get(real) if real != internal else None
        return None if credential is None else (real, credential)


class CredentialDesk:
    """Adds a credential to the requests of one connection, and takes it out of their responses."""

    def __init__(self, internal: str, real: str, credential: EgressCredential) -> None:
        self._internal = internal
        self._real = real.encode("ascii")
        self._credential = credential
        self._out = _ALWAYS_OUT | {_spelt(header_name(credential)).encode("ascii")}
        self._redactor: Redactor | None = None
        self._redacts: list[bytes] = []

    def request(self, request: h11.Request) -> h11.Request:
        """The request with the credential, to the real name. Raises `Refused`."""
        admitted = admit(request, self._internal, INTERNAL_PORT)
        secret = self._secret()
        headers: Headers = [(b"Host", self._real)]
        for name, value in admitted.headers.raw_items():
            low = name.lower()
            if low == b"host" or low in _NOT_ASKED or low.replace(b"_", b"-") in self._out:
                continue
            headers.append((name, value))
        headers.append((header_name(self._credential).encode("ascii"), secret.header_value))
        headers.append((b"Accept-Encoding", b"identity"))
        return h11.Request(method=admitted.method, target=admitted.target, headers=headers)

    def headers(self, headers: Headers) -> Headers:
        """The headers without the secret. Raises `Refused` where the body can't be looked at."""
        for name, value in headers:
            if name.lower() == b"content-encoding" and value.strip().lower() not in (b"identity", b""):
                raise refusal("protocol", "the server compressed its answer, which was not asked for", status=502)
        redact = self._known().whole
        return [(redact(name), redact(value)) for name, value in headers]

    def reason(self, reason: bytes) -> bytes:
        """The phrase without the secret."""
        return self._known().whole(reason)

    def body(self, data: bytes) -> bytes:
        """What may go on of a body."""
        return self._known().feed(data)

    def rest(self) -> bytes:
        """What was kept back of it."""
        return self._known().rest()

    def _secret(self) -> Secret:
        try:
            secret = read(self._credential)
        except Refused as error:
            raise refusal(error.reason, error.detail, status=502) from None
        for part in secret.parts:
            # An earlier one stays secret: a server may remember what it was told.
            if part not in self._redacts:
                self._redacts.append(part)
                self._redactor = None
        return secret

    def _known(self) -> Redactor:
        if self._redactor is None:
            self._redactor = Redactor(self._redacts)
        return self._redactor


def _spelt(name: str) -> str:
    """A header's name as servers see it that hand headers on as variables, where `-` and `_` are the same."""
    return name.lower().replace("_", "-")
