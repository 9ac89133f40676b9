"""The supervisor as a process, with small programs of ours in the place of `runsc`."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from actors.guest.frames import DATA, HELLO, MAX_PAYLOAD, PING, PONG, Decoder, Frame, encode
from actors.machines import relay
from actors.machines.folder import MachineFolder, MachineRecord
from actors.machines.launch import Nursery, end_machine
from actors.machines.mounts import CommandFailed
from actors.machines.protocol import EndReason
from events.types import Limits

# Answers each PING with a PONG, and does as the payload says.
GUEST = """
import os, struct, sys
def read(n):
    data = b""
    while len(data) < n:
        piece = os.read(0, n - len(data))
        if not piece: os._exit(0)
        data += piece
    return data
while True:
    kind, channel, length = struct.unpack("!BII", read(9))
    payload = read(length)
    if payload == b"exit": os._exit(7)
    if payload == b"junk": os.write(1, b"this is no frame at all")
    if payload == b"flood": payload = b"z" * length * 800_000
    if payload == b"noise": os.write(2, b"x" * 300_000 + b"end")
    for at in range(0, max(len(payload), 1), 65536):
        piece = payload[at:at + 65536]
        reply = struct.pack("!BII", 8, channel, len(piece)) + piece
        while reply: reply = reply[os.write(1, reply):]
"""


class Machine:
    """A supervised program, and the folder that it is known by."""

    def __init__(self, storage: Path, command: list[str], comes_to_life: str = "true") -> None:
        self.folder = MachineFolder(storage, "sbx-test")
        self.id = f"hg-{secrets.token_hex(8)}"
        self.waiting = storage / "waiting" / self.id
        self.waiting.mkdir(parents=True)
        self.slot = storage / "slots" / self.id
        (self.slot / "root").mkdir(parents=True)
        # As `runsc create` does: what it starts goes on without it.
        create = f"exec 3<&0; {shlex.join(command)} <&3 3<&- & echo $! > pid"
        life = ["/bin/sh", "-c", comes_to_life, "x"]
        orders = {"group": self.id, "state": str(storage / "state"), "slot": str(self.slot), "control": ""} | {
            "mapped": [],
            "create": ["/bin/sh", "-c", create],
            "start": life,
            "restore": life,
        }
        (self.waiting / "orders.json").write_text(json.dumps(orders))
        self.nursery = Nursery()
        try:
            self.line = asyncio.run(self.nursery.supervise(self.waiting))
        except BaseException:
            self.nursery.close()
            raise
        self.line.setblocking(True)

    def begin(self, image: str | None = None, said: bytes = b"") -> None:
        """Make it the sandbox's, and bring it to life."""
        (self.folder.path.parent).mkdir(exist_ok=True)
        self.folder.move_in(self.waiting, MachineRecord(self.id, "sbx-test", "root", Limits()))
        self.line.sendall(json.dumps({"image": image}).encode() + b"\n" + said)

    def close(self) -> None:
        self.line.close()
        self.nursery.close()

    def connect(self) -> Host:
        return Host(self.folder.path / "sock")

    def wait(self) -> None:
        """Wait for the end of the supervisor; at most the test's own timeout."""
        pid = self.folder.supervisor()
        if pid is None:
            return
        pidfd = os.pidfd_open(pid)
        try:
            import select

            select.select([pidfd], [], [])
        finally:
            os.close(pidfd)


class Host:
    """A host on the socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            self.socket.connect(f"/proc/self/fd/{fd}/{path.name}")
        finally:
            os.close(fd)
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> Frame | None:
        """The next frame; None at the end of the stream."""
        while not self._frames:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    def close(self) -> None:
        self.socket.close()


Start = Callable[..., Machine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    machines: list[Machine] = []

    def start(command: list[str] | None = None) -> Machine:
        # A long path: a socket's address may have 108 bytes.
        storage = tmp_path / ("long" * 30)
        machines.append(Machine(storage, command or [sys.executable, "-I", "-S", "-c", GUEST]))
        machines[-1].begin()
        return machines[-1]

    yield start
    for machine in machines:
        end_machine(machine.folder, machine.id)
        assert machine.folder.supervisor() is None
        machine.close()


def test_frames_pass_both_ways(start: Start) -> None:
    host = start().connect()
    for size in (0, 1, MAX_PAYLOAD):
        host.send(encode(PING, 5, b"y" * size))
        assert host.receive() == (PONG, 5, b"y" * size)
    host.close()


def test_a_frame_cut_off_by_a_dying_host_never_reaches_the_guest(start: Start) -> None:
    machine = start()
    first = machine.connect()
    first.send(encode(PING, 1, b"whole") + encode(DATA, 1, b"half")[:-2])
    assert first.receive() == (PONG, 1, b"whole")
    first.close()
    second = machine.connect()
    second.send(encode(HELLO, 0, b"{}"))
    assert second.receive() == (PONG, 0, b"{}")
    second.close()


def test_a_second_host_takes_the_place_of_the_first(start: Start) -> None:
    machine = start()
    first = machine.connect()
    first.send(encode(PING, 1))
    assert first.receive() == (PONG, 1, b"")
    second = machine.connect()
    assert first.receive() is None
    second.send(encode(PING, 2))
    assert second.receive() == (PONG, 2, b"")
    first.close()
    second.close()


def test_the_guest_never_blocks_on_an_absent_host(start: Start) -> None:
    machine = start()
    first = machine.connect()
    first.send(encode(PING, 1, b"flood"))
    first.close()
    # It could not answer this if the four megabytes that nobody took had filled its way out.
    second = machine.connect()
    second.send(encode(PING, 0, b"last"))
    while (frame := second.receive()) is not None and frame != (PONG, 0, b"last"):
        assert set(frame[2]) == {ord("z")}
    assert frame is not None
    second.close()


def test_a_slow_host_gets_every_byte(start: Start) -> None:
    host = start().connect()
    # More than fits on the way: by now somebody waits for us to read.
    host.send(encode(PING, 1, b"flood") + encode(PING, 0, b"last"))
    received = 0
    while (frame := host.receive()) is not None and frame != (PONG, 0, b"last"):
        received += len(frame[2])
    assert received == 5 * 800_000
    host.close()


def test_a_host_that_sends_no_frames_is_dropped_and_the_machine_lives(start: Start) -> None:
    machine = start()
    rude = machine.connect()
    rude.send(b"GET / HTTP/1.1\r\n\r\n")
    assert rude.receive() is None
    polite = machine.connect()
    polite.send(encode(PING, 1))
    assert polite.receive() == (PONG, 1, b"")
    rude.close()
    polite.close()


def test_the_end_of_the_machine_is_told(start: Start) -> None:
    machine = start()
    host = machine.connect()
    host.send(encode(PING, 1, b"exit"))
    assert host.receive() is None
    machine.wait()
    end = machine.folder.end(machine.id)
    assert (end.reason, end.exit_code) == (EndReason.EXITED, 7)
    host.close()


def test_a_guest_that_breaks_the_framing_is_ended(start: Start) -> None:
    machine = start()
    host = machine.connect()
    host.send(encode(PING, 1, b"junk"))
    assert host.receive() is None
    machine.wait()
    end = machine.folder.end(machine.id)
    assert end.reason is EndReason.EXITED
    assert "broke the protocol" in end.detail
    host.close()


def test_standard_error_is_kept_within_bounds(start: Start) -> None:
    machine = start()
    host = machine.connect()
    host.send(encode(PING, 1, b"noise"))
    assert host.receive() == (PONG, 1, b"noise")
    host.send(encode(PING, 1, b"exit"))
    machine.wait()
    assert (machine.folder.path / "stderr.log").stat().st_size == relay.STDERR_BYTES
    assert set(machine.folder.last_words()) == {"x"}
    host.close()


GUEST_COMMAND = [sys.executable, "-I", "-S", "-c", GUEST]


def test_the_line_to_the_supervisor_becomes_the_first_hosts_stream(tmp_path: Path) -> None:
    machine = Machine(tmp_path, GUEST_COMMAND)
    machine.begin(said=encode(PING, 3, b"at once"))
    data = b""
    while len(data) < len(encode(PONG, 3, b"at once")):
        data += machine.line.recv(1000)
    assert data == encode(PONG, 3, b"at once")
    end_machine(machine.folder, machine.id)
    machine.close()


def test_a_container_that_can_not_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"exit code 127.*no-such-runsc"):
        _uncreatable(tmp_path)


def test_a_container_whose_folders_are_not_there_is_an_error(tmp_path: Path) -> None:
    mapped = [str(tmp_path / "root"), str(tmp_path / "agent")]
    with pytest.raises(OSError, match=r"no user ids for it: .*config\.json"):
        _uncreatable(tmp_path / "1", mapped)
    with pytest.raises(OSError, match=r"exit code 125: nothing is begun: .*No such file or directory: .*root"):
        _uncreatable(tmp_path / "2", mapped, {"linux": {}})


def _uncreatable(storage: Path, mapped: Sequence[str] = (), config: dict[str, object] | None = None) -> None:
    folder = storage / "waiting"
    folder.mkdir(parents=True)
    if config is not None:
        (storage / "config.json").write_text(json.dumps(config))
    orders = {"create": ["/bin/sh", "-c", "no-such-runsc"], "mapped": mapped, "group": "hg-none"}
    (folder / "orders.json").write_text(json.dumps(orders | {"state": str(storage / "state"), "slot": str(storage)}))
    nursery = Nursery()
    try:
        asyncio.run(nursery.supervise(folder)).close()
    finally:
        nursery.close()


def test_a_machine_that_does_not_come_to_life_says_why(tmp_path: Path) -> None:
    machine = Machine(tmp_path, GUEST_COMMAND, "echo image is broken >&2; exit 3")
    machine.begin(image="/images/one")
    assert machine.line.recv(100) == b""
    machine.wait()
    end = machine.folder.end(machine.id)
    assert end.reason is EndReason.EXITED
    assert end.detail == "runsc failed with exit code 3: image is broken"
    machine.close()


def test_a_container_whose_host_is_gone_is_removed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, GUEST_COMMAND)
    cradle = int((machine.waiting / "cradle").read_text())
    machine.close()
    _wait_until(lambda: not machine.waiting.exists() and not machine.slot.exists() and not _lives(cradle))


def test_a_container_that_a_tree_was_put_into_keeps_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, GUEST_COMMAND)
    (machine.slot / "root" / "live").mkdir()
    (machine.slot / "root" / "live" / "file").write_text("kept")
    cradle = int((machine.waiting / "cradle").read_text())
    machine.close()
    _wait_until(lambda: not _lives(cradle))
    assert (machine.slot / "root" / "live" / "file").read_text() == "kept"


def test_the_nursery_runs_programs_and_tells_how_they_failed(tmp_path: Path) -> None:
    nursery = Nursery()
    try:
        asyncio.run(nursery.run(["/bin/sh", "-c", f"echo hello > {tmp_path}/said"], timeout=10))
        assert (tmp_path / "said").read_text() == "hello\n"
        with pytest.raises(CommandFailed, match="sh failed with exit code 4: no luck"):
            asyncio.run(nursery.run(["/bin/sh", "-c", "echo no luck; exit 4"], timeout=10))
        with pytest.raises(CommandFailed, match=r"sleep did not end within 0\.1 s"):
            asyncio.run(nursery.run(["/bin/sleep", "5"], timeout=0.1))
        assert nursery._process is not None
        nursery._process.kill()
        nursery._process.wait()
        # Another one takes its place.
        asyncio.run(nursery.run(["/bin/true"], timeout=10))
    finally:
        nursery.close()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_supervisor_that_was_killed_leaves_a_reason_and_no_machine(start: Start) -> None:
    machine = start()
    pid, cradle = machine.folder.supervisor(), machine.folder.cradle()
    assert pid is not None
    assert _lives(cradle)
    os.kill(pid, signal.SIGKILL)
    machine.wait()
    # And no process: the kernel ends the cradle with its supervisor, and the rest with the cradle.
    _wait_until(lambda: not _lives(cradle))
    end = machine.folder.end(machine.id)
    assert (end.reason, end.exit_code) == (EndReason.EXITED, None)
    assert "supervisor" in end.detail


def test_the_end_of_another_machine_is_not_taken_for_ours(start: Start) -> None:
    machine = start()
    (machine.folder.path / "exit.json").write_text(json.dumps({"reason": "exited", "exit_code": 1, "detail": ""}))
    assert machine.folder.end("hg-older").reason is EndReason.KILLED
