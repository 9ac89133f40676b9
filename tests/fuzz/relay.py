"""The relay of a supervisor: a guest that says anything, and hosts that come, go and do not read.

Hosts are given whole frames alone, in the guest's order and as it said them; what waits is bounded on both sides; and
a guest that breaks the framing is the end of its machine, not of the relay.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import tempfile
from functools import cache
from struct import unpack_from

from actors.guest import frames
from actors.machines import relay as relay_module
from actors.machines.relay import Client, Relay
from tests.fuzz.script import Script, said, step

_FRAME = frames.HEADER_BYTES + frames.MAX_PAYLOAD
_READ_ONCE = 256 * 1024
"""What the relay may take in one piece after it saw that there is room."""
_TURNS = 3

FRAME, BYTES, HOST_FRAME, HOST_BYTES, HOST_READS, HOST_GOES, HOST_COMES, ERRORS, GUEST_READS = range(9)
SEEDS = (
    step(FRAME, said(frames.PONG, 1, b"x")) + step(HOST_READS),
    step(BYTES, 5, b"\x03\0\0\0\1") + step(HOST_COMES) + step(BYTES, 5, b"\0\0\0\1x") + step(HOST_READS),
    step(FRAME, bytes([3, 1, 250]), b"oooo") * 40 + step(HOST_READS),
    step(BYTES, 16, b"this is no frame") + step(FRAME, said(3, 1, b"late")) + step(HOST_READS),
    step(HOST_FRAME, said(3, 1, b"x")) + step(GUEST_READS) + step(HOST_BYTES, 12, b"GET / HTTP/1") + step(HOST_COMES),
    step(HOST_GOES) + step(FRAME, said(3, 1, b"unheard")) + step(HOST_COMES) + step(FRAME, said(3, 1, b"heard")),
    step(ERRORS, 255, b"loud") * 3,
    step(HOST_FRAME, bytes([3, 1, 250]), b"oooo") * 40 + step(HOST_GOES),
)


def run(data: bytes) -> None:
    """Each step begins with a byte that says who does what."""
    with tempfile.TemporaryDirectory(prefix="hourglass-fuzz-") as name:
        here = os.getcwd()
        os.chdir(name)  # where a supervisor keeps what the machine says on its standard error
        try:
            play = _Play(Script(data))
            try:
                play.play()
            finally:
                play.close()
        finally:
            os.chdir(here)


@cache
def _machine() -> int:
    """The process id of what stands for the machine; it ends with this process."""
    process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None

    def end() -> None:
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()

    atexit.register(end)
    return process.pid


class _Play:
    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind("sock")
        self._listener.listen(8)
        self._listener.setblocking(False)
        stdin, to_guest = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        from_guest, stdout = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        errors, stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._guest = (stdin, stdout, stderr)
        self._host: socket.socket | None = None
        host, line = socket.socketpair()
        line.setblocking(False)
        self._hears(host)
        self._relay = Relay("none", self._listener, _machine(), to_guest, from_guest, errors, Client(line))
        self._said = bytearray()
        self._whole = 0
        """How many bytes of what the guest said are whole frames, up to the first that is none."""
        self._broken = False
        self._heard_by_guest = bytearray()

    def play(self) -> None:
        """To the end of the script, and then the machine's."""
        while self._script:
            self._step(self._script.byte() % 9)
            self._turn()
        # Else the relay would wait for this host as long as it does for one that is slow.
        while self._host is not None and self._relay.client is not None and self._relay.client.outgoing:
            self._host_reads()
            self._turn()
        self._relay._last_words()
        self._host_reads()

    def close(self) -> None:
        relay = self._relay
        relay.close()
        relay.selector.close()
        held = (relay.stdin, relay.stdout, relay.stderr, relay.pidfd, relay.stderr_file, relay.alarm, relay.alarm_end)
        for fd in (*self._guest, *held):
            if fd >= 0:
                os.close(fd)
        if self._host is not None:
            self._host.close()

    def _step(self, number: int) -> None:
        script = self._script
        if number in (FRAME, BYTES):
            self._write(self._guest[1], script.frame() if number == FRAME else script.take(script.byte()))
        elif number in (HOST_FRAME, HOST_BYTES):
            self._host_says(script.frame() if number == HOST_FRAME else script.take(script.byte()))
        elif number == HOST_READS:
            self._host_reads()
        elif number == HOST_GOES and self._host is not None:
            self._host.close()
            self._host = None
        elif number == HOST_COMES:
            host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            host.connect("sock")
            if self._host is not None:
                self._host.close()
            self._turn()
            self._hears(host)
        elif number == ERRORS:
            self._write(self._guest[2], script.payload())
        elif number == GUEST_READS:
            self._guest_reads()

    def _hears(self, host: socket.socket) -> None:
        host.setblocking(False)
        self._host = host
        self._received = bytearray()

    def _turn(self) -> None:
        for _ in range(_TURNS):
            self._relay._watch()
            for key, mask in self._relay.selector.select(0):
                self._relay._serve(key.fd, mask)
            self._check()

    def _check(self) -> None:
        relay = self._relay
        assert len(relay.from_guest) < _FRAME + (_READ_ONCE if relay.fault else 0), "it keeps more than a frame"
        assert len(relay.to_guest) < relay_module.HIGH_WATER + _READ_ONCE + _FRAME, "too much waits for the guest"
        if relay.client is not None:
            assert len(relay.client.outgoing) < relay_module.HIGH_WATER + _READ_ONCE + _FRAME, "too much waits there"
            assert len(relay.client.incoming) < _FRAME
        assert os.fstat(relay.stderr_file).st_size <= relay_module.STDERR_BYTES, "the guest's errors fill the disk"
        assert not relay.ended, "it takes the machine for ended"
        assert bool(relay.fault) <= self._broken, "it finds a fault in what is right"

    def _write(self, fd: int, data: bytes) -> None:
        """Write to a pipe of the machine what there is room for, the relay reading meanwhile."""
        for _ in range(2):
            try:
                while data:
                    size = os.write(fd, data)
                    if fd == self._guest[1]:
                        self._note(data[:size])
                    data = data[size:]
            except BlockingIOError:
                self._turn()
            except BrokenPipeError:
                return

    def _note(self, data: bytes) -> None:
        self._said += data
        while not self._broken and len(self._said) - self._whole >= 9:
            kind, _, length = unpack_from(">BLL", self._said, self._whole)
            if not 1 <= kind <= 8 or length > 65536:
                self._broken = True
            elif len(self._said) - self._whole < 9 + length:
                break
            else:
                self._whole += 9 + length

    def _host_says(self, data: bytes) -> None:
        if self._host is None:
            return
        try:
            self._host.send(data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return

    def _host_reads(self) -> None:
        if self._host is None:
            return
        try:
            while data := self._host.recv(1 << 20):
                self._received += data
        except (BlockingIOError, ConnectionResetError):
            pass  # That is all for now.
        # Some run of whole frames, as the guest said them; the last may still be on its way.
        assert self._received in self._said[: self._whole], "a host hears what the guest did not say"
        frames.Decoder().feed(bytes(self._received))

    def _guest_reads(self) -> None:
        try:
            while data := os.read(self._guest[0], 1 << 20):
                self._heard_by_guest += data
        except BlockingIOError:
            pass  # That is all for now.
        frames.Decoder().feed(bytes(self._heard_by_guest))
