"""A sandbox's way out: new connections, downloads through one and through eight, and tool calls beside them.

The yardstick is the same program as a plain process of the host. The server is in a network namespace beside it; each
connection is judged, recorded in a log of its own before its first byte, and carried through the guest agent.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from actors.egress.credentials import Credentials
from actors.egress.gateway import Gateway
from actors.egress.names import Names
from actors.egress.serving import serve_egress
from actors.journal import LocalJournal
from actors.life import sandbox_entity
from events import sandbox as fold
from events.sqlite_log import SqliteLog
from replay.bench.frame import Result
from replay.bench.outside import NAME, PORT, outside
from replay.bench.stage import LIMITS, TEMPLATE, stage

if TYPE_CHECKING:
    from pathlib import Path

    from actors.machines.machine import GvisorMachine
    from replay.bench.frame import Progress

_CONNECTIONS = 60
_TURNS = 3
_BYTES = 1_000_000_000
_CALLS = 20
_ADDED_MS = 5.0
_MB_PER_S = 60.0
_SLOWER = 2.0
_PROGRAM = """
import json, socket, sys, threading, time
host, port, what, count, size = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])

def download(size):
    line = socket.create_connection((host, port))
    line.sendall(size.to_bytes(8, "big"))
    buffer, got = bytearray(1 << 18), 0
    while many := line.recv_into(buffer):
        got += many
    assert got == size, got
    line.close()

if what == "connect":
    times = []
    for _ in range(count):
        began = time.perf_counter()
        download(1)
        times.append((time.perf_counter() - began) * 1000)
    print(json.dumps(times))
else:
    lines = [threading.Thread(target=download, args=(size // count,)) for _ in range(count)]
    began = time.perf_counter()
    for line in lines: line.start()
    for line in lines: line.join()
    print(json.dumps(size / 1e6 / (time.perf_counter() - began)))
"""


def run(progress: Progress) -> Result:
    """One sandbox and one server."""
    return asyncio.run(_run(progress))


async def _run(progress: Progress) -> Result:
    inside: list[float] = []
    plain: list[float] = []
    rates: dict[str, float] = {}
    async with stage("egress", waiting=0) as scene:
        with outside() as address:
            machine = await _connected(scene, address)
            program = scene.folder / "client.py"
            program.write_text(_PROGRAM)
            await machine.guest.write_file("/tmp/client.py", _PROGRAM.encode())
            for turn in range(_TURNS):
                progress(f"connections, turn {turn + 1} of {_TURNS}")
                inside += await _guest(machine, "connect", _CONNECTIONS // _TURNS, 0)
                plain += await _host(program, address, "connect", _CONNECTIONS // _TURNS, 0)
            calls = [await _call(machine) for _ in range(_CALLS)]
            for count in (1, 8):
                progress(f"1 GB through {count}")
                rates[f"inside_{count}"] = await _guest(machine, "download", count, _BYTES)
                rates[f"plain_{count}"] = await _host(program, address, "download", count, _BYTES)
            progress("calls beside a download")
            beside = await _beside(machine)
            await machine.kill()
    result = Result("egress")
    result.figure("connection_inside_p50", statistics.median(inside), "ms")
    result.figure("connection_plain_p50", statistics.median(plain), "ms")
    for name, rate in rates.items():
        result.figure(f"download_{name}", rate, "MB/s")
    result.figure("call_p50", statistics.median(calls), "ms")
    result.figure("call_beside_a_download_p50", statistics.median(beside), "ms")
    result.at_most(
        "ms that a new connection takes more", statistics.median(inside) - statistics.median(plain), _ADDED_MS
    )
    result.at_least("MB/s through one connection", rates["inside_1"], _MB_PER_S)
    result.at_most(
        "a tool call beside a download, in times of one alone",
        statistics.median(beside) / statistics.median(calls),
        _SLOWER,
    )
    return result


async def _connected(scene: Any, address: str) -> GvisorMachine:
    """A machine whose sandbox may reach the server, with a log that hears of each connection."""
    spec = scene.spec()
    log = SqliteLog(scene.folder / "log.db")
    entity = sandbox_entity(spec.sandbox_id, "bench", LocalJournal(log), epoch=log.next_epoch("bench"), metadata={})
    await entity.load()
    create = fold.Create(session_id="bench", driver="gvisor", template=TEMPLATE, limits=LIMITS)
    allow = fold.ChangeEgress(allow=(f"{NAME}:{PORT}",), settings=(), by="bench")
    await entity.execute("create", create, allow)
    gateway = Gateway(names=Names({NAME: [address]}), credentials=Credentials())
    machine: GvisorMachine = await scene.driver.start(spec, egress=serve_egress(entity, gateway))
    return machine


async def _guest(machine: GvisorMachine, what: str, count: int, size: int) -> Any:
    command = f"python3 /tmp/client.py {NAME} {PORT} {what} {count} {size}"
    result = await machine.guest.run_tool(secrets.token_hex(8), "bash", {"command": command}, timeout=300)
    return json.loads(str(result.content[0]["text"]))


async def _host(program: Path, address: str, what: str, count: int, size: int) -> Any:
    words = (str(program), address, str(PORT), what, str(count), str(size))
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return json.loads(said)


async def _call(machine: GvisorMachine) -> float:
    began = time.perf_counter()
    await machine.guest.run_tool(secrets.token_hex(8), "bash", {"command": "true"}, timeout=60)
    return (time.perf_counter() - began) * 1000


async def _beside(machine: GvisorMachine) -> list[float]:
    """Tool calls while one download goes on, which is begun anew for as long as they take."""
    loop = f"while true; do python3 /tmp/client.py {NAME} {PORT} download 1 {_BYTES}; done"
    begin = {"command": f"nohup sh -c '{loop}' > /dev/null 2>&1 & sleep 1"}
    await machine.guest.run_tool(secrets.token_hex(8), "bash", begin, timeout=60)
    return [await _call(machine) for _ in range(_CALLS)]
