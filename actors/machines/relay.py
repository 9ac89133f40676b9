"""The relay between one machine's standard input, output and error and the host of the moment.

Standard library alone, as for all that a supervisor imports.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time

from actors.guest.frames import HEADER_BYTES, FrameError, header
from actors.machines import cgroups, container
from actors.machines.birth import Birth
from actors.machines.container import Orders

HIGH_WATER = 256 * 1024
"""Bytes that wait for a slow reader before its source is no longer read."""
STDERR_BYTES = 64 * 1024
"""What is kept of the machine's standard error; a hostile guest could write for ever."""
_CHUNK = 256 * 1024
_LAST_WORDS_SECONDS = 2.0
_END_SECONDS = 5.0
_END_PAUSE_SECONDS = 0.05


class Client:
    """One host on the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.incoming = bytearray()
        self.outgoing = bytearray()


def whole_frames(buffer: bytearray) -> int:
    """How many bytes at the start of `buffer` are complete frames; raises `FrameError`."""
    at = 0
    while len(buffer) - at >= HEADER_BYTES:
        length = header(buffer, at)[2]
        if len(buffer) - at < HEADER_BYTES + length:
            break
        at += HEADER_BYTES + length
    return at


class Relay:
    """The relay between one machine and at most one host."""

    def __init__(
        self, group: str, listener: socket.socket, pid: int, stdin: int, stdout: int, stderr: int, client: Client
    ) -> None:
        self.group = group
        self.listener = listener
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.client: Client | None = client
        self.from_guest = bytearray()
        self.to_guest = bytearray()
        self.stderr_room = STDERR_BYTES
        self.stderr_file = os.open("stderr.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self.fault = ""
        self.birth: Birth | None = None
        """What brings the machine to life; None once it has."""
        self.ended = False
        self.end_by = 0.0
        """Until when the machine may take to end; 0 while it is to live."""
        self.alarm, self.alarm_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.selector = selectors.DefaultSelector()
        self._watched: dict[int, int] = {}

    def animate(self, orders: Orders, image: str | None, said: bytes) -> None:
        """Begin to bring the machine to life; the stream may be used at once, and `said` has been said on it."""
        try:
            self.birth = container.animate(orders, self.pid, image)
        except OSError as error:
            self._fail(f"it could not be brought to life: {error}")
        if self.client is not None:
            self._hear(self.client, said)

    def run(self) -> int:
        """Relay until the machine has ended; its exit code, 128 + n for signal n."""
        # `select` goes on waiting after a signal, but not where the signal is something to read.
        signal.set_wakeup_fd(self.alarm_end)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        while not self.ended:
            self._watch()
            for key, mask in self.selector.select(_END_PAUSE_SECONDS if self.end_by else None):
                self._serve(key.fd, mask)
            if self.end_by:
                self._end()
        self._last_words()
        if self.birth is not None and not self._hear_birth() and not self.end_by:
            self.fault = "it ended while it came to life"
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _end(self) -> None:
        """End what runs; again and again, since it may still be starting."""
        # For a guest agent that is not there yet: the end of its stream is its end.
        self._close_stdin()
        for pid in cgroups.processes(self.group):
            cgroups.end_process(pid)
        if self.birth is not None:
            self.birth.cut_short()
        if time.monotonic() > self.end_by:
            cgroups.end_process(self.pid)

    def close(self) -> None:
        """Let go of the host."""
        if self.client is not None:
            self.client.socket.close()
        self.listener.close()

    def _watch(self) -> None:
        """Read only what there is room for, and write only what there is."""
        read, write = selectors.EVENT_READ, selectors.EVENT_WRITE
        client = self.client
        wanted = {self.listener.fileno(): read, self.pidfd: read, self.alarm: read}
        if self.birth is not None:
            wanted[self.birth.fd] = read
        if self.stderr >= 0:
            wanted[self.stderr] = read
        if self.stdout >= 0 and (client is None or len(client.outgoing) < HIGH_WATER):
            wanted[self.stdout] = read
        if self.stdin >= 0 and self.to_guest:
            wanted[self.stdin] = write
        if client is not None:
            mask = (read if len(self.to_guest) < HIGH_WATER else 0) | (write if client.outgoing else 0)
            if mask:
                wanted[client.socket.fileno()] = mask
        for fd in self._watched.keys() - wanted.keys():
            self.selector.unregister(fd)
        for fd, mask in wanted.items():
            if fd not in self._watched:
                self.selector.register(fd, mask)
            elif self._watched[fd] != mask:
                self.selector.modify(fd, mask)
        self._watched = wanted

    def _serve(self, fd: int, mask: int) -> None:
        client = self.client
        if fd not in self._watched:
            return  # Closed by an event before it in this round.
        if fd == self.pidfd:
            self.ended = True
        elif self.birth is not None and fd == self.birth.fd:
            self._hear_birth()
        elif fd == self.alarm:
            os.read(self.alarm, _CHUNK)
            self.end_by = time.monotonic() + _END_SECONDS
        elif fd == self.listener.fileno():
            self._accept()
        elif fd == self.stdout:
            self._read_guest()
        elif fd == self.stderr:
            self._read_stderr()
        elif fd == self.stdin:
            self._write_guest()
        elif client is not None and fd == client.socket.fileno():
            if mask & selectors.EVENT_READ:
                self._read_client(client)
            if mask & selectors.EVENT_WRITE and client is self.client:
                self._write_client(client)

    def _hear_birth(self) -> bool:
        """Whether the machine has come to life, or failed to; where it failed, there is nothing to wait for."""
        assert self.birth is not None
        wrong = self.birth.hear()
        if wrong is None:
            return False
        self._forget(self.birth.fd)
        self.birth.close()
        self.birth = None
        if wrong and not self.end_by:
            self._fail(wrong)
        return True

    def _fail(self, fault: str) -> None:
        self.fault = fault
        self.end_by = time.monotonic() + _END_SECONDS

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self._drop_client()
        connection.setblocking(False)
        self.client = Client(connection)

    def _drop_client(self) -> None:
        if self.client is not None:
            self._forget(self.client.socket.fileno())
            self.client.socket.close()
            self.client = None

    def _forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self.selector.unregister(fd)

    def _read_guest(self) -> bool:
        """Take one piece of what the guest says; False where there is none now."""
        try:
            data = os.read(self.stdout, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._forget(self.stdout)
            os.close(self.stdout)
            self.stdout = -1
            return False
        if self.fault:
            return True
        self.from_guest += data
        try:
            whole = whole_frames(self.from_guest)
        except FrameError as error:
            # A guest that breaks the framing can't be understood again; what it holds is lost either way.
            self._fail(f"the guest agent broke the protocol: {error}")
            return True
        if self.client is not None:
            self.client.outgoing += self.from_guest[:whole]
        del self.from_guest[:whole]
        return True

    def _write_guest(self) -> None:
        try:
            sent = os.write(self.stdin, self.to_guest[:_CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            # The machine is about to end, and the process id will say so.
            self._close_stdin()
            return
        del self.to_guest[:sent]

    def _close_stdin(self) -> None:
        if self.stdin >= 0:
            self._forget(self.stdin)
            os.close(self.stdin)
            self.stdin = -1
            self.to_guest.clear()

    def _read_stderr(self) -> None:
        try:
            data = os.read(self.stderr, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._forget(self.stderr)
            os.close(self.stderr)
            self.stderr = -1
            return
        kept = data[: self.stderr_room]
        self.stderr_room -= os.write(self.stderr_file, kept) if kept else 0

    def _read_client(self, client: Client) -> None:
        try:
            data = client.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except ConnectionError:
            self._drop_client()
            return
        if not data:
            self._drop_client()
            return
        self._hear(client, data)

    def _hear(self, client: Client, data: bytes) -> None:
        """Take what a host says."""
        client.incoming += data
        try:
            whole = whole_frames(client.incoming)
        except FrameError:
            self._drop_client()
            return
        if self.stdin >= 0:
            self.to_guest += client.incoming[:whole]
        del client.incoming[:whole]

    def _write_client(self, client: Client) -> None:
        try:
            sent = client.socket.send(client.outgoing[:_CHUNK])
        except BlockingIOError:
            return
        except ConnectionError:
            self._drop_client()
            return
        del client.outgoing[:sent]

    def _last_words(self) -> None:
        """Pass on what the machine said before it ended, for as long as somebody takes it."""
        while self.stdout >= 0 and self._read_guest():
            pass
        if self.stderr >= 0:
            self._read_stderr()
        if self.client is not None and self.client.outgoing:
            self.client.socket.settimeout(_LAST_WORDS_SECONDS)
            try:
                self.client.socket.sendall(self.client.outgoing)
            except OSError:
                self._drop_client()
