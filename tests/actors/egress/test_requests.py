"""Plain HTTP: each request names the server that was asked for, and what the server gets is what was looked at."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.client
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.egress.credentials import Credentials
from actors.egress.gateway import Gateway
from actors.egress.names import Names
from actors.egress.refused import Broken, Refused
from events.egress_policy import Policy
from tests.actors.egress.programs import ProgramGone, running

if TYPE_CHECKING:
    from tests.internet import Internet

SITE = "site.example.com"
POLICY = Policy.parse([SITE, f"{SITE}:8080"])
HOST = f"Host: {SITE}\r\n".encode()
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


def answer(raw: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """The first response of what came, as a client of the standard library sees it."""
    response = http.client.HTTPResponse(_Came(raw), method=method)  # type: ignore[arg-type]
    response.begin()
    return response.status, dict(response.getheaders()), response.read()


class _Came:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self._raw)


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def echoed(reader: asyncio.StreamReader) -> dict[str, Any]:
    """What the server says that it was asked."""
    head = await head_of(reader)
    assert head.startswith(b"HTTP/1.1 200"), head
    (length,) = [int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
    said: dict[str, Any] = json.loads(await reader.readexactly(length))
    return said


@pytest.mark.parametrize("port", [80, 8080])
async def test_requests_follow_each_other_on_one_connection(gateway: Gateway, port: int) -> None:
    async with running(gateway, SITE, port, POLICY) as program:
        for number in range(3):
            program.writer.write(f"GET /{number} HTTP/1.1\r\nhOsT: {SITE}\r\nX-Odd-Case: a\r\n\r\n".encode())
            said = await echoed(program.reader)
            assert said["target"] == f"/{number}"
            assert ["hOsT", SITE] in said["headers"]
            assert ["X-Odd-Case", "a"] in said["headers"]
        program.writer.write_eof()
        assert await program.reader.read() == b""
        await program.served
    assert program.traffic.sent > 100
    assert program.traffic.received > 100


async def test_requests_that_are_sent_ahead_are_answered_in_order(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(b"".join(f"GET /{n} HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode() for n in range(20)))
        assert [(await echoed(program.reader))["target"] for _ in range(20)] == [f"/{n}" for n in range(20)]


@pytest.mark.parametrize("piece", [1, 7, 50])
async def test_a_request_may_come_in_pieces(gateway: Gateway, piece: int) -> None:
    request = b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"
    for port in (80, 8080):
        async with running(gateway, SITE, port, POLICY) as program:
            for at in range(0, len(request), piece):
                program.writer.write(request[at : at + piece])
                await program.writer.drain()
                await program.inner_idle()
            said = await echoed(program.reader)
            assert (said["method"], said["target"], said["text"]) == ("POST", "/a", "hello")


@pytest.mark.parametrize(
    "host", [SITE, f"{SITE}:80", SITE.upper(), f"{SITE}.", f"  {SITE}  "], ids=lambda host: repr(host)
)
async def test_the_name_may_be_written_in_any_way(gateway: Gateway, host: str) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(f"GET / HTTP/1.1\r\nHost:{host}\r\n\r\n".encode())
        assert (await echoed(program.reader))["target"] == "/"


async def test_a_whole_address_is_a_path_to_the_server(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(f"GET HTTP://{SITE}/a?b=c#d HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode())
        assert (await echoed(program.reader))["target"] == "/a?b=c"
        program.writer.write(f"GET http://{SITE}:80?b HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode())
        assert (await echoed(program.reader))["target"] == "/?b"


async def test_http_1_0_has_the_name_added_and_ends_with_its_answer(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        status, headers, body = answer(await program.ask(b"GET /old HTTP/1.0\r\n\r\n"))
        assert (status, headers["Connection"]) == (200, "close")
        assert ["Host", SITE] in json.loads(body)["headers"]
        await program.served


@pytest.mark.parametrize("chunked", ["", "&chunked=1"])
async def test_large_bodies_pass_both_ways(gateway: Gateway, chunked: str) -> None:
    body = bytes(range(256)) * 20_000
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {len(body)}\r\n".encode()
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(b"PUT /up HTTP/1.1\r\n" + HOST + framing + b"\r\n")
        if chunked:
            for at in range(0, len(body), 100_000):
                piece = body[at : at + 100_000]
                program.writer.write(f"{len(piece):x};ext=1\r\n".encode() + piece + b"\r\n")
            program.writer.write(b"0\r\nX-Trailer: left out\r\n\r\n")
        else:
            program.writer.write(body)
        said = await echoed(program.reader)
        assert (said["bytes"], said["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())

        request = f"GET /big?bytes=5000000{chunked} HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n"
        status, _, got = answer(await program.ask(request.encode()))
        assert (status, got) == (200, bytes(5_000_000))
        await program.served


async def test_what_is_chunked_has_an_end_in_http_1_0_too(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        raw = await program.ask(b"GET /big?bytes=70000&chunked=1 HTTP/1.0\r\n\r\n")
    status, headers, body = answer(raw)
    assert (status, body) == (200, bytes(70_000))
    assert "Transfer-Encoding" not in headers


async def test_answers_without_a_body(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(b"HEAD /x HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b"X-Target: /x" in await head_of(program.reader)
        for status in (204, 304):
            program.writer.write(f"GET /bare?status={status} HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode())
            assert (await head_of(program.reader)).startswith(f"HTTP/1.1 {status}".encode())
        program.writer.write(GET)
        assert (await echoed(program.reader))["method"] == "GET"


async def test_a_program_may_wait_to_be_told_to_send_its_body(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert (await head_of(program.reader)).startswith(b"HTTP/1.1 100")
        program.writer.write(b"hello")
        assert (await echoed(program.reader))["text"] == "hello"
        # Told no, it may send the body all the same, or another request: nobody can tell, so there is an end.
        program.writer.write(b"POST /early HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        raw = await program.reader.read()
        program.writer.write_eof()
        status, headers, body = answer(raw)
        assert (status, headers["Connection"], body) == (413, "close", b"no\n")
        await program.served


async def test_an_answer_before_the_body_has_ended_is_passed_on(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 500000000\r\n\r\n" + bytes(100_000))
        status, _, body = answer(await program.reader.read())
        assert (status, body) == (413, b"no\n")


async def test_websocket_passes_once_the_server_agreed(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        key = base64.b64encode(bytes(16))
        upgrade = b"Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        program.writer.write(b"GET /websocket HTTP/1.1\r\n" + HOST + upgrade + key + b"\r\n\r\nsent ahead")
        assert (await head_of(program.reader)).startswith(b"HTTP/1.1 101")
        assert await program.reader.readexactly(10) == b"sent ahead"
        assert await program.ask(b"\x81\x00anything") == b"\x81\x00anything"
        await program.served


@pytest.mark.parametrize("upgrade", ["h2c", "TLS/1.0", "websocket, h2c", "tcp"])
async def test_no_other_upgrade_is_asked_for(gateway: Gateway, upgrade: str) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        headers = f"Connection: Upgrade, HTTP2-Settings, keep-alive\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMA\r\n"
        program.writer.write(b"GET / HTTP/1.1\r\n" + HOST + headers.encode() + b"\r\n")
        said = (await echoed(program.reader))["headers"]
        assert {name.lower() for name, _ in said} == {"host", "connection"}
        assert ["Connection", "keep-alive"] in said


REFUSED = {
    "another name": ("wrong_name", b"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n"),
    "another port": ("wrong_name", f"GET / HTTP/1.1\r\nHost: {SITE}:81\r\n\r\n".encode()),
    "a name below": ("wrong_name", f"GET / HTTP/1.1\r\nHost: a.{SITE}\r\n\r\n".encode()),
    "an address": ("wrong_name", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "no name": ("wrong_name", b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    "a user": ("wrong_name", f"GET / HTTP/1.1\r\nHost: {SITE}@other.example.com\r\n\r\n".encode()),
    "two names": ("wrong_name", f"GET / HTTP/1.1\r\nHost: {SITE}, other.example.com\r\n\r\n".encode()),
    "two hosts": ("malformed", b"GET / HTTP/1.1\r\n" + HOST + b"Host: other.example.com\r\n\r\n"),
    "two hosts, one folded": ("malformed", b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\nHost: other\r\n\r\n"),
    "two hosts in HTTP/1.0": ("malformed", b"GET / HTTP/1.0\r\n" + HOST + b"Host: other.example.com\r\n\r\n"),
    "no host": ("malformed", b"GET / HTTP/1.1\r\n\r\n"),
    "another whole address": ("wrong_name", b"GET http://other.example.com/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a user in the address": (
        "wrong_name",
        f"GET http://{SITE}@other.example.com/ HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode(),
    ),
    "https": ("malformed", b"GET https://other.example.com/ HTTP/1.1\r\n" + HOST + b"\r\n"),
    "no path": ("malformed", b"GET *a HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a tunnel": ("protocol", b"CONNECT other.example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a tunnel to itself": ("protocol", f"CONNECT {SITE}:80 HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode()),
    "a small tunnel": ("protocol", b"connect other.example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "trace": ("protocol", b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n"),
    "http/2": ("protocol", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "another version": ("protocol", b"GET / HTTP/3.0\r\n" + HOST + b"\r\n"),
    "a small version": ("malformed", b"GET / http/1.1\r\n" + HOST + b"\r\n"),
    "a length and chunks": (
        "malformed",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "two lengths": (
        "malformed",
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n12345",
    ),
    "odd chunks": ("malformed", b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "chunks in HTTP/1.0": ("malformed", b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a blank before the colon": ("malformed", b"GET / HTTP/1.1\r\nHost : other.example.com\r\n" + HOST + b"\r\n"),
    "a nul": ("malformed", b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n"),
    "too much": ("malformed", b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 100_000),
    "too long a line": ("malformed", b"GET /" + b"a" * 100_000),
    "half a request": ("malformed", b"GET / HTTP/1.1\r\nHost: si"),
}


@pytest.mark.parametrize("port", [80, 8080])
@pytest.mark.parametrize("case", REFUSED)
async def test_a_request_that_may_go_elsewhere_is_refused(gateway: Gateway, case: str, port: int) -> None:
    reason, request = REFUSED[case]
    async with running(gateway, SITE, port, POLICY) as program:
        # Behind one that is right, since each is looked at.
        first = f"GET / HTTP/1.1\r\nHost: {SITE}:{port}\r\n\r\n".encode()
        request = request.replace(f"Host: {SITE}\r\n".encode(), f"Host: {SITE}:{port}\r\n".encode())
        program.writer.write(first)
        await echoed(program.reader)
        sent = program.traffic.sent
        status, headers, text = answer(await program.ask(request))
        refused = await program.refused()
    assert (refused.reason, refused.rule) == (reason, SITE if port == 80 else f"{SITE}:8080")
    assert status == (400 if reason == "malformed" else 403)
    assert headers["Connection"] == "close"
    assert refused.detail.encode() in text
    assert program.traffic.sent == sent


@pytest.mark.parametrize("port", [80, 8080])
async def test_nor_is_the_first(gateway: Gateway, port: int) -> None:
    blank = b"\r\n" if port == 80 else b""
    request = blank + b"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n"
    for piece in (1, len(request)):
        async with running(gateway, SITE, port, POLICY) as program:
            for at in range(0, len(request), piece):
                program.writer.write(request[at : at + piece])
                await program.inner_idle()
            assert answer(await program.reader.read())[0] == 403
            program.writer.close()
            assert (await program.refused()).reason == "wrong_name"
        # What a request begins with, and no more of it, may have gone.
        assert program.traffic.sent <= len(b"GET" if port == 8080 else b"")


async def test_a_broken_body_is_refused(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nsurprise\r\n")
        assert answer(await program.reader.read())[0] == 400
        program.writer.close()
        assert (await program.refused()).reason == "malformed"


async def test_to_an_address_any_name_may_be_asked_for_but_no_tunnel(gateway: Gateway, internet: Internet) -> None:
    policy = Policy.parse([f"{internet.private}/32"])
    async with running(gateway, internet.private, 80, policy) as program:
        program.writer.write(b"GET / HTTP/1.1\r\nHost: whatever\r\n\r\n")
        assert ["Host", "whatever"] in (await echoed(program.reader))["headers"]
        assert answer(await program.ask(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"))[0] == 403
        assert (await program.refused()).reason == "protocol"


HOSTILE = {
    "nothing": b"",
    "no http": b"surprise\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nX: y",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsurprise\r\n",
    "a switch nobody asked for": b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\nand more",
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_an_answer_that_is_none_or_breaks_off_resets_the_program(gateway: Gateway, case: str) -> None:
    raw = base64.urlsafe_b64encode(HOSTILE[case]).decode()
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(f"GET /raw?base64={raw} HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode())
        await program.broken()
        with pytest.raises(ConnectionResetError):
            await program.reader.read()


async def test_an_answer_framed_twice_has_one_frame(gateway: Gateway) -> None:
    twice = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    raw = base64.urlsafe_b64encode(twice).decode()
    async with running(gateway, SITE, 80, POLICY) as program:
        got = await program.ask(f"GET /raw?base64={raw} HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode())
    status, headers, body = answer(got)
    assert (status, body) == (200, b"hello")
    assert "Content-Length" not in headers


async def test_a_body_without_a_length_ends_with_the_connection(gateway: Gateway) -> None:
    raw = base64.urlsafe_b64encode(b"HTTP/1.0 200 OK\r\n\r\nhello").decode()
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(f"GET /raw?base64={raw} HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode())
        status, headers, body = answer(await program.reader.read())
    assert (status, headers["Connection"], body) == (200, "close", b"hello")


async def test_a_program_that_goes_is_noticed_while_the_server_thinks(gateway: Gateway) -> None:
    async with running(gateway, SITE, 5000, Policy.parse([f"{SITE}:5000"])) as program:
        program.writer.write(f"GET / HTTP/1.1\r\nHost: {SITE}:5000\r\n\r\n".encode())
        while not program.traffic.sent:
            await program.inner_idle()
        program.reset()
        with pytest.raises(ProgramGone):
            await program.served


async def test_a_server_that_has_enough_of_an_idle_program_ends_it(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        await echoed(program.reader)
        assert await program.reader.read() == b""
        program.writer.write_eof()
        await program.served


REQUEST = f"POST /a?b HTTP/1.1\r\nHost: {SITE}\r\nX-A: b\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody".encode()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, len(REQUEST) - 1), st.integers(0, 3), st.sampled_from([*b"\r\n :,\0\t/@h", 0x0B, 0x80, 0xFF])
        ),
        min_size=1,
        max_size=4,
    ),
    port=st.sampled_from([80, 8080]),
)
def test_whatever_a_request_is_the_server_is_asked_for_its_own_name(
    internet: Internet, changes: list[tuple[int, int, int]], port: int
) -> None:
    """Bytes are put in, or in the place of others; what comes of that is an answer, or a refusal."""
    data = bytearray(REQUEST.replace(SITE.encode(), f"{SITE}:{port}".encode()))
    for at, instead_of, byte in changes:
        data[at : at + instead_of] = bytes([byte])

    async def once() -> None:
        gateway = Gateway(names=Names(internet.pins), credentials=Credentials())
        async with running(gateway, SITE, port, POLICY) as program:
            program.writer.write(bytes(data))
            program.writer.write_eof()
            with contextlib.suppress(ConnectionResetError):
                status, _, text = answer(await program.reader.read() or b"HTTP/1.1 400 None\r\n\r\n")
                if status == 200:
                    hosts = [value for name, value in json.loads(text)["headers"] if name.lower() == "host"]
                    assert [host.lower().removesuffix(f":{port}").removesuffix(".") for host in hosts] == [SITE]
            with contextlib.suppress(Refused, Broken):
                await program.served

    asyncio.run(once())
