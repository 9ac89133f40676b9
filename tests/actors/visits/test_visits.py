"""Visits to sandboxes that serve sessions: what they hold up, who ends them, what is recorded. Without Ray."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from actors.guest import frames
from actors.machines import cgroups
from actors.operations import Operations
from actors.visits.client import Wire, find, visit
from actors.visits.forwarding import forwarded
from actors.visits.programs import execute
from actors.visits.wire import FOLDER, HOST_DOOR, Exec, VisitRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.actors.conftest import Service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


async def served(service: Service) -> tuple[str, str]:
    """A session whose first turn is over; its id and its sandbox's stream."""
    session_id = await service.session("two-turns")
    await service.recorded(f"session-{session_id}", "session.released")
    return session_id, service.sandbox_of(session_id)


async def run(service: Service, target: str, *argv: str) -> bytes:
    return (await asyncio.to_thread(execute, service.settings, target, argv)).stdout


@asynccontextmanager
async def staying(service: Service, target: str, *argv: str) -> AsyncIterator[Wire]:
    """A visitor whose program runs until it is ended."""
    place = await asyncio.to_thread(find, service.settings, target)
    with visit(place) as wire:
        await asyncio.to_thread(wire.ask, Exec(sandbox_id=place.sandbox_id, argv=argv or ["sleep", "600"]))
        yield wire


async def sent_away(wire: Wire) -> str:
    with pytest.raises(VisitRefused) as caught:
        await asyncio.to_thread(wire.receive)
    return str(caught.value)


async def ended(service: Service, sandbox: str, *, count: int = 1) -> Any:
    return (await service.recorded(sandbox, "sandbox.process_ended", count=count))[-1].data


async def test_one_that_has_a_visitor_is_not_idle(service: Service) -> None:
    service.settings = service.settings.model_copy(update={"suspend_after": 0.5})
    async with service.up():
        session_id, sandbox = await served(service)
        async with staying(service, session_id):
            (host,) = service.hosts
            await host.suspender.once()
            await asyncio.sleep(0.6)
            await host.suspender.once()
            assert not await host.suspender.lay_down(host.kept[sandbox.removeprefix("sandbox-")].handle, "pressure")
            assert (await Operations(host).sandboxes())[0]["visits"] == 1
            at = service.kinds(sandbox).index("sandbox.process_started")
            assert service.kinds(sandbox)[at:] == ["sandbox.process_started"]
        # It left: what it ran is ended, and the sandbox rests again.
        await service.recorded(sandbox, "sandbox.suspended")
        kinds = service.kinds(sandbox)[at:]
        assert kinds[:3] == ["sandbox.process_started", "sandbox.process_ended", "sandbox.frozen"]
        assert (await ended(service, sandbox)).exit_code is None
        # A suspended one is resumed for a visitor.
        assert await run(service, session_id, "pgrep", "-c", "sleep") == b"0\n"


async def test_a_pause_waits_for_visitors_and_force_ends_them(service: Service) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        operations = Operations(service.hosts[0])
        for suspend, phase in ((False, "frozen"), (True, "suspended")):
            async with staying(service, session_id) as wire:
                waiting = asyncio.create_task(operations.pause(session_id, suspend, False))
                await asyncio.sleep(0.3)
                assert not waiting.done()
                assert (await operations.sandboxes())[0]["phase"] == "running"
                told = await operations.pause(session_id, suspend, True)
                assert told["phase"] == phase
                assert "the visit was ended" in await sent_away(wire)
            assert (await waiting)["phase"] == phase
        kinds = service.kinds(sandbox)
        assert kinds.count("sandbox.process_started") == kinds.count("sandbox.process_ended") == 2


async def test_calls_forks_and_visitors_live_side_by_side(service: Service) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        operations = Operations(service.hosts[0])
        async with staying(service, session_id):
            (child,) = (await operations.fork(session_id, 1))["children"]
            assert await run(service, child["sandbox_id"], "sh", "-c", "sleep 1.2; pgrep -c sleep") == b"0\n"
            await service.given_back()
            await service.app.beta.sessions.events.send(
                session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Add one."}]}]
            )
            await service.recorded(f"session-{session_id}", "session.released", count=2)
            assert await run(service, session_id, "pgrep", "-c", "sleep") == b"1\n"
            assert service.kinds(sandbox)[-1] == "sandbox.process_ended"
        await ended(service, sandbox, count=2)
        await service.recorded(sandbox, "sandbox.frozen", count=2)


async def test_a_kill_and_a_stop_send_visitors_away(service: Service) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        other_id, other = await served(service)
        async with staying(service, session_id) as wire, staying(service, other_id) as stays:
            assert (await Operations(service.hosts[0]).kill(session_id))["phase"] == "killed"
            assert "the visit was ended" in await sent_away(wire)
            await service.hosts[0].actors.door.close()
            assert "the visit was ended" in await sent_away(stays)
    for stream, last in ((sandbox, "sandbox.killed"), (other, "sandbox.suspended")):
        kinds = service.kinds(stream)
        assert kinds[-1] == last
        assert kinds.index("sandbox.process_ended") < kinds.index(last)
    assert not (service.settings.home / FOLDER / HOST_DOOR).exists()


async def test_a_forward_says_that_nothing_listens(service: Service) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        async with forwarded(service.settings, session_id, 8000, local_port=0) as forwarding:
            reader, writer = await asyncio.open_connection("127.0.0.1", forwarding.local_port)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            for _ in range(100):
                if forwarding.trouble:
                    break
                await asyncio.sleep(0.02)
            assert "port 8000" in forwarding.trouble
            assert "Connection refused" in forwarding.trouble
            with pytest.raises(VisitRefused, match="can't be listened at"):
                async with forwarded(service.settings, session_id, 8000, local_port=forwarding.local_port):
                    pass
            with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(VisitRefused, match="already in use"):
                async with forwarded(service.settings, session_id, 80, local_port=taken.getsockname()[1]):
                    pass
            # Ended from the other side: whoever waits is told.
            await Operations(service.hosts[0]).pause(session_id, True, True)
            with pytest.raises(VisitRefused, match="the visit was ended"):
                await forwarding.ended
        closed = await service.recorded(sandbox, "sandbox.forward_closed", count=3)
        assert len(closed) == 3


async def test_a_connection_that_breaks_is_no_end_of_its_data(service: Service) -> None:
    serve = """if True:
        import socket
        server = socket.create_server(("", 8001))
        print("listens", flush=True)
        connection, _ = server.accept()
        connection.send(connection.recv(9))
        connection.recv(9)
        """
    async with service.up():
        session_id, _ = await served(service)
        async with (
            staying(service, session_id, "python3", "-c", serve) as wire,
            forwarded(service.settings, session_id, 8001, local_port=0) as forwarding,
        ):
            assert (await asyncio.to_thread(wire.receive)).payload == b"listens\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", forwarding.local_port)
            writer.write(b"half")
            assert await reader.readexactly(4) == b"half"
            await Operations(service.hosts[0]).kill(session_id)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            with pytest.raises(VisitRefused):
                await forwarding.ended


async def test_a_visitor_who_speaks_nonsense_is_refused(service: Service) -> None:
    async with service.up():
        session_id, _ = await served(service)
        place = await asyncio.to_thread(find, service.settings, session_id)
        good = {"kind": "exec", "sandbox_id": place.sandbox_id, "argv": ["true"]}
        for said, expected in (
            (b"{}", "not understood"),
            (json.dumps(good | {"argv": []}).encode(), "argv"),
            (json.dumps(good | {"argv": ["a\0b"]}).encode(), "NUL"),
            (json.dumps(good | {"env": {"A=B": "x"}}).encode(), "env"),
            (json.dumps(good | {"terminal": [0, 70000]}).encode(), "terminal"),
            (json.dumps(good | {"more": 1}).encode(), "more"),
            (json.dumps(good | {"sandbox_id": "sbx-none"}).encode(), "let go of"),
            (json.dumps({"kind": "connect", "sandbox_id": place.sandbox_id, "forward_id": "x"}).encode(), "is closed"),
        ):
            with visit(place) as wire:
                wire.send(frames.OPEN, 0, said)
                assert expected in await sent_away(wire), said
        with visit(place) as wire:
            wire.send_raw(b"\xff" * 100)
            await sent_away(wire)
        with pytest.raises(VisitRefused, match="longer than"):
            await run(service, session_id, "echo", "x" * 70_000)
        with pytest.raises(VisitRefused, match="UTF-8"):
            await run(service, session_id, "\udcff")
        async with staying(service, session_id) as wire:
            wire.send(frames.OPEN, 0, b'{"signal": 15}')
            assert (await asyncio.to_thread(wire.receive)).kind == frames.END
        async with staying(service, session_id) as wire:
            wire.send(frames.DATA, 7, b"x")
            await sent_away(wire)
        assert await run(service, session_id, "pgrep", "-c", "sleep") == b"0\n"


async def test_one_that_is_cut_off_as_it_begins_is_ended(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        journal = service.hosts[0].journal
        append, begun = journal.append, asyncio.Event()

        async def slow(*writes: Any) -> Any:
            done = await append(*writes)
            if any(one.data.type == "sandbox.process_started" for write in writes for one in write.events):
                begun.set()
                await asyncio.sleep(0.5)
            return done

        place = await asyncio.to_thread(find, service.settings, session_id)
        with visit(place) as wire, monkeypatch.context() as patch:
            # Durable, and nobody knows it yet.
            patch.setattr(journal, "append", slow)
            asking = asyncio.create_task(
                asyncio.to_thread(wire.ask, Exec(sandbox_id=place.sandbox_id, argv=["sleep", "600"]))
            )
            await begun.wait()
            assert (await Operations(service.hosts[0]).pause(session_id, True, True))["phase"] == "suspended"
            with pytest.raises(VisitRefused, match="the visit was ended"):
                await asking
        kinds = service.kinds(sandbox)
        assert kinds.count("sandbox.process_started") == kinds.count("sandbox.process_ended") == 1
        assert await run(service, session_id, "pgrep", "-c", "sleep") == b"0\n"


async def test_who_is_sent_away_while_it_is_frozen_again_leaves_no_machine_frozen(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service.up():
        session_id, sandbox = await served(service)
        freeze, begun = cgroups.freeze, threading.Event()

        def slow(name: str) -> None:
            begun.set()
            time.sleep(0.5)
            freeze(name)

        with monkeypatch.context() as patch:
            patch.setattr(cgroups, "freeze", slow)
            assert await run(service, session_id, "echo", "here") == b"here\n"
            await asyncio.to_thread(begun.wait)
            # Its visitor has what it wanted; its task is cut off all the same.
            await service.hosts[0].actors.door.close()
    assert service.kinds(sandbox)[-3:] == ["sandbox.frozen", "sandbox.snapshotted", "sandbox.suspended"]
