"""What is in force is what the log says at that moment, while a sandbox sleeps, wakes, or is connected."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from actors.sandbox import Sandbox
from tests.escape.conftest import Confined

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

KNOCK = """
nohup python3 - > /tmp/knocked 2>&1 <<'P' &
import socket, time
while True:
    try:
        line = socket.create_connection(("site.example.com", 7), 5)
        line.sendall(b"x")
        print("in" if line.recv(1) else "ended", flush=True)
        line.close()
    except OSError as error:
        print(type(error).__name__, flush=True)
    time.sleep(0.01)
P
sleep 0.5; tail -1 /tmp/knocked
"""


POURED = """
nohup python3 - > /tmp/poured 2>&1 <<'P' &
import socket
line = socket.create_connection(("site.example.com", 5001), 5)
print("poured", flush=True) if line.recv(1) else None
try:
    while line.recv(65536): pass
    print("ended", flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
P
sleep 0.5; true
"""


async def knocked(confined: Confined) -> list[str]:
    return (await confined.bash("cat /tmp/knocked")).split()


async def test_what_was_taken_out_while_it_slept_is_out_when_it_wakes(confined: Confined) -> None:
    await confined.allow("site.example.com:7")
    assert await confined.bash(KNOCK) == "in"
    await confined.sandbox.suspend("requested")
    await confined.allow()
    # Everything in it goes on where it was, the program that knocks among it, before anybody could tell it a policy.
    await confined.sandbox.start()
    async with asyncio.timeout(20):
        while (said := await knocked(confined))[-1] == "in":  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.02)
    since = said[len(said) - said[::-1].index("in") :]
    assert since
    assert set(since) <= {"ConnectionResetError", "gaierror"}
    connected = len(confined.events("egress.connected"))
    await asyncio.sleep(0.3)
    assert len(confined.events("egress.connected")) == connected
    await confined.refused("site.example.com", None, protocol="dns", reason="not_allowed")


async def test_a_policy_that_is_lifted_while_it_wakes(confined: Confined) -> None:
    """In whatever order they happen: nothing connects after the list is empty in the log."""
    for turn in range(4):
        await confined.allow("site.example.com:7")
        async with asyncio.timeout(10):
            while (await knocked(confined))[-1] != "in":  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.02)
        await confined.sandbox.suspend("requested")
        waking = asyncio.create_task(confined.sandbox.start())
        await asyncio.sleep(turn * 0.03)
        await confined.allow()
        await waking
        await asyncio.sleep(0.2)  # one that was judged before may still be written down, and carries nothing
        version = confined.sandbox._entity.version
        await asyncio.sleep(0.3)
        late = list(confined.log.read(confined.sandbox.state.stream, after_version=version))
        assert [event.type for event in late if event.type == "egress.connected"] == []


async def test_a_connection_that_is_not_allowed_any_more_is_ended(confined: Confined) -> None:
    await confined.bash("pkill -f 'python3 -'; true")
    await confined.allow("site.example.com:5001")
    await confined.bash(POURED)
    assert await confined.bash("cat /tmp/poured") == "poured"
    await confined.allow("site.example.com:7")
    async with asyncio.timeout(10):
        while await confined.bash("tail -1 /tmp/poured") != "ConnectionResetError":  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.05)


async def test_a_network_that_is_taken_out_ends_connections_that_needed_it(confined: Confined) -> None:
    network = f"{confined.world.private}/32:5001"
    await confined.allow("private.example.com:5001", network)
    await confined.bash("pkill -f 'python3 -'; true")
    await confined.bash(POURED.replace("site.example.com", "private.example.com"))
    assert await confined.bash("cat /tmp/poured") == "poured"
    await confined.allow("private.example.com:5001")
    async with asyncio.timeout(10):
        while await confined.bash("tail -1 /tmp/poured") != "ConnectionResetError":  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.05)


async def test_a_fork_has_what_its_parent_had_and_a_stranger_nothing(confined: Confined) -> None:
    await confined.allow("site.example.com:7")
    (child_id,) = await confined.sandbox.fork(1)
    child = Sandbox(child_id, confined.sandbox.state.session_id, confined.sandbox._context)
    await child.load()
    assert child.state.egress == ("site.example.com:7",)
    await confined.allow()
    await child.start()
    inside = Confined(child, confined.log, confined.world)
    said = await inside.python('attempt("fork", tcp, "site.example.com", 7, b"echo")')
    assert "GOT" in said
    await child.kill("requested")
    stranger = Sandbox(f"sbx-{secrets.token_hex(8)}", "sesn_other", confined.sandbox._context)
    await stranger.load()
    assert stranger.state.egress == ()
    await stranger.kill("requested")
