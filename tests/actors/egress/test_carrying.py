"""Connections that may be: carried both ways, ended one way at a time, and never faster than the slower end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from events.egress_policy import Policy
from tests.actors.egress.programs import ProgramGone, running

if TYPE_CHECKING:
    from actors.egress.gateway import Gateway
    from tests.internet import Internet

SITE = "site.example.com"
ANY = Policy.parse([f"{SITE}:*", "six.example.com:*"])


async def test_what_a_program_says_goes_there_and_comes_back(gateway: Gateway, internet: Internet) -> None:
    async with running(gateway, SITE, 7, ANY) as program:
        assert await program.ask(b"hello") == b"hello"
        await program.served
    assert program.connected == [(internet.public, f"{SITE}:*")]
    assert (program.traffic.sent, program.traffic.received) == (5, 5)
    assert program.traffic.seconds > 0


async def test_a_name_is_the_same_in_any_spelling(gateway: Gateway) -> None:
    async with running(gateway, "SITE.Example.COM.", 7, ANY) as program:
        assert await program.ask(b"hello") == b"hello"


async def test_over_ipv6(gateway: Gateway, internet: Internet) -> None:
    async with running(gateway, "six.example.com", 7, ANY) as program:
        assert await program.ask(b"hello") == b"hello"
    assert program.connected == [(internet.public6, "six.example.com:*")]


@pytest.mark.parametrize("text", [b"P", b"GET", b"\r\n", b"\r\nP", b"\x16\x00", b"hello world", b"one-word"])
async def test_a_protocol_that_begins_like_another_need_not_wait(gateway: Gateway, text: bytes) -> None:
    async with running(gateway, SITE, 7, ANY) as program:
        program.writer.write(text)
        assert await program.reader.readexactly(len(text)) == text
        program.writer.write(b"\0more")
        assert await program.reader.readexactly(5) == b"\0more"


async def test_a_server_may_speak_first(gateway: Gateway) -> None:
    async with running(gateway, SITE, 22, ANY) as program:
        assert await program.reader.readline() == b"220 ready\r\n"
        assert await program.ask(b"EHLO me\r\n") == b"EHLO me\r\n"


async def test_a_program_that_has_ended_still_gets_the_answer(gateway: Gateway) -> None:
    async with running(gateway, SITE, 5002, ANY) as program:
        for _ in range(100):
            program.writer.write(b"\0" * 50_000)
            await program.writer.drain()
        assert await program.ask(b"") == b"5000000\n"
        await program.served
    assert (program.traffic.sent, program.traffic.received) == (5_000_000, 8)


async def test_a_program_that_says_nothing_is_no_wrong_protocol(gateway: Gateway) -> None:
    async with running(gateway, SITE, 80, ANY) as program:
        assert await program.ask(b"") == b""
        await program.served
    assert program.traffic.sent == 0


async def test_a_server_that_breaks_off_is_no_end_like_any_other(gateway: Gateway) -> None:
    async with running(gateway, SITE, 5003, ANY) as program:
        assert await program.reader.readexactly(10) == b"half of it"
        program.writer.write(b"\0" * 1000)
        await program.broken()
        with pytest.raises(ConnectionResetError):
            await program.reader.read()


async def test_nothing_is_taken_that_the_server_does_not_take(gateway: Gateway) -> None:
    async with running(gateway, SITE, 5000, ANY) as program:
        pouring = asyncio.create_task(_pour(program.writer))
        sent = -1
        while program.traffic.sent != sent or not sent:
            sent = program.traffic.sent
            await asyncio.sleep(0.3)
        pouring.cancel()
        # What the kernel's buffers have, on the way; nothing beside it is held.
        assert sent < 64 * 1024 * 1024
        assert not program.served.done()


async def test_nothing_is_taken_that_the_program_does_not_take(gateway: Gateway) -> None:
    async with running(gateway, SITE, 5001, ANY) as program:
        program.writer.transport.pause_reading()  # type: ignore[attr-defined]
        received = -1
        while program.traffic.received != received or not received:
            received = program.traffic.received
            await asyncio.sleep(0.3)
        assert received < 64 * 1024 * 1024
        assert not program.served.done()


async def test_a_program_that_goes_is_noticed_whatever_the_server_does(gateway: Gateway) -> None:
    async with running(gateway, SITE, 5000, ANY) as program:
        await program.inner.connected.wait()
        program.reset()
        with pytest.raises(ProgramGone):
            await program.served


async def test_cancelling_lets_go_of_both(gateway: Gateway) -> None:
    async with running(gateway, SITE, 5001, ANY) as program:
        await program.reader.readexactly(1000)
        program.served.cancel()
        with pytest.raises(asyncio.CancelledError):
            await program.served
        with pytest.raises(ConnectionResetError):
            await program.reader.read()


async def test_many_at_once(gateway: Gateway) -> None:
    async def one(number: int) -> None:
        async with running(gateway, SITE, 7, ANY) as program:
            data = bytes([number]) * 100_000
            assert await program.ask(data) == data
            await program.served

    await asyncio.gather(*(one(number) for number in range(200)))


async def _pour(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"\0" * 65536)
        await writer.drain()
