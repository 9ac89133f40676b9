"""What visitors ask of a machine beside the tool calls: programs, terminals, connections, trees."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from pathlib import Path
from typing import Any

import pytest

from actors.guest import frames, trees
from actors.machines.gvisor import GvisorDriver
from actors.machines.machine import GvisorMachine
from actors.machines.mux import CHANNELS_MAX
from actors.machines.protocol import GuestProtocolError, Machine, MachineGone
from actors.machines.visiting import ByteStream, Program, RunningProcess
from tests.conformance.conftest import NewSandbox

pytestmark = [pytest.mark.conformance, pytest.mark.asyncio(loop_scope="module")]


def program(*argv: str, **options: Any) -> Program:
    return Program(f"prc-{secrets.token_hex(4)}", argv, **options)


def script(text: str, **options: Any) -> Program:
    return program("sh", "-c", text, **options)


async def drained(process: RunningProcess) -> tuple[int, bytes, bytes]:
    """(exit code, output, errors)."""
    said = {1: bytearray(), 2: bytearray()}
    while piece := await process.read():
        said[piece[0]] += piece[1]
    return process.exit_code, bytes(said[1]), bytes(said[2])


async def ran(machine: Machine, what: Program, given: bytes = b"") -> tuple[int, bytes, bytes]:
    async with machine.guest.process(what) as process:
        feeding = asyncio.create_task(process.write(given, last=True))
        outcome = await drained(process)
        await feeding
        return outcome


async def until(process: RunningProcess, text: bytes) -> bytes:
    """Read until it has printed something."""
    said = bytearray()
    try:
        async with asyncio.timeout(20):
            while text not in said:
                piece = await process.read()
                assert piece is not None, said
                said += piece[1]
    except TimeoutError:
        raise AssertionError(f"no {text!r} in {bytes(said)!r}") from None
    return bytes(said)


async def gone(machine: Machine, name: str) -> None:
    """Wait until no process of that name is left."""
    async with asyncio.timeout(20):
        while (await ran(machine, program("pgrep", "-x", name)))[0] == 0:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.05)


async def test_output_and_errors_are_apart_and_the_exit_code_is_its_own(machine: GvisorMachine) -> None:
    told = await ran(machine, script("pwd; echo no >&2; exit 7"))
    assert told == (7, b"/workspace\n", b"no\n")
    assert await ran(machine, program("cat"), b"what goes in\n" * 50_000) == (0, b"what goes in\n" * 50_000, b"")
    asked = script("pwd; echo $NAME; kill -9 $$", cwd="/tmp", env={"NAME": "it's $HOME"})
    assert await ran(machine, asked) == (137, b"/tmp\nit's $HOME\n", b"")


@pytest.mark.parametrize(
    ("what", "raised"),
    [
        (program("no-such-program"), FileNotFoundError),
        (program("/etc/hostname"), PermissionError),
        (program("true", cwd="/no/such/folder"), NotADirectoryError),
    ],
)
async def test_what_can_not_be_started_says_why(machine: GvisorMachine, what: Program, raised: type[OSError]) -> None:
    with pytest.raises(raised):
        await ran(machine, what)


async def test_a_program_waits_for_a_slow_reader(machine: GvisorMachine) -> None:
    # A gigabyte, of which nobody reads more than the first piece.
    async with machine.guest.process(script("head -c 1G /dev/zero; echo never >/tmp/done")) as process:
        assert await process.read() is not None
        await machine.guest.ping()
        told = await ran(machine, script("test -e /tmp/done; echo $?; echo other calls go on"))
        assert told == (0, b"1\nother calls go on\n", b"")
    await gone(machine, "head")


async def test_a_program_that_does_not_read_can_be_ended(machine: GvisorMachine) -> None:
    what = program("sleep", "600")
    async with machine.guest.process(what) as process:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await process.write(bytes(4 * 1024**2))
        await machine.guest.signal(what.process_id, signal.SIGTERM)
        assert await drained(process) == (128 + 15, b"", b"")
    # Of one that is over there is nothing to tell.
    await machine.guest.signal(what.process_id, signal.SIGTERM)
    await machine.guest.resize(what.process_id, 1, 1)


async def test_a_program_is_hung_up_when_its_channel_goes(machine: GvisorMachine) -> None:
    asked = script("trap 'echo hung up >/tmp/told' HUP; echo on; sleep 601 & wait; trap '' HUP; sleep 602")
    async with machine.guest.process(asked) as process:
        await until(process, b"on")
    await gone(machine, "sleep")
    assert await machine.guest.read_file("/tmp/told", max_bytes=100) == b"hung up\n"


async def test_nothing_lets_a_program_go_on_that_is_held_for_a_snapshot(machine: GvisorMachine) -> None:
    what = script("trap '' HUP; echo on; while :; do echo tick >>/tmp/ticks; sleep 0.01; done")

    async def ticks() -> bytes:
        return await machine.guest.read_file("/tmp/ticks", max_bytes=1_000_000)

    async with machine.guest.process(what) as process:
        await until(process, b"on")
        await machine.guest.quiesce()
        held = await ticks()
        asking = asyncio.create_task(machine.guest.signal(what.process_id, signal.SIGCONT))
        await asyncio.sleep(0.2)
        assert not asking.done()
        assert await ticks() == held
    # Its visitor has left, too: it is hung up, and killed since it insists, once it may go on.
    await asyncio.sleep(1.2)
    assert await ticks() == held
    await machine.guest.wake()
    await asking
    await gone(machine, "sh")
    assert len(await ticks()) > len(held)


async def test_a_request_is_as_long_as_its_text_and_one_too_long_costs_no_channel(machine: GvisorMachine) -> None:
    long = "é" * 28_000
    assert await ran(machine, program("printf", "%s", long)) == (0, long.encode(), b"")
    for _ in range(CHANNELS_MAX + 1):
        with pytest.raises(OSError, match="too long"):
            await ran(machine, program("true", long * 2))
    assert (await ran(machine, program("true")))[0] == 0


async def test_what_a_program_leaves_behind_goes_on(machine: GvisorMachine) -> None:
    waits = "(while [ ! -e /tmp/go ]; do sleep 0.02; done; touch /tmp/later) & echo left"
    assert await ran(machine, script(waits)) == (0, b"left\n", b"")
    asked = script("touch /tmp/go; while [ ! -e /tmp/later ]; do sleep 0.02; done; echo there")
    async with machine.guest.process(asked) as process:
        await until(process, b"there")


WATCH = b"""python3 -c 'import os, signal; signal.signal(28, lambda *_: 0); signal.pthread_sigmask(0, [28]); \
print("ready", flush=True); signal.sigwait([28]); print(os.get_terminal_size())'
"""
# Blocked before it says so: one that came between that and the wait would be waited for in vain.


async def test_a_terminal_has_colours_sizes_jobs_and_keys(machine: GvisorMachine) -> None:
    what = program("bash", "--norc", "-i", env={"TERM": "xterm-256color", "PS1": "> "}, terminal=(31, 97))
    async with machine.guest.process(what) as process:
        await until(process, b"> ")
        await process.write(b"stty size; tput setaf 1 | od -c | head -1; tty\n")
        said = await until(process, b"/dev/pts/")
        assert b"31 97" in said
        assert rb"033   [   3   1   m" in said
        assert b"no job control" not in said
        if not said.endswith(b"> "):
            await until(process, b"> ")
        await process.write(WATCH)
        await until(process, b"\rready\r\n")
        await machine.guest.resize(what.process_id, 40, 120)
        await until(process, b"columns=120, lines=40")
        await until(process, b"> ")
        await process.write(b"echo begun; cat -\n")
        await until(process, b"\rbegun\r\n")
        await process.write(b"typed\n")
        await until(process, b"typed\r\ntyped")
        await process.write(b"\x03")
        await until(process, b"> ")
        # The shell ended the line that was interrupted, and goes on.
        await process.write(b"echo still $((40 + 2))\n")
        await until(process, b"still 42")
        await process.write(b"sh -c 'echo fore; while :; do read -r _; done'\n")
        await until(process, b"fore\r\n")
        await process.write(b"\x1a")
        await until(process, b"Stopped")
        # Not `wait`: where the job does not count as killed yet, a shell with stopped jobs does not exit.
        await process.write(b"kill -9 %1; disown -a; exit 5\n")
        assert (await drained(process))[0] == 5


async def test_a_terminal_that_goes_away_takes_its_programs_along(machine: GvisorMachine) -> None:
    what = program("bash", "--norc", "-i", env={"PS1": "> "}, terminal=(24, 80))
    async with machine.guest.process(what) as process:
        await until(process, b"> ")
        await process.write(b"trap '' HUP; sh -c 'echo fore; exec sleep 604'\n")
        await until(process, b"fore\r\n")
    await gone(machine, "sleep")


SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 8765), backlog=64)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        said = b""
        while piece := connection.recv(65536):
            said += piece
        connection.sendall(b"%d bytes came" % len(said) + bytes(len(said)))
"""


async def test_a_port_is_reached_and_each_end_closes_on_its_own(machine: GvisorMachine) -> None:
    async def ask(count: int) -> None:
        async with machine.guest.connect(8765) as stream:
            sending = asyncio.create_task(stream.send(bytes(count), last=True))
            said = bytearray()
            while piece := await stream.receive():
                said += piece
            await sending
        assert said == b"%d bytes came" % count + bytes(count)

    with pytest.raises(ConnectionRefusedError):
        await ask(1)
    async with machine.guest.process(program("python3", "-c", SERVER)) as server:
        await until(server, b"listening")
        await asyncio.gather(*(ask(count) for count in (0, 1, 70_000, 3_000_000, *range(20))))
        async with machine.guest.connect(8765):
            pass  # left early: the server's read ends, and it goes on
        await ask(10)


async def taken(stream: ByteStream) -> dict[bytes, tuple[str, int, int]]:
    """What a tree holds, by path: (kind, mode, bytes)."""
    decoder, found, last = frames.Decoder(), {}, b""
    while data := await stream.receive():
        for kind, _, payload in decoder.feed(data):
            if kind == frames.OPEN:
                what, mode, last = trees.parse(payload)
                found[last] = (what, mode, 0)
            elif kind == frames.DATA:
                what, mode, count = found[last]
                found[last] = (what, mode, count + len(payload))
    return found


async def test_trees_come_out_without_links(machine: GvisorMachine) -> None:
    await ran(
        machine,
        script(
            """mkdir -p /tmp/t/sub/empty; cd /tmp/t; head -c 300000 /dev/urandom >sub/big; echo x >run; chmod 750 run
            ln -s /etc/passwd link; ln -s / sub/root; mkfifo pipe; chmod 4700 sub/big
            printf 'n' >"$(printf 'a\\377\\nb')"
            """
        ),
    )
    async with machine.guest.pack("/tmp/t", recursive=True) as stream:
        assert await taken(stream) == {
            b"": ("folder", 0o755, 0),
            b"a\xff\nb": ("file", 0o644, 1),
            b"link": ("left out", 0, 0),
            b"pipe": ("left out", 0, 0),
            b"run": ("file", 0o750, 2),
            b"sub": ("folder", 0o755, 0),
            b"sub/big": ("file", 0o700, 300000),
            b"sub/empty": ("folder", 0o755, 0),
            b"sub/root": ("left out", 0, 0),
        }
    for path, raised in (("/tmp/t", IsADirectoryError), ("/tmp/nothing", FileNotFoundError), ("/dev/zero", OSError)):
        with pytest.raises(raised):
            async with machine.guest.pack(path, recursive=False) as stream:
                await taken(stream)


async def put(machine: Machine, source: Path, path: str) -> str:
    async with machine.guest.unpack(path, source.name) as stream:
        for frame in trees.walk(os.fsencode(source), recursive=True):
            await stream.send(frame)
        await stream.send(b"", last=True)
        return str(json.loads(await stream.receive())["path"])


async def test_trees_go_in_as_cp_has_them(machine: GvisorMachine, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "run").write_text("#!/bin/sh\necho ran\n")
    (tree / "sub" / "run").chmod(0o755)
    (tree / "link").symlink_to("/etc/passwd")
    assert await put(machine, tree, "/tmp") == "/tmp/tree"
    assert await put(machine, tree, "/tmp/other") == "/tmp/other"
    assert await put(machine, tree / "sub" / "run", "here") == "/workspace/here"
    told = await ran(machine, script("/tmp/tree/sub/run; /tmp/other/sub/run; ./here; ls -A /tmp/tree /workspace"))
    assert told[1].split() == b"ran ran ran /tmp/tree: sub /workspace: here".split()
    for source, path, raised in (
        (tree / "sub" / "run", "/no/such/folder/x", FileNotFoundError),
        (tree / "sub" / "run", "/tmp/nothing/", NotADirectoryError),
        (tree, "/etc/hostname", FileExistsError),
    ):
        with pytest.raises(raised):
            await put(machine, source, path)
    # One that is cut off leaves the file as it was.
    async with machine.guest.unpack("here", "x") as stream:
        await stream.send(trees.entry(trees.FILE, 0o644, b"") + frames.encode(frames.DATA, 0, b"half"))
        await machine.guest.ping()
    assert await ran(machine, script("./here; rm here; ls -A")) == (0, b"ran\n", b"")


async def test_a_path_that_leads_out_is_refused_by_the_guest_too(machine: GvisorMachine) -> None:
    async def send(path: bytes) -> None:
        async with machine.guest.unpack("/tmp/victim", "x") as stream:
            await stream.send(trees.entry(trees.FOLDER, 0o755, path))
            await stream.receive()

    for path in (b"../out", b"/out", b"a/../b", b"a//b", b"a\0b"):
        with pytest.raises(GuestProtocolError, match="leads out of its tree"):
            await send(path)


async def test_a_snapshot_of_a_terminal_is_whole_and_what_it_ran_is_hung_up(
    driver: GvisorDriver, new_sandbox: NewSandbox
) -> None:
    machine = await driver.start(new_sandbox())
    what = program("bash", "--norc", "-i", env={"PS1": "> "}, terminal=(24, 80))
    async with (
        machine.guest.process(what) as process,
        machine.guest.process(program("python3", "-c", SERVER)) as server,
    ):
        await until(process, b"> ")
        await until(server, b"listening")
        async with machine.guest.connect(8765) as stream:
            await process.write(b"sh -c 'echo fore; exec sleep 605'\n")
            await until(process, b"fore\r\n")
            taken = await machine.snapshot(f"snap-{secrets.token_hex(4)}")
            # It was only held: nobody noticed.
            await stream.send(b"abc", last=True)
            assert (await stream.receive()).startswith(b"3 bytes")
        await process.write(b"\x03")
        await until(process, b"> ")
        await process.write(b"echo on $((1 + 1))\n")
        await until(process, b"on 2")
        child = await driver.start(new_sandbox(), snapshot_id=taken.snapshot_id, fresh=True)
        await gone(child, "sleep")
        # The server had a group of its own, and a connection: it is gone as well.
        with pytest.raises(ConnectionRefusedError):
            async with child.guest.connect(8765):
                pass
    await driver.drop_snapshot(taken.snapshot_id)
    for one in (machine, child):
        await one.kill()


async def test_a_machine_that_ends_under_a_program_says_so(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    machine = await driver.start(new_sandbox())
    async with machine.guest.process(program("sleep", "606")) as process:
        await machine.kill()
        with pytest.raises(MachineGone):
            await process.read()


async def test_another_host_ends_what_the_last_one_began(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    machine = await driver.start(new_sandbox())
    async with machine.guest.process(program("sleep", "607")) as process:
        again = await driver.adopt(machine.sandbox_id)
        assert again is not None
        with pytest.raises(MachineGone):
            await process.read()
        await gone(again, "sleep")
    await again.kill()
