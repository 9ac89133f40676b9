"""A guest agent that lies: each thing it may not do ends the connection with a clear error, and costs little."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.guest import frames
from actors.machines import guest as guest_module
from actors.machines import mux as mux_module
from actors.machines.guest import GuestConnection, connect
from actors.machines.protocol import GuestProtocolError, MachineGone
from actors.machines.visiting import Program
from events.types import Limits

Script = Callable[["Liar"], Awaitable[None]]
GOOD: dict[str, Any] = {"content": [{"type": "text", "text": "x"}], "is_error": False, "output_bytes": 1}


class Liar:
    """A scripted agent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def receive(self, kind: int) -> frames.Frame:
        """The next frame of a kind."""
        while True:
            found, channel, length = frames.header(await self.reader.readexactly(frames.HEADER_BYTES))
            payload = await self.reader.readexactly(length)
            if found == kind:
                return frames.Frame((found, channel, payload))

    async def send(self, kind: int, channel: int = 1, payload: bytes = b"") -> None:
        self.writer.write(frames.encode(kind, channel, payload))
        await self.writer.drain()

    async def greet(self, **changes: object) -> None:
        hello = json.loads((await self.receive(frames.HELLO)).payload)
        answer = {"protocol": 1, "nonce": hello["nonce"], "agent_version": "0", "python": "3", "facts": {}} | changes
        await self.send(frames.HELLO, 0, json.dumps(answer).encode())


@contextlib.asynccontextmanager
async def lied_to(script: Script, **options: Any) -> AsyncIterator[GuestConnection]:
    ours, theirs = socket.socketpair()
    liar = Liar(*await asyncio.open_connection(sock=theirs))

    async def play() -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await script(liar)

    task = asyncio.create_task(play())
    try:
        guest = await connect(*await asyncio.open_connection(sock=ours), limits=Limits(), **options)
        try:
            yield guest
        finally:
            await guest.close()
    finally:
        task.cancel()
        await asyncio.wait([task])
        liar.writer.close()


async def run(guest: GuestConnection, **options: Any) -> Any:
    return await guest.run_tool("id", "bash", {"command": "x"}, timeout=5, **options)


def answering(*sent: tuple[int, int, bytes]) -> Script:
    """Greets well, waits for a channel, sends these."""

    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        for frame in sent:
            await liar.send(*frame)
        await liar.reader.read()

    return script


def result(value: object) -> tuple[tuple[int, int, bytes], tuple[int, int, bytes]]:
    return (frames.DATA, 1, b"r" + json.dumps(value).encode()), (frames.END, 1, b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": 2},
        {"nonce": 5},
        {"agent_version": "x" * 300},
        {"facts": {"a": 1}},
        {"facts": {str(n): "" for n in range(99)}},
        {"python": None},
    ],
)
async def test_a_malformed_greeting(changes: dict[str, Any]) -> None:
    async def script(liar: Liar) -> None:
        hello = json.loads((await liar.receive(frames.HELLO)).payload)
        answer = {
            "protocol": 1,
            "nonce": hello["nonce"],
            "agent_version": "0",
            "python": "3",
            "x": hello["nonce"],
        } | changes
        await liar.send(frames.HELLO, 0, json.dumps(answer).encode())
        await liar.reader.read()

    heard: list[GuestProtocolError] = []
    with pytest.raises(GuestProtocolError, match="greeting"):
        async with lied_to(script, on_violation=heard.append):
            pass
    assert len(heard) == 1


async def test_a_silent_agent() -> None:
    with pytest.raises(MachineGone, match="did not answer within"):
        async with lied_to(lambda liar: liar.reader.read(), timeout=0.05):  # type: ignore[arg-type, return-value]
            pass


async def test_an_agent_that_ends_at_once() -> None:
    async def script(liar: Liar) -> None:
        liar.writer.close()

    with pytest.raises(MachineGone, match="ended"):
        async with lied_to(script):
            pass


async def test_an_agent_that_chatters_for_ever_before_it_answers() -> None:
    async def script(liar: Liar) -> None:
        while True:
            await liar.send(frames.DATA, 1, bytes(1000))

    with pytest.raises(MachineGone, match="did not answer"):
        async with lied_to(script, timeout=0.1):
            pass


async def test_what_was_meant_for_the_host_before_is_passed_over() -> None:
    async def script(liar: Liar) -> None:
        await liar.send(frames.DATA, 77, b"old")
        await liar.send(frames.HELLO, 0, b'{"nonce": "of another"}')
        await liar.greet()
        await liar.receive(frames.OPEN)
        for frame in result(GOOD):
            await liar.send(*frame)

    async with lied_to(script) as guest:
        assert (await run(guest)).content == [{"type": "text", "text": "x"}]


VIOLATIONS = {
    "another greeting": (frames.HELLO, 0, b"{}"),
    "a ping of its own": (frames.PING, 0, b""),
    "a pong nobody asked for": (frames.PONG, 0, b"12345678"),
    "data on the control channel": (frames.DATA, 0, b"x"),
    "a channel that never was": (frames.DATA, 9, b"x"),
    "an even channel that never was": (frames.DATA, 2, b"x"),
    "opening our channel": (frames.OPEN, 3, b"{}"),
    "opening channel 0": (frames.OPEN, 0, b"{}"),
    "empty data": (frames.DATA, 1, b""),
    "data of an unknown sort": (frames.DATA, 1, b"?x"),
    "credit not taken": (frames.CREDIT, 1, (2**31).to_bytes(4, "big")),
    "no credit": (frames.CREDIT, 1, bytes(4)),
    "short credit": (frames.CREDIT, 1, b"\0"),
    "an oversized reason": (frames.RESET, 1, bytes(20_000)),
    "a reason that is no JSON": (frames.RESET, 1, b"\xff"),
    "a reason of the wrong shape": (frames.RESET, 1, b'{"error": 5}'),
    "an errno that is none": (frames.RESET, 1, b'{"error": "", "errno": 999999}'),
}


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_frames_that_it_may_not_send(name: str) -> None:
    heard: list[GuestProtocolError] = []
    async with lied_to(answering(VIOLATIONS[name]), on_violation=heard.append) as guest:
        with pytest.raises(GuestProtocolError):
            await run(guest)
        with pytest.raises(GuestProtocolError):
            await guest.ping()
    assert len(heard) == 1


async def test_an_oversized_frame() -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        liar.writer.write(frames.HEADER.pack(frames.DATA, 1, 2**31))
        await liar.reader.read()

    async with lied_to(script) as guest:
        with pytest.raises(GuestProtocolError, match="no frame"):
            await run(guest)


async def test_more_than_it_has_credit_for() -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        for _ in range(frames.WINDOW // frames.MAX_PAYLOAD + 1):
            await liar.send(frames.DATA, 1, bytes(frames.MAX_PAYLOAD))
        await liar.reader.read()

    async with lied_to(script) as guest:
        # A channel that nobody reads from: its window is all the credit there is.
        guest._mux.open("get")
        with pytest.raises(GuestProtocolError, match="no credit"):
            await guest.ping()


BAD_RESULTS: dict[str, object] = {
    "nothing": {},
    "no content": GOOD | {"content": []},
    "unknown field": GOOD | {"more": 1},
    "a truth that is a number": GOOD | {"is_error": 0},
    "negative bytes": GOOD | {"output_bytes": -1},
    "a negative exit code": GOOD | {"exit_code": -1},
    "an exit code that is text": GOOD | {"exit_code": "0"},
    "an unknown block": GOOD | {"content": [{"type": "search_result"}]},
    "an empty text": GOOD | {"content": [{"type": "text", "text": ""}]},
    "a text too long": GOOD | {"content": [{"type": "text", "text": "x" * (4 * 1024 * 1024 + 1)}]},
    "too many blocks": GOOD | {"content": [{"type": "text", "text": "x"}] * 17},
    "an image by address": GOOD
    | {"content": [{"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}]},
    "no base64": GOOD
    | {"content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "§"}}]},
    "another medium": GOOD
    | {"content": [{"type": "image", "source": {"type": "base64", "media_type": "text/html", "data": ""}}]},
    "a list": [GOOD],
    "a lone surrogate": GOOD | {"content": [{"type": "text", "text": "\ud800"}]},
}


async def send_in_frames(liar: Liar, tag: bytes, data: bytes) -> None:
    """Send as a well-behaved agent would, with the credit that it has."""
    credit = frames.WINDOW
    for begin in range(0, len(data), 60_000):
        payload = tag + data[begin : begin + 60_000]
        while credit < len(payload):
            credit += int.from_bytes((await liar.receive(frames.CREDIT)).payload, "big")
        credit -= len(payload)
        await liar.send(frames.DATA, 1, payload)


@pytest.mark.parametrize("name", BAD_RESULTS)
async def test_results_of_the_wrong_shape(name: str) -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        await send_in_frames(liar, b"r", json.dumps(BAD_RESULTS[name]).encode())
        await liar.send(frames.END, 1)
        await liar.reader.read()

    async with lied_to(script) as guest:
        with pytest.raises(GuestProtocolError, match="a result of the guest agent is malformed"):
            await run(guest)


async def test_a_result_without_end() -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        await send_in_frames(liar, b"r", bytes(40_000_000))

    async with lied_to(script) as guest:
        with pytest.raises(GuestProtocolError, match="above"):
            await run(guest)


async def test_output_without_end_is_cut() -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        await send_in_frames(liar, b"o", bytes(5_000_000))
        for frame in result(GOOD):
            await liar.send(*frame)

    heard: list[bytes] = []
    async with lied_to(script) as guest:
        await run(guest, on_output=heard.append)
    assert sum(map(len, heard)) == guest_module.LIVE_MAX


async def test_a_file_larger_than_asked_for() -> None:
    async with lied_to(answering((frames.DATA, 1, b"12345"))) as guest:
        with pytest.raises(GuestProtocolError, match="more than"):
            await guest.read_file("/x", max_bytes=4)


async def test_a_refusal_shows_none_of_the_guest_s_words_as_an_os_error() -> None:
    async with lied_to(answering((frames.RESET, 1, b'{"error": "%s%n /etc/shadow", "errno": 13}'))) as guest:
        with pytest.raises(PermissionError, match="Permission denied") as caught:
            await guest.read_file("/x", max_bytes=4)
    assert caught.value.filename == "/x"
    assert "shadow" not in str(caught.value)


UNREFUSABLE: dict[str, Callable[[GuestConnection], Awaitable[object]]] = {
    "a tool call": run,
    "an interrupt": lambda guest: guest.interrupt("id"),
    "a wake": lambda guest: guest.wake(),
    "statistics": lambda guest: guest.stats(),
}


@pytest.mark.parametrize("request_", UNREFUSABLE)
async def test_what_no_agent_refuses_with_an_errno_raises_no_error_that_nobody_handles(request_: str) -> None:
    async with lied_to(answering((frames.RESET, 1, b'{"error": "no such file", "errno": 2}'))) as guest:
        with pytest.raises(GuestProtocolError, match="refused"):
            await UNREFUSABLE[request_](guest)


async def test_statistics_that_nest_deeper_than_the_stack() -> None:
    async with lied_to(answering((frames.DATA, 1, b"[" * 16_000), (frames.END, 1, b""))) as guest:
        with pytest.raises(GuestProtocolError, match="no JSON"):
            await guest.stats()


@pytest.mark.parametrize(
    ("refusal", "place"),
    [(b'{"error": "", "Now do as I say:": 1}', "'…': extra_forbidden"), (b'{"error": 1}', "'error': string_type")],
)
async def test_an_error_has_no_key_that_the_guest_made_up(refusal: bytes, place: str) -> None:
    async with lied_to(answering((frames.RESET, 1, refusal))) as guest:
        with pytest.raises(GuestProtocolError) as caught:
            await run(guest)
    assert str(caught.value) == f"a refusal of the guest agent is malformed at {place}"


async def test_a_refusal_without_errno_leaves_the_connection() -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        await liar.send(frames.RESET, 1, b'{"error": "the result of call id is no longer kept", "errno": null}')
        await liar.receive(frames.OPEN)
        for kind, _, payload in result(GOOD):
            await liar.send(kind, 3, payload)
        await liar.reader.read()

    async with lied_to(script) as guest:
        with pytest.raises(GuestProtocolError, match="no longer kept"):
            await run(guest)
        assert not (await run(guest)).is_error


async def test_the_end_of_the_stream_reaches_every_waiter() -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        for _ in range(3):
            await liar.receive(frames.OPEN)
        liar.writer.close()

    async with lied_to(script) as guest:
        waiting = [run(guest), guest.read_file("/x", max_bytes=1), guest.remove_tree("/x"), guest.ping()]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [MachineGone] * 4


async def test_a_guest_that_opens_channels_is_refused_where_nobody_serves_them() -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        await liar.send(frames.OPEN, 2, b'{"kind": "egress"}')
        refused = await liar.receive(frames.RESET)
        assert refused.channel == 2
        # What was on its way to the refused channel is no violation.
        await liar.send(frames.DATA, 2, b"x")
        for number in range(4, 5000, 2):
            await liar.send(frames.OPEN, number, b"{}")
            assert (await liar.receive(frames.RESET)).channel == number
        liar.writer.close()

    async with lied_to(script) as guest:
        with pytest.raises(MachineGone):
            await run(guest)


@pytest.mark.parametrize("number", [0, 3, 2])
async def test_a_guest_that_opens_a_channel_that_is_not_its_to_open_is_cut_off(number: int) -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        await liar.send(frames.OPEN, 2, b"{}")
        await liar.send(frames.OPEN, number, b"{}")
        await asyncio.Event().wait()

    async with lied_to(script) as guest:
        with pytest.raises(GuestProtocolError, match=r"not its to open|nobody asked for"):
            await run(guest)


async def test_a_guest_that_asks_at_length_is_cut_off() -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        await liar.send(frames.OPEN, 2, b"x" * (mux_module.REQUEST_MAX + 1))
        await asyncio.Event().wait()

    async with lied_to(script) as guest:
        with pytest.raises(GuestProtocolError, match="asked for something"):
            await run(guest)


async def test_a_guest_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux_module, "UNREAD_MAX", 65_536)

    async def script(liar: Liar) -> None:
        await liar.greet()
        await asyncio.Event().wait()

    async with lied_to(script) as guest:
        waiting = [asyncio.ensure_future(guest.ping()) for _ in range(40_000)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert any(isinstance(outcome, GuestProtocolError) and "unread" in str(outcome) for outcome in outcomes)


async def test_a_call_that_never_ends_is_interrupted_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_module, "SILENCE_S", 0.05)
    asked: list[dict[str, Any]] = []

    async def script(liar: Liar) -> None:
        await liar.greet()
        while True:
            asked.append(json.loads((await liar.receive(frames.OPEN)).payload))

    async with lied_to(script) as guest:
        with pytest.raises(GuestProtocolError, match="kept silent"):
            await guest.run_tool("id", "bash", {}, timeout=0.01)
    assert [said["kind"] for said in asked] == ["tool", "interrupt"]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_never_hangs_nor_raises_anything_else(garbage: bytes) -> None:
    async def script(liar: Liar) -> None:
        await liar.greet()
        await liar.receive(frames.OPEN)
        liar.writer.write(garbage)
        liar.writer.close()

    async def attempt() -> None:
        async with lied_to(script) as guest:
            with pytest.raises((GuestProtocolError, MachineGone)):
                await run(guest)

    asyncio.run(attempt())


PROGRAM = Program("prc-1", ("x",))


async def use_program(guest: GuestConnection) -> None:
    async with guest.process(PROGRAM) as process:
        while await process.read():
            pass


VISIT_LIES = {
    "output before it began": ((frames.DATA, 1, b"ox"),),
    "an empty piece": ((frames.DATA, 1, b"bb"), (frames.DATA, 1, b"o")),
    "an unknown sort": ((frames.DATA, 1, b"bb"), (frames.DATA, 1, b"?x")),
    "output after its end": ((frames.DATA, 1, b"bb"), (frames.DATA, 1, b"x{"), (frames.DATA, 1, b"ox")),
    "no exit code": ((frames.DATA, 1, b"bb"), (frames.END, 1, b"")),
    "an exit code that is none": (
        (frames.DATA, 1, b"bb"),
        (frames.DATA, 1, b'x{"exit_code": 256}'),
        (frames.END, 1, b""),
    ),
    "an end without end": ((frames.DATA, 1, b"bb"), (frames.DATA, 1, b"x" + bytes(2000))),
}


@pytest.mark.parametrize("name", VISIT_LIES)
async def test_lies_about_a_program(name: str) -> None:
    heard: list[GuestProtocolError] = []
    async with lied_to(answering(*VISIT_LIES[name]), on_violation=heard.append) as guest:
        with pytest.raises(GuestProtocolError):
            await use_program(guest)
    assert len(heard) == 1


async def test_a_connection_that_was_not_made() -> None:
    async with lied_to(answering((frames.DATA, 1, b"hello"))) as guest:
        with pytest.raises(GuestProtocolError, match="did not say that it connected"):
            async with guest.connect(80):
                pass


async def test_a_connection_that_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.machines.guest.REQUEST_S", 0.1)
    async with lied_to(answering()) as guest:
        with pytest.raises(TimeoutError, match="timed out"):
            async with guest.connect(80):
                pass


async def test_an_agent_that_knows_no_programs_is_no_liar() -> None:
    refusal = b'{"error": "this agent (version 1) knows no channel of kind \'process\'", "errno": null}'
    heard: list[GuestProtocolError] = []
    async with lied_to(answering((frames.RESET, 1, refusal)), on_violation=heard.append) as guest:
        with pytest.raises(GuestProtocolError, match="knows no channel"):
            await use_program(guest)
    assert not heard
