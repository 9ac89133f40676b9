"""TLS: the name in the ClientHello is the one that was asked for; and what is neither TLS nor HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import ssl
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.egress.credentials import Credentials
from actors.egress.gateway import Gateway
from actors.egress.hello import HELLO_MAX, Hello, HelloInvalid, HelloReader, asks_again
from actors.egress.names import Names
from actors.egress.opening import kind_of
from events.egress_policy import Policy
from tests.actors.egress.programs import running

if TYPE_CHECKING:
    from tests.internet import Internet

SITE = "site.example.com"
POLICY = Policy.parse([SITE, f"{SITE}:*"])


@functools.cache
def hello_bytes(name: str | None = SITE) -> bytes:
    """What OpenSSL begins with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def in_records(hello: bytes, cuts: list[int]) -> bytes:
    """The same message in more records."""
    message = hello[5:]
    edges = sorted({0, len(message), *(cut % len(message) for cut in cuts)})
    pieces = [message[start:end] for start, end in itertools.pairwise(edges)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def with_extension(hello: bytes, kind: int, content: bytes) -> bytes:
    """The same message with one more extension."""
    added = kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    size = int.from_bytes(hello[at : at + 2], "big") + len(added)
    body = hello[9:at] + size.to_bytes(2, "big") + hello[at + 2 :] + added
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def read(data: bytes, piece: int = 1 << 20) -> Hello | None:
    reader = HelloReader()
    for at in range(0, len(data), piece):
        if (hello := reader.feed(data[at : at + piece])) is not None:
            return hello
    return None


@settings(deadline=None)  # of a machine that others keep busy
@given(cuts=st.lists(st.integers(0, 2000), max_size=30), piece=st.integers(1, 700))
def test_a_hello_has_one_name_however_it_is_cut(cuts: list[int], piece: int) -> None:
    data = in_records(hello_bytes(), cuts)
    assert read(data, piece) == Hello(SITE, False, len(data))
    assert read(data[:-1], piece) is None


@settings(deadline=None)  # of a machine that others keep busy
@given(st.binary(max_size=300), st.booleans(), st.integers(1, 300))
def test_bytes_are_a_hello_or_are_refused(data: bytes, like_tls: bool, piece: int) -> None:
    if like_tls:
        data = b"\x16\x03\x01" + len(data).to_bytes(2, "big") + data
    with contextlib.suppress(HelloInvalid):
        read(data, piece)


@settings(deadline=None)  # of a machine that others keep busy
@given(st.integers(0, 516), st.integers(0, 255))
def test_a_hello_with_a_wrong_byte_is_another_or_is_refused(at: int, value: int) -> None:
    data = bytearray(hello_bytes())
    data[at % len(data)] = value
    try:
        hello = read(bytes(data))
    except HelloInvalid:
        return
    assert hello is None or isinstance(hello, Hello)


@settings(deadline=None)  # of a machine that others keep busy
@given(st.binary(max_size=200))
def test_what_bytes_begin_is_always_known_or_waited_for(data: bytes) -> None:
    kind, may_pass = kind_of(data)
    assert 0 <= may_pass <= len(data)
    assert kind in (None, "tls", "http", "other")
    if kind is None:
        # Nothing is waited for without an end.
        assert kind_of(data + b" \0\n" * 10_000)[0] is not None


def test_names_that_are_none_or_many_are_refused() -> None:
    plain = hello_bytes(None)
    assert read(plain) == Hello(None, False, len(plain))
    one = b"\x00" + len(SITE).to_bytes(2, "big") + SITE.encode()
    both = with_extension(plain, 0, (2 * len(one)).to_bytes(2, "big") + one + one)
    for data, why in (
        (both, "does not name one server"),
        (with_extension(hello_bytes(), 0, len(one).to_bytes(2, "big") + one), "says something twice"),
        (with_extension(plain, 0, b"\x00\x04\x00\x00\x01\xff"), "names no server"),
        (with_extension(plain, 0, b"\x00\x04\x01\x00\x01a"), "does not name one server"),
        (with_extension(plain, 0, b""), "cut short"),
        (b"\x16\x03\x01\x00\x01\x02", "no ClientHello"),
        (b"\x16\x03\x01\x00\x00", "a record has 0 bytes"),
        (b"\x16\x03\x01\xff\xff", "a record has 65535 bytes"),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", f"longer than {HELLO_MAX}"),
        (b"\x16\x03\x01\x00\x01\x01\x17", "cut by something else"),
        (b"\x16\x03\x01" + (len(plain) - 4).to_bytes(2, "big") + plain[5:] + b"\x01", "follows its ClientHello"),
    ):
        with pytest.raises(HelloInvalid, match=why):
            read(data)


def test_a_hello_without_an_end_is_not_waited_for() -> None:
    endless = b"\x16\x03\x01\x00\x04\x01\x00\xff\xff" + b"\x16\x03\x01\x00\x01\x00" * 20_000
    with pytest.raises(HelloInvalid, match="longer than"):
        read(endless)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("port", [443, 8443])
async def test_tls_passes_unread_to_the_name_that_was_asked_for(
    gateway: Gateway, internet: Internet, port: int, version: ssl.TLSVersion
) -> None:
    context = internet.tls()
    context.maximum_version = version
    async with running(gateway, SITE, port, POLICY, tls=context, name=SITE) as program:
        program.writer.write(b"GET /big?bytes=3000000 HTTP/1.1\r\nHost: other.example.com\r\nConnection: close\r\n\r\n")
        assert (await program.reader.read()).endswith(bytes(3_000_000))


@pytest.mark.parametrize("port", [443, 80, 8443])
@pytest.mark.parametrize(
    ("name", "reason"), [("other.example.com", "wrong_name"), (f"a.{SITE}", "wrong_name"), ("", "no_name")]
)
async def test_tls_with_another_name_is_refused(
    gateway: Gateway, internet: Internet, port: int, name: str, reason: str
) -> None:
    async with running(gateway, SITE, port, POLICY) as program:
        program.writer.write(hello_bytes(name or None))
        # An alert, so that the program says what it is about.
        assert await program.reader.read() == b"\x15\x03\x03\x00\x02\x02\x70"
        program.writer.close()
        refused = await program.refused()
    assert (refused.reason, refused.rule) == (reason, SITE if port != 8443 else f"{SITE}:*")
    assert (name or "names no server") in refused.detail
    assert program.traffic.sent == 0


async def test_of_an_encrypted_hello_the_outer_name_counts(gateway: Gateway) -> None:
    async with running(gateway, SITE, 443, POLICY) as program:
        program.writer.write(with_extension(hello_bytes("front.example.net"), 0xFE0D, bytes(100)))
        program.writer.write_eof()
        refused = await program.refused()
    assert refused.reason == "wrong_name"
    assert "outer name counts" in refused.detail


async def test_an_address_has_no_name_to_compare(gateway: Gateway, internet: Internet) -> None:
    policy = Policy.parse([f"{internet.private}/32"])
    async with running(gateway, internet.private, 443, policy, tls=internet.tls(), name=SITE) as program:
        program.writer.write(b"GET / HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n")
        assert (await program.reader.read()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-me\r\n",
        b"\0\0\0\0",
        b"GET /\r\n",
        b"\x16\x02\0",
        b"hello world\n",
        b"a" * 100,
        b"GET",
        b"\x80\x2e\x01",
    ],
)
async def test_the_webs_ports_have_nothing_but_the_web(gateway: Gateway, port: int, data: bytes) -> None:
    async with running(gateway, SITE, port, POLICY) as program:
        program.writer.write(data)
        program.writer.write_eof()
        refused = await program.refused()
    assert refused.reason == "protocol"
    assert program.traffic.sent == 0


async def test_a_hello_that_is_cut_short_is_refused(gateway: Gateway) -> None:
    async with running(gateway, SITE, 443, POLICY) as program:
        assert await program.ask(hello_bytes()[:-1]) == b"\x15\x03\x03\x00\x02\x02\x32"
        assert (await program.refused()).reason == "malformed"
    assert program.traffic.sent == 0


async def test_http_behind_a_greeting_is_refused(gateway: Gateway) -> None:
    async with running(gateway, SITE, 22, POLICY) as program:
        await program.reader.readline()
        program.writer.write(f"GET / HTTP/1.1\r\nHost: {SITE}:22\r\n\r\n".encode())
        assert (await program.refused()).reason == "protocol"
    assert program.traffic.sent <= 3


@pytest.mark.parametrize("between", [b"", b"\x14\x03\x03\x00\x01\x01", b"\x17\x03\x03\x00\x05early" * 3])
@pytest.mark.parametrize("ahead", [True, False])
async def test_the_second_hello_that_a_server_asks_for_has_the_name_too(
    gateway: Gateway, between: bytes, ahead: bool
) -> None:
    for name, sent in ((SITE, True), ("other.example.com", False), (None, False)):
        second = in_records(hello_bytes(name), [1, 100])
        async with running(gateway, SITE, 5004, POLICY) as program:
            program.writer.write(hello_bytes())
            if not ahead:
                assert asks_again(await program.reader.readexactly(49))
            program.writer.write(between + second)
            if sent:
                program.writer.write(b"and what follows")
                assert (await program.reader.readuntil(b"and what follows")).endswith(second + b"and what follows")
            else:
                program.writer.write_eof()
                assert (await program.refused()).reason in ("wrong_name", "no_name")
                assert program.traffic.sent == len(hello_bytes()) + len(between)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200).filter(lambda data: data.strip(b"\r\n")), port=st.sampled_from([80, 443]))
def test_random_bytes_are_refused_and_nothing_else(internet: Internet, data: bytes, port: int) -> None:
    async def once() -> None:
        gateway = Gateway(names=Names(internet.pins), credentials=Credentials())
        async with running(gateway, SITE, port, POLICY) as program:
            program.writer.write(data)
            program.writer.write_eof()
            with contextlib.suppress(ConnectionResetError):
                await program.reader.read()
            await program.refused()
            assert program.traffic.sent == 0

    asyncio.run(once())


async def test_a_refusal_is_told_though_the_program_does_not_wait_for_it(gateway: Gateway) -> None:
    async with running(gateway, SITE, 443, POLICY) as program:
        program.writer.write(hello_bytes("other.example.com"))
        assert await program.reader.read()
        program.reset()
        assert (await program.refused()).reason == "wrong_name"
    async with running(gateway, SITE, 443, POLICY) as program:
        program.writer.write(hello_bytes("other.example.com"))
        assert await program.reader.read()
        program.served.cancel()
        assert (await program.refused()).reason == "wrong_name"


@pytest.mark.parametrize("blank", [b" ", b"\t", b"\v", b"\f", b"\r", b"\x1c", b"  "])
@pytest.mark.parametrize("leading", [b"", b" ", b"\t\v"])
async def test_what_only_lenient_servers_take_for_http_is_no_way_around(
    gateway: Gateway, blank: bytes, leading: bytes
) -> None:
    """On a port where other protocols pass, and with a name that is not the one asked for."""
    request = leading + blank.join((b"get", b"/", b"http/1.1")) + b"\r\nHost: other.example.com\r\n\r\n"
    async with running(gateway, SITE, 7, POLICY) as program:
        assert (await program.ask(request)).startswith(b"HTTP/1.1 400")
        assert (await program.refused()).reason == "malformed"
    assert program.traffic.sent <= 3


async def test_empty_lines_are_not_kept(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, POLICY) as program:
        program.writer.write(b"\r\n" * 100_000 + f"GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n".encode())
        assert (await program.reader.readline()).startswith(b"HTTP/1.1 200")
