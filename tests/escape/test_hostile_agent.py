"""The guest agent replaced by one that speaks the protocol wrongly in every way: its host stays bounded and unmoved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from actors.egress.addresses import Address
from actors.egress.credentials import Credentials
from actors.egress.gateway import Gateway
from actors.egress.names import Names
from actors.egress.recorder import EgressRecorder
from actors.egress.serving import CONNECTIONS_MAX, EgressServing
from actors.guest import frames
from actors.machines import mux
from actors.machines.guest import GuestConnection
from actors.machines.protocol import GuestProtocolError, MachineGone
from events import sandbox as fold
from events.egress_policy import Policy
from tests.actors.guest.test_hostile_guest import Liar, lied_to

pytestmark = pytest.mark.timeout(60)

Act = Callable[[Liar], Awaitable[None]]


class Written:
    """What would have been appended."""

    def __init__(self) -> None:
        self.commands: list[Any] = []

    async def __call__(self, *commands: Any) -> None:
        self.commands.extend(commands)

    def refusals(self) -> list[tuple[str, int | None, str, int]]:
        found = [one for one in self.commands if isinstance(one, fold.RefuseEgress)]
        return [(one.host, one.port, one.reason, one.count) for one in found]


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A server on the host's loopback, which nobody reaches."""
    reached: list[None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(None)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    assert reached == []


class Waiting(Names):
    """Nobody answers."""

    async def resolve(self, name: str) -> list[Address]:
        if name.startswith("waits."):
            await asyncio.Event().wait()
        return await super().resolve(name)


async def played(act: Act, *allow: str) -> Written:
    """Let a liar act, then ask it for something; what was written of it. Raises what the host made of it."""
    written = Written()
    names = Waiting({"allowed.example.com": ["127.0.0.1"]}, timeout=1)
    policy = Policy.parse(allow)
    gateway = Gateway(names=names, credentials=Credentials(), connect_timeout=1)
    serving = EgressServing("sbx-liar", lambda: policy, gateway, EgressRecorder(written))

    async def script(liar: Liar) -> None:
        await liar.greet()
        await act(liar)
        liar.writer.close()

    try:
        async with lied_to(script, egress=serving) as guest:
            await ended(guest)
    finally:
        await serving.close()
        names.close()
    return written


async def ended(guest: GuestConnection) -> None:
    """Wait until the liar is through; raises `GuestProtocolError` where it went too far."""
    try:
        async with asyncio.timeout(20):
            while True:
                await guest.ping()
                await asyncio.sleep(0.01)
    except MachineGone:
        return


def opened(number: int, **params: object) -> tuple[int, int, bytes]:
    return frames.OPEN, number, json.dumps(params).encode()


async def test_wishes_that_make_no_sense_are_refused(echo: int) -> None:
    wishes: list[object] = [
        {},
        [],
        {"kind": "exec"},
        {"kind": "egress", "host": "allowed.example.com"},
        {"kind": "egress", "host": "allowed.example.com", "port": "80"},
        {"kind": "egress", "host": "allowed.example.com", "port": 0},
        {"kind": "egress", "host": "allowed.example.com", "port": 65536},
        {"kind": "egress", "host": "allowed.example.com", "port": 80, "address": "127.0.0.1"},
        {"kind": "egress", "host": "", "port": 80},
        {"kind": "egress", "host": "x" * 300, "port": 80},
        {"kind": "resolve", "name": None},
        {"kind": "resolve", "name": {"a": 1}},
    ]
    answers = []

    async def act(liar: Liar) -> None:
        number = 2
        for wish in (*(json.dumps(one).encode() for one in wishes), b"", b"{", b"\xff\xfe", b"[" * 1000):
            await liar.send(frames.OPEN, number, wish)
            answers.append((await liar.receive(frames.RESET)).channel)
            number += 2

    written = await played(act, "allowed.example.com:*")
    assert answers == [2 * (turn + 1) for turn in range(len(wishes) + 4)]
    assert {(host, port, reason) for host, port, reason, _ in written.refusals()} == {("?", None, "malformed")}


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0x7f.1",
        "2130706433",
        "127.1",
        "::1",
        "::ffff:127.0.0.1",
        "[::1]",
        "allowed.example.com@127.0.0.1",
        "allowed.example.com\x00.evil.org",
        "allowed.example.com/..",
        "allowed.example.com\r\nx",
        "%s%n",
        "$(reboot).example.com",
        "allowed\u3002example.com.evil.org",
        "allowed.example.com",
    ],
)
async def test_no_spelling_of_a_host_reaches_the_loopback(host: str, echo: int) -> None:
    async def act(liar: Liar) -> None:
        await liar.send(*opened(2, kind="egress", host=host, port=echo))
        await liar.receive(frames.RESET)

    written = await played(act, "allowed.example.com:*", "10.0.0.0/8")
    assert len(written.refusals()) == 1
    assert not [one for one in written.commands if isinstance(one, fold.ConnectEgress)]
    assert "\n" not in str(written.commands[0].host)


async def test_a_name_is_one_place_in_the_log_however_it_is_spelled() -> None:
    spellings = ("allowed.example.com", "ALLOWED.example.com", "allowed.example.com.", "allow\u00aded.example.com")

    async def act(liar: Liar) -> None:
        for turn, host in enumerate(spellings):
            await liar.send(*opened(2 * turn + 2, kind="egress", host=host, port=80))
            await liar.receive(frames.RESET)

    written = await played(act, "allowed.example.com")
    assert written.refusals() == [("allowed.example.com", 80, "private_address", len(spellings))]


async def test_who_asks_for_more_while_it_says_that_it_is_quiet_is_cut_off() -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        channel = (await liar.receive(frames.OPEN)).channel
        for number in range(2, 2 * mux.LATE_MAX + 200, 2):
            await liar.send(frames.OPEN, number, b"{}")
        await liar.send(frames.RESET, channel, b'{"error": "no"}')
        await asyncio.Event().wait()

    async with lied_to(script) as guest:
        with pytest.raises(GuestProtocolError):
            await guest.quiesce()


async def violates(act: Act) -> None:
    with pytest.raises(GuestProtocolError):
        await played(act, "allowed.example.com:*", "waits.example.com")


async def test_a_channel_that_is_opened_twice() -> None:
    async def act(liar: Liar) -> None:
        await liar.send(*opened(2, kind="resolve", name="allowed.example.com"))
        await liar.send(*opened(2, kind="egress", host="allowed.example.com", port=80))
        await asyncio.Event().wait()

    await violates(act)


async def test_a_number_that_was_passed_over() -> None:
    async def act(liar: Liar) -> None:
        await liar.send(*opened(8, kind="resolve", name="allowed.example.com"))
        await liar.send(*opened(6, kind="resolve", name="allowed.example.com"))
        await asyncio.Event().wait()

    await violates(act)


async def test_data_on_a_channel_that_was_never_opened() -> None:
    async def act(liar: Liar) -> None:
        await liar.send(frames.DATA, 4, b"x")
        await asyncio.Event().wait()

    await violates(act)


async def test_more_than_there_is_credit_for() -> None:
    async def act(liar: Liar) -> None:
        await liar.send(*opened(2, kind="egress", host="waits.example.com", port=80))
        for _ in range(frames.WINDOW // frames.MAX_PAYLOAD + 1):
            await liar.send(frames.DATA, 2, b"x" * frames.MAX_PAYLOAD)
        await asyncio.Event().wait()

    await violates(act)


async def test_credit_that_was_not_taken() -> None:
    async def act(liar: Liar) -> None:
        await liar.send(*opened(2, kind="egress", host="waits.example.com", port=80))
        await liar.send(frames.CREDIT, 2, frames.CREDIT_PAYLOAD.pack(2**31))
        await asyncio.Event().wait()

    await violates(act)


async def test_an_end_that_is_said_twice() -> None:
    async def act(liar: Liar) -> None:
        await liar.send(*opened(2, kind="egress", host="waits.example.com", port=80))
        await liar.send(frames.END, 2)
        await liar.send(frames.END, 2)
        await asyncio.Event().wait()

    await violates(act)


async def test_a_frame_that_is_too_large() -> None:
    async def act(liar: Liar) -> None:
        liar.writer.write(frames.HEADER.pack(frames.DATA, 2, frames.MAX_PAYLOAD + 1))
        await asyncio.Event().wait()

    await violates(act)


async def test_a_flood_of_wishes_and_of_connections_is_bounded_and_told_in_few_events() -> None:
    flood = 3000

    async def act(liar: Liar) -> None:
        number = 2
        for turn in range(flood):
            await liar.send(*opened(number, kind="resolve", name=f"n{turn}.evil.example.org"))
            await liar.receive(frames.RESET)
            number += 2
        for _ in range(CONNECTIONS_MAX + 100):
            await liar.send(*opened(number, kind="egress", host="waits.example.com", port=80))
            number += 2
        for _ in range(50):
            await liar.receive(frames.RESET)

    written = await played(act, "waits.example.com")
    refusals = written.refusals()
    assert len(refusals) < 300
    assert sum(count for host, _, reason, count in refusals if reason == "not_allowed") == flood
    assert ("*", None) in {(host, port) for host, port, *_ in refusals}
    assert sum(count for *_, reason, count in refusals if reason == "too_many") >= 50


async def test_silence_costs_a_channel_and_nothing_else() -> None:
    async def act(liar: Liar) -> None:
        await liar.send(*opened(2, kind="egress", host="allowed.example.com", port=80))
        await liar.receive(frames.RESET)
        await asyncio.sleep(0.2)

    written = await played(act, "allowed.example.com")
    assert written.refusals() == [("allowed.example.com", 80, "private_address", 1)]
