"""Credentials stay outside: added by the host, taken out of what comes back, told to nobody."""

from __future__ import annotations

import base64
import json
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from actors.egress.credentials import Credentials, read
from actors.egress.gateway import Gateway
from actors.egress.redaction import Redactor
from actors.egress.refused import Refused
from actors.egress_settings import EgressCredential
from events.egress_policy import NOTHING, Policy
from tests.actors.egress.programs import running
from tests.actors.egress.test_requests import answer, echoed, head_of

if TYPE_CHECKING:
    from pathlib import Path

    from actors.egress.names import Names
    from tests.internet import Internet

SECRET = "sk-very/secret+0123456789=="
REAL = "api.example.com"
INSIDE = f"{REAL}.internal"
HOST = f"Host: {INSIDE}\r\n"
POLICY = Policy.parse([REAL])


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return path


def _gateway(names: Names, internet: Internet, credential: EgressCredential, real: str = REAL) -> Gateway:
    return Gateway(names=names, credentials=Credentials({real: credential}, tls=internet.tls()), connect_timeout=3)


@pytest.fixture
def gateway(names: Names, internet: Internet, secret_file: Path) -> Gateway:
    return _gateway(names, internet, EgressCredential(kind="bearer", file=secret_file))


def _asked(said: dict[str, Any], name: str) -> list[str]:
    return [value for found, value in said["headers"] if found.lower() == name.lower()]


def _stars(text: str) -> str:
    return "*" * len(text)


async def test_the_host_adds_it_and_the_server_gets_nothing_of_the_guests_own(
    gateway: Gateway, internet: Internet
) -> None:
    own = "aUTHORIZATION: Bearer mine\r\nAuthorization: Basic bWU6bWU=\r\n"
    own += "Proxy-Authorization: Basic x\r\nProxy_Authorization: y\r\n"
    async with running(gateway, INSIDE, 80, POLICY) as program:
        for _ in range(2):
            program.writer.write(f"POST /v1 HTTP/1.1\r\n{HOST}{own}X-A: b\r\nContent-Length: 2\r\n\r\nhi".encode())
            said = await echoed(program.reader)
            assert _asked(said, "authorization") == [f"Bearer {_stars(SECRET)}"]
            assert not _asked(said, "proxy-authorization") + _asked(said, "proxy_authorization")
            assert (_asked(said, "host"), _asked(said, "x-a"), said["text"]) == ([REAL], ["b"], "hi")
            assert _asked(said, "accept-encoding") == ["identity"]
        program.writer.write_eof()
        assert await program.reader.read() == b""
        await program.served
    assert program.connected == [(internet.public, REAL)]


async def test_a_server_that_repeats_it_gives_nothing_away(gateway: Gateway) -> None:
    """The guest can't know the secret; here it does, to have it come back in every way."""
    encoded = base64.b64encode(f"token {SECRET}".encode()).decode()
    body = f"{SECRET} {quote(SECRET, safe='')} {base64.b64encode(SECRET.encode()).decode()} {encoded}"
    async with running(gateway, INSIDE, 80, POLICY) as program:
        request = (
            f"POST /{quote(SECRET)} HTTP/1.1\r\n{HOST}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
        )
        raw = await program.ask(request.encode())
    status, headers, text = answer(raw)
    assert status == 200
    for form in (SECRET, quote(SECRET), quote(SECRET, safe=""), base64.b64encode(SECRET.encode()).decode()[:-4]):
        assert form.encode() not in raw
    assert encoded not in text.decode()
    assert "*" in headers["X-Target"]
    assert int(headers["Content-Length"]) == len(text)
    assert json.loads(text)["text"].startswith(f"{_stars(SECRET)} ")


@pytest.mark.parametrize("cut", range(1, len(SECRET)))
async def test_one_that_is_split_is_found(cut: int) -> None:
    redactor = Redactor([SECRET.encode()])
    data = f"a {SECRET} b".encode()
    got = redactor.feed(data[: 2 + cut]) + redactor.feed(data[2 + cut :]) + redactor.rest()
    assert got == f"a {_stars(SECRET)} b".encode()


@settings(deadline=None)  # of a machine that others keep busy
@given(st.lists(st.sampled_from([b"abcabd", b"abc", b"ab", b"d", b"xyz"]), max_size=20), st.integers(1, 9))
def test_however_it_is_cut_nothing_of_it_is_left_and_nothing_else_is_lost(parts: list[bytes], piece: int) -> None:
    data = b"".join(parts)
    redactor = Redactor([b"abcabd"])
    got = b"".join(redactor.feed(data[at : at + piece]) for at in range(0, len(data), piece)) + redactor.rest()
    assert len(got) == len(data)
    assert b"abcabd" not in got
    kept = data.replace(b"abcabd", b"*" * 6)
    # What may be the beginning of one, at the very end, is overwritten too, from four bytes on.
    end = next((kept[: -len(part)] + b"*" * len(part) for part in (b"abcab", b"abca") if kept.endswith(part)), kept)
    assert got == end


@settings(deadline=None)  # of a machine that others keep busy
@given(st.binary(min_size=9, max_size=40), st.binary(max_size=5), st.binary(max_size=5))
def test_base64_hides_it_at_no_offset(secret: bytes, before: bytes, behind: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        shown = Redactor([secret]).whole(encode(before + secret + behind))
        assert shown.count(b"*") >= len(secret) * 8 // 6 - 2


async def test_a_secret_split_over_chunks_is_overwritten(gateway: Gateway) -> None:
    pieces = [b"before ", SECRET[:5].encode(), SECRET[5:].encode(), b" after ", SECRET[:9].encode()]
    chunks = (
        b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\nX: " + SECRET.encode()
    )
    head = f"HTTP/1.1 200 {SECRET}\r\nTransfer-Encoding: chunked\r\nX-{SECRET[:3]}: {SECRET}\r\n\r\n".encode()
    raw = base64.urlsafe_b64encode(head + chunks + b"\r\n\r\n").decode()
    async with running(gateway, INSIDE, 80, POLICY) as program:
        got = await program.ask(f"GET /raw?base64={raw} HTTP/1.1\r\n{HOST}\r\n".encode())
    assert SECRET.encode() not in got
    assert answer(got)[2] == f"before {_stars(SECRET)} after {_stars(SECRET[:9])}".encode()


async def test_what_would_hide_it_from_us_is_not_asked_for(gateway: Gateway) -> None:
    headers = "Accept-Encoding: gzip\r\nRange: bytes=0-9\r\nIf-Range: x\r\nTE: trailers\r\n"
    headers += "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    async with running(gateway, INSIDE, 80, POLICY) as program:
        program.writer.write(f"GET / HTTP/1.1\r\n{HOST}{headers}\r\n".encode())
        names = {name.lower() for name, _ in (await echoed(program.reader))["headers"]}
        assert names == {"host", "authorization", "accept-encoding"}


async def test_a_compressed_answer_is_not_passed_on(gateway: Gateway) -> None:
    raw = base64.urlsafe_b64encode(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    ).decode()
    async with running(gateway, INSIDE, 80, POLICY) as program:
        status, _, text = answer(await program.ask(f"GET /raw?base64={raw} HTTP/1.1\r\n{HOST}\r\n".encode()))
        refused = await program.refused()
    assert (status, refused.reason, refused.rule) == (502, "protocol", REAL)
    assert b"compressed" in text


async def test_a_header_of_any_name_in_any_spelling(names: Names, internet: Internet, secret_file: Path) -> None:
    gateway = _gateway(names, internet, EgressCredential(kind="header", header="X-Api-Key", file=secret_file))
    async with running(gateway, INSIDE, 80, POLICY) as program:
        own = "x-api-key: mine\r\nX_API_KEY: mine\r\nx-Api_Key: mine\r\nAuthorization: mine\r\n"
        program.writer.write(f"GET / HTTP/1.1\r\n{HOST}{own}\r\n".encode())
        said = await echoed(program.reader)
    assert _asked(said, "X-Api-Key") == [_stars(SECRET)]
    assert "mine" not in json.dumps(said)


async def test_basic_hides_the_pair_and_the_password(
    names: Names, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PAIR", "me:correct horse")
    gateway = _gateway(names, internet, EgressCredential(kind="basic", env="TEST_PAIR"))
    encoded = base64.b64encode(b"me:correct horse").decode()
    async with running(gateway, INSIDE, 80, POLICY) as program:
        program.writer.write(f'POST / HTTP/1.1\r\n{HOST}Content-Length: 15\r\n\r\n"correct horse"'.encode())
        said = await echoed(program.reader)
    assert _asked(said, "authorization")[0].startswith("Basic ***")
    assert encoded not in json.dumps(said)
    assert said["text"] == '"*************"'


async def test_it_is_read_for_each_request_so_it_can_be_replaced(gateway: Gateway, secret_file: Path) -> None:
    async with running(gateway, INSIDE, 80, POLICY) as program:
        for value in (SECRET, "another-one"):
            secret_file.write_text(value)
            program.writer.write(f"POST / HTTP/1.1\r\n{HOST}Content-Length: {len(SECRET)}\r\n\r\n{SECRET}".encode())
            said = await echoed(program.reader)
            assert _asked(said, "authorization") == [f"Bearer {_stars(value)}"]
            # The earlier one is still nobody's business.
            assert said["text"] == _stars(SECRET)
        secret_file.unlink()
        status, _, text = answer(await program.ask(f"GET / HTTP/1.1\r\n{HOST}\r\n".encode()))
        refused = await program.refused()
    assert (status, refused.reason, refused.rule) == (502, "unreachable", REAL)
    assert b"the credential's file can't be read: No such file or directory" in text


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("a\nb", "printable"),
        ("é", "printable"),
        ("a" * 9000, "printable"),
        (None, "read"),
    ],
)
async def test_a_credential_that_is_none_is_told_before_anything_is_connected(
    gateway: Gateway, secret_file: Path, value: str | None, why: str
) -> None:
    secret_file.unlink() if value is None else secret_file.write_text(value)
    async with running(gateway, INSIDE, 80, POLICY) as program:
        refused = await program.refused()
        assert not program.connected
    assert (refused.reason, refused.rule) == ("unreachable", REAL)
    assert why in refused.detail


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(Refused, match="variable HOURGLASS_TEST_NOT_SET is empty"):
        read(EgressCredential(kind="bearer", env="HOURGLASS_TEST_NOT_SET"))


@pytest.mark.parametrize(
    ("host", "port", "policy", "why"),
    [
        (INSIDE, 80, NOTHING, "no entry lists api.example.com at port 443"),
        (INSIDE, 80, Policy.parse([f"{REAL}:80"]), "no entry lists api.example.com at port 443"),
        (INSIDE, 443, POLICY, "at port 80"),
        (INSIDE, 8080, Policy.parse([f"{REAL}:*"]), "at port 80"),
        ("other.example.com.internal", 80, Policy.parse(["*.example.com"]), "none is set for it"),
        ("internal", 80, POLICY, "no entry lists it"),
    ],
)
async def test_the_real_name_must_be_allowed(gateway: Gateway, host: str, port: int, policy: Policy, why: str) -> None:
    async with running(gateway, host, port, policy) as program:
        refused = await program.refused()
        assert not program.connected
    assert refused.reason == "not_allowed"
    assert why in refused.detail
    if port == 80:
        with pytest.raises(Refused, match=why):
            gateway.name_allowed(host, policy)


def test_the_resolver_of_a_guest_knows_internal_names(gateway: Gateway) -> None:
    assert gateway.name_allowed(INSIDE.upper(), POLICY).text == REAL


async def test_the_real_name_leads_inside_no_more_than_another(
    internet: Internet, names: Names, secret_file: Path
) -> None:
    gateway = _gateway(names, internet, EgressCredential(kind="bearer", file=secret_file), real="private.example.com")
    async with running(gateway, "private.example.com.internal", 80, Policy.parse(["private.example.com"])) as program:
        assert (await program.refused()).reason == "private_address"


@pytest.mark.parametrize(
    ("real", "trusts", "why"),
    [
        ("six.example.com", True, "its certificate: Hostname mismatch"),
        (REAL, False, "its certificate: "),
    ],
)
async def test_a_server_that_is_another_never_hears_it(
    names: Names, internet: Internet, secret_file: Path, real: str, trusts: bool, why: str
) -> None:
    tls = internet.tls() if trusts else ssl.create_default_context()
    credentials = Credentials({real: EgressCredential(kind="bearer", file=secret_file)}, tls=tls)
    gateway = Gateway(names=names, credentials=credentials, connect_timeout=3)
    async with running(gateway, f"{real}.internal", 80, Policy.parse([real])) as program:
        refused = await program.refused()
        assert not program.connected
    assert refused.reason == "unreachable"
    assert why in refused.detail


@pytest.mark.parametrize(
    "request_text",
    [
        f"GET / HTTP/1.1\r\nHost: {REAL}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
        f"GET http://{REAL}/ HTTP/1.1\r\n{HOST}\r\n",
        f"TRACE / HTTP/1.1\r\n{HOST}\r\n",
        f"CONNECT {REAL}:443 HTTP/1.1\r\n{HOST}\r\n",
        "\x16\x03\x01\x00\x05hello\r\n\r\n",
    ],
)
async def test_requests_are_looked_at_as_any(gateway: Gateway, request_text: str) -> None:
    async with running(gateway, INSIDE, 80, POLICY) as program:
        assert answer(await program.ask(request_text.encode()))[0] in (400, 403)
        refused = await program.refused()
    assert refused.reason in ("wrong_name", "protocol", "malformed")
    assert program.traffic.sent == 0


async def test_large_bodies_pass_over_tls(gateway: Gateway) -> None:
    async with running(gateway, INSIDE, 80, POLICY) as program:
        program.writer.write(f"PUT / HTTP/1.1\r\n{HOST}Content-Length: 3000000\r\n\r\n".encode() + bytes(3_000_000))
        assert (await echoed(program.reader))["bytes"] == 3_000_000
        program.writer.write(f"GET /big?bytes=3000000 HTTP/1.1\r\n{HOST}\r\n".encode())
        await head_of(program.reader)
        assert await program.reader.readexactly(3_000_000) == bytes(3_000_000)


def test_nothing_tells_the_value(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credential = EgressCredential(kind="bearer", file=secret_file)
    secret = read(credential)
    for told in (repr(credential), str(credential), credential.model_dump_json(), repr(secret), str(secret)):
        assert SECRET not in told


@pytest.mark.parametrize("header", ["content_length", "Host", "Transfer-Encoding"])
def test_a_credential_frames_no_request(header: str) -> None:
    with pytest.raises(ValidationError, match="none that frames a request"):
        EgressCredential.model_validate({"kind": "header", "header": header, "env": "A"})


def test_a_credential_is_for_a_name() -> None:
    with pytest.raises(ValueError, match="address"):
        Credentials({"10.0.0.1": EgressCredential(kind="bearer", env="A")})
