"""The way out of a machine, up to the host: names, connections, and what becomes of them. No policy yet."""

from __future__ import annotations

import asyncio
import json
import secrets
import textwrap
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio

from actors.guest.egress import CONNECTIONS_MAX
from actors.machines.gvisor import GvisorDriver
from actors.machines.machine import GvisorMachine
from actors.machines.mux import ChannelLeft, ChannelRefused
from actors.machines.protocol import Asked, Machine, MachineError
from tests.conformance.conftest import NewSandbox

pytestmark = [pytest.mark.conformance, pytest.mark.asyncio(loop_scope="module")]

MIB = 1024**2


class Outside:
    """Everything below example.com can be reached, and speaks as its first label says; nothing else can."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.open = 0
        self.most = 0
        self.heard: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def requested(self, channel: Asked, request: bytes) -> None:
        asked = json.loads(request)
        self.asked.append(asked)
        name = asked.get("host", asked.get("name"))
        if not name.endswith(".example.com") or asked["kind"] == "datagram":
            channel.refuse("not allowed")
        elif asked["kind"] == "resolve":
            channel.accept()
        else:
            task = asyncio.create_task(self._serve(channel, name.partition(".")[0]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, channel: Asked, manner: str) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        with suppress(ChannelRefused, ChannelLeft, MachineError):
            await channel.send(b"c")
            await getattr(self, manner)(channel)
        channel.leave()
        self.open -= 1

    @staticmethod
    async def echo(channel: Asked) -> None:
        while data := await channel.receive():
            await channel.send(data)
        await channel.send(b"", last=True)

    async def listener(self, channel: Asked) -> None:
        """Says all that it has to say at once, and goes on hearing."""
        await channel.send(b"that is all", last=True)
        while data := await channel.receive():
            self.heard.append(data)

    @staticmethod
    async def flood(channel: Asked) -> None:
        while True:
            await channel.send(b"x" * 65536)

    @staticmethod
    async def gone(channel: Asked) -> None:
        channel.refuse("gone")


@pytest.fixture(scope="module")
def outside(driver: GvisorDriver) -> Outside:
    """One for each driver."""
    del driver
    return Outside()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connected(driver: GvisorDriver, new_sandbox: NewSandbox, outside: Outside) -> AsyncIterator[GvisorMachine]:
    machine = await driver.start(new_sandbox(), egress=outside)
    assert machine.guest.info.facts["egress"] == "ready"
    yield machine
    await machine.kill()


async def bash(machine: Machine, command: str) -> str:
    result = await machine.guest.run_tool(secrets.token_hex(8), "bash", {"command": command}, timeout=60)
    return str(result.content[0]["text"]).strip()


async def python(machine: Machine, program: str) -> str:
    head = "import socket, threading, time\nconnect = socket.create_connection\n"
    await machine.guest.write_file("/tmp/program.py", (head + textwrap.dedent(program)).encode())
    return await bash(machine, "python3 /tmp/program.py")


async def test_only_names_that_may_be_reached_resolve(connected: GvisorMachine, outside: Outside) -> None:
    outside.asked.clear()
    assert (await bash(connected, "getent ahosts echo.example.com | head -1")).split()[0].startswith("198.18.")
    assert await bash(connected, "getent hosts other.org; echo $?") == "2"
    assert {(asked["kind"], asked["name"]) for asked in outside.asked} == {
        ("resolve", "echo.example.com"),
        ("resolve", "other.org"),
    }
    outside.asked.clear()
    # Of one label, or its own: nobody's business.
    assert await bash(connected, "getent hosts printer; getent ahostsv4 $(hostname) | head -1") == (
        f"127.0.0.1       STREAM {await bash(connected, 'hostname')}"
    )
    assert outside.asked == []


async def test_a_name_keeps_its_address_and_an_address_tells_its_name(connected: GvisorMachine) -> None:
    said = await python(
        connected,
        """
        one, two = socket.gethostbyname("echo.example.com"), socket.gethostbyname("flood.example.com")
        print(one != two, socket.gethostbyname("ECHO.example.com.") == one, socket.gethostbyaddr(one)[0])
        """,
    )
    assert said == "True True echo.example.com"


async def test_a_program_connects_by_name_on_any_port_with_each_end_closed_on_its_own(
    connected: GvisorMachine, outside: Outside
) -> None:
    outside.asked.clear()
    said = await python(
        connected,
        """
        for port in (1, 443, 65535):
            line = connect(("echo.example.com", port))
            line.sendall(b"hello")
            line.shutdown(socket.SHUT_WR)
            print(line.getpeername()[1], line.recv(100), line.recv(100))
        line = connect(("listener.example.com", 25))
        print(line.recv(100), line.recv(100))
        line.sendall(b"still there")
        """,
    )
    assert said.splitlines() == [
        "1 b'hello' b''",
        "443 b'hello' b''",
        "65535 b'hello' b''",
        "b'that is all' b''",
    ]
    ports = [asked["port"] for asked in outside.asked if asked["kind"] == "egress"]
    assert ports == [1, 443, 65535, 25]
    async with asyncio.timeout(10):
        while b"".join(outside.heard) != b"still there":  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.01)


async def test_what_is_refused_is_reset_and_the_host_hears_of_all_that_is_tried(
    connected: GvisorMachine, outside: Outside
) -> None:
    outside.asked.clear()
    said = await python(
        connected,
        """
        for host in ("8.8.8.8", "169.254.169.254", "10.0.0.1", "198.18.200.200", "gone.example.com"):
            try:
                line = connect((host, 53), 10)
                print(host, line.recv(1))
            except ConnectionResetError:
                print(host, "reset")
        """,
    )
    assert {line.rpartition(" ")[2] for line in said.splitlines()} == {"reset"}
    tried = {(asked["kind"], asked.get("host")) for asked in outside.asked if asked["kind"] != "resolve"}
    assert tried == {
        ("egress", host) for host in ("8.8.8.8", "169.254.169.254", "10.0.0.1", "198.18.200.200", "gone.example.com")
    }


async def test_datagrams_raw_sockets_icmp_and_ipv6_go_nowhere(connected: GvisorMachine, outside: Outside) -> None:
    outside.asked.clear()
    said = await python(
        connected,
        r"""
        def attempt(what, family, kind, protocol, address, data=b"x"):
            try:
                line = socket.socket(family, kind, protocol)
                line.settimeout(1)
                line.connect(address)
                line.send(data)
                print(what, line.recv(100))
            except OSError as error:
                print(what, type(error).__name__)
        attempt("udp", socket.AF_INET, socket.SOCK_DGRAM, 0, ("1.1.1.1", 123))
        attempt("raw", socket.AF_INET, socket.SOCK_RAW, 255, ("1.1.1.1", 0))
        attempt("icmp", socket.AF_INET, socket.SOCK_RAW, 1, ("1.1.1.1", 0))
        attempt("ping", socket.AF_INET, socket.SOCK_DGRAM, 1, ("1.1.1.1", 0), b"\x08\0\0\0\0\1\0\1hello")
        attempt("ipv6", socket.AF_INET6, socket.SOCK_STREAM, 0, ("2606:4700:4700::1111", 443))
        try:
            socket.socket(17, socket.SOCK_RAW, 0)
        except PermissionError:
            print("packet PermissionError")
        """,
    )
    assert said.splitlines() == [
        "udp TimeoutError",
        "raw PermissionError",
        "icmp PermissionError",
        "ping TimeoutError",
        "ipv6 OSError",
        "packet PermissionError",
    ]
    assert outside.asked == [{"kind": "datagram", "host": "1.1.1.1"}]


async def test_any_resolver_that_a_program_asks_is_ours(connected: GvisorMachine, outside: Outside) -> None:
    outside.asked.clear()
    said = await python(
        connected,
        r"""
        asked = b"\0\7\1\0\0\1\0\0\0\0\0\0\4echo\7example\3com\0\0\1\0\1"
        line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        line.settimeout(5)
        line.sendto(asked, ("8.8.8.8", 53))
        answer, who = line.recvfrom(512)
        print(who[0], answer[:2] == asked[:2], ".".join(map(str, answer[-4:-2])))
        """,
    )
    assert said == "8.8.8.8 True 198.18"
    assert outside.asked == [{"kind": "resolve", "name": "echo.example.com"}]


async def test_what_is_local_stays_local(connected: GvisorMachine, outside: Outside) -> None:
    outside.asked.clear()
    said = await python(
        connected,
        """
        listener = socket.create_server(("0.0.0.0", 0))
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "127.1.2.3", "0.0.0.0", "localhost"):
            line = connect((host, port))
            print(host, listener.accept()[0].send(b"x"), line.recv(1))
        """,
    )
    assert said.count("1 b'x'") == 4
    assert outside.asked == []


async def test_many_connections_at_once_and_a_slow_reader_hold_up_no_call(
    connected: GvisorMachine, outside: Outside
) -> None:
    await machine_background(
        connected,
        f"""
        lines = [connect(("echo.example.com", 1000)) for _ in range({CONNECTIONS_MAX - 20})]
        flood = [connect(("flood.example.com", 80)) for _ in range(4)]
        for line in lines:
            line.sendall(b"x")
        print(sum(len(line.recv(1)) for line in lines), flush=True)
        flood[0].recv(1)
        time.sleep(60)
        """,
    )
    async with asyncio.timeout(30):
        while await bash(connected, "cat /tmp/said") != str(CONNECTIONS_MAX - 20):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.1)
    assert outside.open == CONNECTIONS_MAX - 16
    assert await bash(connected, "pkill -f back.py; echo done") == "done"
    async with asyncio.timeout(10):
        while outside.open:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.01)


async def machine_background(machine: Machine, program: str) -> None:
    head = "import socket, threading, time\nconnect = socket.create_connection\n"
    await machine.guest.write_file("/tmp/back.py", (head + textwrap.dedent(program)).encode())
    await bash(machine, "rm -f /tmp/said; nohup python3 /tmp/back.py > /tmp/said 2>&1 & true")


async def test_a_large_transfer_arrives_whole_both_ways(connected: GvisorMachine) -> None:
    said = await python(
        connected,
        """
        import hashlib, random
        piece = random.randbytes(1 << 20)
        line = connect(("echo.example.com", 443))
        def write():
            for _ in range(24):
                line.sendall(piece)
            line.shutdown(socket.SHUT_WR)
        threading.Thread(target=write).start()
        digest, count = hashlib.sha256(), 0
        while data := line.recv(100_000):
            digest.update(data)
            count += len(data)
        print(count == 24 << 20, digest.digest() == hashlib.sha256(piece * 24).digest())
        """,
    )
    assert said == "True True"


async def test_a_snapshot_leaves_connections_and_what_comes_back_from_it_has_none(
    driver: GvisorDriver, new_sandbox: NewSandbox
) -> None:
    outside = Outside()
    spec = new_sandbox()
    machine = await driver.start(spec, egress=outside)
    snapshot_id = f"snap-{secrets.token_hex(8)}"
    await machine_background(
        machine,
        """
        line = connect(("echo.example.com", 77))
        quiet = connect(("listener.example.com", 76))
        quiet.recv(100)
        def hear():
            try:
                print("heard", quiet.recv(100), flush=True)
            except OSError as error:
                print("heard", type(error).__name__, flush=True)
        quiet = connect(("echo.example.com", 76))
        threading.Thread(target=hear, daemon=True).start()
        flood = connect(("flood.example.com", 78))
        def drink():
            try:
                while flood.recv(100):
                    pass
            except OSError:
                pass
        threading.Thread(target=drink, daemon=True).start()
        odd = connect(("8.8.8.8", 99))
        own = socket.create_server(("0.0.0.0", 0))
        while True:
            try:
                line.sendall(b"x")
                print(line.recv(1), flush=True)
            except OSError as error:
                print(type(error).__name__, flush=True)
                line = connect(("echo.example.com", 77))
            time.sleep(0.05)
        """,
    )
    await said_since(machine, "b'x'")
    await machine.snapshot(snapshot_id)
    said = await said_since(machine, "b'x'")
    assert "Error" not in said
    await machine.kill()

    again = await driver.start(spec, snapshot_id=snapshot_id, egress=outside)
    # Of two that were open: one that says something, and one that only waits for it.
    await said_since(again, "b'x'", after="\nConnectionResetError")
    await said_since(again, "", after="heard ConnectionResetError")
    assert await bash(again, "getent hosts other.org; echo $?") == "2"
    # Another host, and the connection ends too; names and new connections are served by it.
    await again.release()
    other = Outside()
    adopted = await driver.adopt(spec.sandbox_id, egress=other)
    assert adopted is not None
    async with asyncio.timeout(20):
        while 77 not in [asked.get("port") for asked in other.asked]:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.01)
    said = await said_since(adopted, "b'x'", after="\nConnectionResetError")
    assert said.count("\nConnectionResetError") == 2
    await adopted.kill()
    await driver.drop_snapshot(snapshot_id)


async def said_since(machine: Machine, text: str, after: str = "") -> str:
    """What the program in the background says from now on, up to this text."""
    begin = int(await bash(machine, "wc -c < /tmp/said")) if not after else 0
    async with asyncio.timeout(20):
        while True:
            said = (await bash(machine, "cat /tmp/said"))[begin:]
            if after in said and text in (said[said.rindex(after) :] if after else said):
                return said
            await asyncio.sleep(0.05)


async def test_without_anybody_who_serves_it_there_is_no_way_out(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    machine = await driver.start(new_sandbox())
    assert await bash(machine, "getent hosts echo.example.com; echo $?") == "2"
    assert "ConnectionResetError" in await python(machine, "connect(('8.8.8.8', 443)).recv(1)")
    await machine.kill()


async def test_programs_that_break_off_or_ask_nonsense_break_nothing(
    connected: GvisorMachine, outside: Outside
) -> None:
    outside.asked.clear()
    said = await python(
        connected,
        r"""
        import struct
        linger = struct.pack("ii", 1, 0)
        def broken(host, say, shut):
            line = connect((host, 80))
            line.sendall(say)
            if shut:
                line.shutdown(socket.SHUT_WR)
            time.sleep(0.05)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            line.close()
        for host in ("flood.example.com", "echo.example.com", "listener.example.com", "gone.example.com"):
            for say in (b"x", b"x" * 3_000_000):
                for shut in (False, True):
                    try:
                        if host != "flood.example.com" and len(say) > 1:
                            continue
                        broken(host, say[:200_000], shut)
                    except OSError:
                        pass
        for name in (b"\xff" * 63, b"a" * 63, b"\0", b"%s", b"x y"):
            for count in (1, 3, 7):
                body = (bytes([len(name)]) + name) * count + b"\0\0\1\0\1"
                line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                line.sendto(b"\0\7\1\0\0\1\0\0\0\0\0\0" + body, ("127.0.0.1", 53))
        print("through")
        """,
    )
    assert said == "through"
    assert await bash(connected, "getent hosts echo.example.com | wc -l") == "1"
    async with asyncio.timeout(10):
        while outside.open:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.01)
