"""The supervisor: a small process for each machine, which holds the machine's stdio and outlives its host.

Standard library alone; a fork of the nursery (`actors.machines.nursery`), in the machine's folder. It reads
`orders.json` (`Orders` in `actors.machines.container`), creates the container, and says `created` or `error …` on its
line to the host. Then it waits for one JSON object on a line, `{"image": folder or null}`, brings the container to life
by it, and from then on the line is the first host's end of the guest's stream. Later hosts connect to the unix socket
`sock`.

- Only whole frames pass, in both directions, so a host may come and go at any byte.
- One host at a time: a new one takes the place of the old.
- With no host there, what the guest says is dropped, so the guest never blocks on an absent reader. The guest agent
  knows what to keep (see `actors.guest.agent`).
- While it lives it holds a lock on the file `lock`, from which anybody can learn its process id, and that it lives.
- A container whose host is gone before the order is removed, folders and all.
- SIGTERM ends the machine at once, also one that is still being started.
- When the machine ends, it clears up and writes `exit.json`, then lets go of the host and of the lock.

It dies with nobody: own session, and a parent that has ended already.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import selectors
import signal
import socket
import time

from actors.guest.frames import HEADER_BYTES, FrameError, header
from actors.machines import cgroups, container
from actors.machines.container import Orders, clear_up

HIGH_WATER = 1024 * 1024
"""Bytes that wait for a slow reader before its source is no longer read."""
STDERR_BYTES = 64 * 1024
"""What is kept of the machine's standard error; a hostile guest could write for ever."""
_CHUNK = 256 * 1024
_LAST_WORDS_SECONDS = 2.0
_END_SECONDS = 5.0
_END_PAUSE_SECONDS = 0.05
_ORDER_BYTES = 65536
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h


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


class Supervisor:
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
        self.command = 0
        """The process that brings the machine to life; 0 once it has."""
        self.command_end = -1
        self.ended = False
        self.end_by = 0.0
        """Until when the machine may take to end; 0 while it is to live."""
        self.alarm, self.alarm_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.selector = selectors.DefaultSelector()
        self._watched: dict[int, int] = {}

    def animate(self, orders: Orders, image: str | None, said: bytes) -> None:
        """Begin to bring the machine to life; the stream may be used at once, and `said` has been said on it."""
        self.command = container.animate(orders, image)
        self.command_end = os.pidfd_open(self.command)
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
        if self.command:
            self._command_done()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _end(self) -> None:
        """End what runs; again and again, since it may still be starting."""
        # For a guest agent that is not there yet: the end of its stream is its end.
        self._close_stdin()
        for pid in cgroups.processes(self.group):
            cgroups.end_process(pid)
        if self.command:
            cgroups.end_process(self.command)
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
        if self.command:
            wanted[self.command_end] = read
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
        elif fd == self.command_end:
            self._forget(fd)
            self._command_done()
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

    def _command_done(self) -> None:
        """The command that brings the machine to life is done; where it failed, there is nothing to wait for."""
        _, status = os.waitpid(self.command, 0)
        self.command = 0
        os.close(self.command_end)
        code = os.waitstatus_to_exitcode(status)
        if code != 0 and not self.end_by:
            self.fault = f"runsc failed with exit code {code}: {container.last_words()}"
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
            self.fault = f"the guest agent broke the protocol: {error}"
            self.end_by = time.monotonic() + _END_SECONDS
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


def write_exit(code: int, fault: str, oom: bool) -> None:
    """Say how the machine ended, all at once or not at all."""
    reason = "exited"
    if os.path.exists("killed"):
        reason = "killed"
    elif oom:
        reason = "out_of_memory"
    with open("exit.json.new", "w", encoding="utf-8") as file:
        json.dump({"reason": reason, "exit_code": code, "detail": fault, "ended_at": time.time()}, file)
    os.replace("exit.json.new", "exit.json")


def supervise(orders: Orders, line: socket.socket) -> None:
    """The life of one container, and of the machine that it may become."""
    # Who finds us by the lock may end us by a signal; it is to find a machine that we can end.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # A record lock: others can ask the kernel who holds it, and it goes when we do.
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("sock")
    listener.listen(8)
    listener.setblocking(False)
    # The sandbox is a grandchild whose parent ends at once: so it becomes our child, and we hear how it ends.
    _libc().prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        pid, stdin, stdout, stderr = container.create(orders)
    except (OSError, ValueError) as error:
        clear_up(orders)
        line.sendall(f"error {error}\n".encode())
        return
    order, rest = _wait_for_order(pid, line)
    if order is None:
        clear_up(orders)
        container.discard(orders)
        return
    line.setblocking(False)
    supervisor = Supervisor(str(orders["group"]), listener, pid, stdin, stdout, stderr, Client(line))
    supervisor.animate(orders, order["image"], rest)
    code = supervisor.run()
    oom = cgroups.oom_kills(str(orders["group"])) > 0
    try:
        clear_up(orders)
    except OSError as error:
        supervisor.fault = supervisor.fault or f"could not clear up: {error}"
    write_exit(code, supervisor.fault, oom)
    supervisor.close()


def _wait_for_order(pid: int, line: socket.socket) -> tuple[dict[str, str | None] | None, bytes]:
    """The order, and what came after it; None where it will not come, or the container is gone before."""
    said = b""
    try:
        line.sendall(b"created\n")
    except OSError:
        return None, b""
    waiting = selectors.DefaultSelector()
    sandbox = os.pidfd_open(pid)
    waiting.register(line, selectors.EVENT_READ)
    waiting.register(sandbox, selectors.EVENT_READ)
    while b"\n" not in said:
        if any(key.fd == sandbox for key, _ in waiting.select()):
            return None, b""
        data = line.recv(_ORDER_BYTES)
        if not data:
            return None, b""
        said += data
    os.close(sandbox)
    order, _, rest = said.partition(b"\n")
    told: dict[str, str | None] = json.loads(order)
    return told, rest


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def main(line: socket.socket) -> None:
    """Supervise the machine of the working directory."""
    try:
        supervise(container.load_orders(), line)
    except OSError as error:
        line.sendall(f"error {error}\n".encode())
