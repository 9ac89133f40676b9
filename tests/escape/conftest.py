"""A real sandbox, as a service has it, beside a small internet: what runs in it is root, and wants out."""

from __future__ import annotations

import asyncio
import secrets
import textwrap
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors.conversation import ToolCall
from actors.egress import recorder
from actors.egress.credentials import Credentials
from actors.egress.gateway import Gateway
from actors.egress.names import Names
from actors.journal import LocalJournal
from actors.life import SandboxContext
from actors.machines.gvisor import GvisorDriver
from actors.machines.machine import GvisorMachine
from actors.pace import Pace
from actors.sandbox import Sandbox
from actors.visits.door import Door
from events.egress_policy import Policy
from events.sqlite_log import SqliteLog
from events.types import Limits
from tests.conformance import drivers
from tests.internet import Internet

HEAD = """
import os, socket, ssl, struct, sys, time
def attempt(what, function, *arguments):
    '''Say what came of it; whatever was received is an escape.'''
    try:
        got = function(*arguments)
        print(what, "GOT", got) if got else print(what, "nothing")
    except OSError as error:
        print(what, type(error).__name__)
def tcp(host, port, say=b"GET / HTTP/1.0\\r\\n\\r\\n"):
    line = socket.create_connection((host, port), 5)
    line.sendall(say)
    return line.recv(1000)
def tls(host, port, name):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection((host, port), 5), server_hostname=name) as line:
        return line.version()
"""


@dataclass
class Confined:
    """One sandbox, its machine running, its log, and the internet beside it."""

    sandbox: Sandbox
    log: SqliteLog
    world: Internet

    @property
    def machine(self) -> GvisorMachine:
        """The machine of the moment."""
        machine = self.sandbox._life.machine
        assert isinstance(machine, GvisorMachine)
        return machine

    async def bash(self, command: str) -> str:
        """Run it as a tool call; what it prints."""
        call = ToolCall(f"toolu_{secrets.token_hex(8)}", "bash", {"command": command})
        outcome = await self.sandbox.run_call(call)
        return str(outcome.content[0]["text"]).strip()

    async def python(self, program: str) -> str:
        """Run a program of Python, with the attempts of `HEAD` at hand."""
        await self.machine.guest.write_file("/tmp/attempt.py", (HEAD + textwrap.dedent(program)).encode())
        return await self.bash("python3 /tmp/attempt.py")

    async def allow(self, *entries: str) -> None:
        """What it may reach from now on."""
        now = self.sandbox.state.egress
        wanted = Policy.parse(entries).texts
        await self.sandbox.change_egress(wanted, tuple(one for one in now if one not in wanted), "test")

    def events(self, kind: str) -> list[Any]:
        """What the log says of a kind."""
        return [event.data for event in self.log.read(self.sandbox.state.stream) if event.type == kind]

    async def refused(self, host: str, port: int | None = None, **expected: object) -> Any:
        """Wait until the log says that this was refused, and in this way."""
        async with asyncio.timeout(10):
            while True:
                for data in self.events("egress.refused"):
                    if (data.host, data.port) == (host, port) and expected.items() <= vars(data).items():
                        return data
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def world(internet: Internet) -> Internet:
    return internet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver() -> AsyncIterator[GvisorDriver]:
    made = drivers.make(drivers.NAMES[0] if drivers.node_volumes().kind == "btrfs" else drivers.NAMES[-1])
    await asyncio.to_thread(made.volumes.prepare)
    yield made
    await made.close()


@pytest.fixture(scope="module")
def pins(world: Internet) -> Mapping[str, list[str]]:
    """Names, and the addresses that they have; overridden where a test needs other."""
    return world.pins


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def confined(
    driver: GvisorDriver,
    world: Internet,
    pins: Mapping[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Confined]:
    home: Path = tmp_path_factory.mktemp("home")
    log = SqliteLog(home / "log.db")
    names = Names(pins)
    context = SandboxContext(
        driver=driver,
        journal=LocalJournal(log),
        home=home,
        node="test",
        epoch=log.next_epoch("host"),
        template="base",
        limits=Limits(),
        start_slots=asyncio.Semaphore(2),
        pace=Pace(2),
        metadata={},
        door=Door(home / "door.sock"),
        freeze="never",
        gateway=Gateway(names=names, credentials=Credentials(tls=world.tls())),
    )
    sandbox = Sandbox(f"sbx-{secrets.token_hex(8)}", "sesn_escape", context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "WINDOW_S", 0.1)
        await sandbox.load()
        await sandbox.start()
        yield Confined(sandbox, log, world)
        await sandbox.kill("requested")
        await sandbox.release()
    names.close()
    log.close()
