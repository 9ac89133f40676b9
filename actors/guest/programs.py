"""Programs that run beside the tool calls, for a person or another program: each on a channel of its own.

Unlike a tool call, one belongs to whoever asked for it: when the channel is void, it is hung up. What it prints waits
in its pipe, and the program with it, until the host gave credit. The channel carries standard input towards it; what
comes back begins with a byte that says what it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import select
import signal
import termios
import threading
import time
from struct import pack

from actors.guest import interpreter, processes
from actors.guest.channel import ChannelVoid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.guest.channel import Channel
    from actors.guest.processes import Child, Children
    from actors.guest.quiet import Quiet

BEGUN = b"b"
STDOUT = b"o"
STDERR = b"e"
EXIT = b"x"
"""First byte of every DATA frame to the host: it runs; what it prints; JSON `{"exit_code"}`."""

HANG_UP_S = 1.0
"""From SIGHUP to SIGKILL, not counting what a snapshot takes in between."""
LAST_WORDS_S = 0.1
"""How long output is awaited from what a program that ended has left behind."""
_READ_BYTES = 64 * 1024
_LOOK_S = 0.02
"""How often one that was hung up is looked after."""
_STUCK_MS = 500
"""How often a program that does not read its input is looked after."""
_END_OF_INPUT = b"\x04"


class Programs:
    """All programs that run. Any thread may ask."""

    def __init__(
        self, children: Children, workdir: str, env: Mapping[str, str], quiet: Quiet, on_start: Callable[[], None]
    ) -> None:
        self._children = children
        self._workdir = workdir
        self._env = env
        self._quiet = quiet
        self._on_start = on_start
        self._running: dict[str, Program] = {}

    @property
    def running(self) -> bool:
        """Whether there is one."""
        return bool(self._running)

    @property
    def pids(self) -> set[int]:
        """Of those that run; each leads a session."""
        return {program.child.pid for program in list(self._running.values())}

    def serve(self, channel: Channel) -> None:
        """Run the program that a channel asks for, and give it its input. Raises `OSError` where it can't be started.

        `{process_id, argv, cwd, env, terminal}`: `terminal` is `[rows, columns]`, or null for pipes.
        """
        params = channel.params
        argv, env, size = params["argv"], params["env"], params["terminal"]
        if not isinstance(argv, list) or not argv or not isinstance(env, dict):
            raise ValueError("no command")
        cwd = os.path.join(self._workdir, str(params["cwd"]))
        if not os.path.isdir(cwd):
            raise OSError(errno.ENOTDIR, "no such folder")
        whole = {**self._env, **{str(name): str(value) for name, value in env.items()}}
        if not size:
            whole.pop("TERM", None)
        words = [str(word) for word in argv]
        if words[0] == interpreter.BASH:
            words[:1] = interpreter.bash()
        path = find(words[0], whole.get("PATH", ""), cwd)
        terminal = _size(size) if size else None
        program = Program(channel, self._children, self._quiet, path, words, whole, cwd, terminal)
        process_id = str(params["process_id"])
        self._running[process_id] = program
        try:
            # Who watches goes by what runs: started any earlier, it would see nothing and end.
            self._on_start()
            program.converse()
        finally:
            del self._running[process_id]

    def resize(self, channel: Channel) -> None:
        """`{process_id, rows, columns}`; no error where it has ended."""
        if program := self._running.get(str(channel.params["process_id"])):
            program.resize(*_size([channel.params["rows"], channel.params["columns"]]))
        channel.send(b"", last=True)

    def signal(self, channel: Channel) -> None:
        """`{process_id, signal}`: to its process group; no error where it has ended."""
        number = signal.Signals(int(str(channel.params["signal"])))
        if program := self._running.get(str(channel.params["process_id"])):
            program.signal(number)
        channel.send(b"", last=True)

    def close(self) -> None:
        """End all of them now: for an agent that is not PID 1."""
        for pid in self.pids:
            processes.send(-pid, signal.SIGKILL)


def find(name: str, path: str, cwd: str) -> str:
    """The file of a program, as `execvp` finds it. Raises `FileNotFoundError`, `PermissionError`."""
    folders = [""] if "/" in name else path.split(":")
    denied = False
    for folder in folders:
        candidate = os.path.join(cwd, folder, name)
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            denied = True
    if denied:
        raise PermissionError(errno.EACCES, "not executable")
    raise FileNotFoundError(errno.ENOENT, "no such program")


class Program:
    """One of them. Its output has a thread of its own, which ends it; its input has the thread that made it."""

    def __init__(
        self,
        channel: Channel,
        children: Children,
        quiet: Quiet,
        path: str,
        argv: list[str],
        env: Mapping[str, str],
        cwd: str,
        size: tuple[int, int] | None,
    ) -> None:
        """Start it. Raises `OSError`."""
        self._channel = channel
        self._quiet = quiet
        self._lock = threading.Lock()
        self._hung_up = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        held = [self._wake_read, self._wake_write]
        theirs: list[int] = []
        self._terminal = -1
        self._terminal_path = ""
        try:
            if size is None:
                pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
                held += [fd for pipe in pipes for fd in pipe]
                theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
                self._input = pipes[0][1]
                self._outputs = {pipes[1][0]: STDOUT, pipes[2][0]: STDERR}
                files: tuple[int, int, int] | str = (theirs[0], theirs[1], theirs[2])
            else:
                self._terminal, theirs_too = os.openpty()
                theirs = [theirs_too]
                held += [self._terminal, theirs_too]
                self._input = fcntl.fcntl(self._terminal, fcntl.F_DUPFD_CLOEXEC, 10)
                held.append(self._input)
                self._outputs = {self._terminal: STDOUT}
                files = self._terminal_path = os.ttyname(theirs_too)
                fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, pack("HHHH", *size, 0, 0))
            self.child: Child = children.spawn_visitor(path, argv, env=env, files=files, cwd=cwd, on_exit=self._wake)
        except BaseException:
            for fd in held:
                os.close(fd)
            raise
        for fd in theirs:
            os.close(fd)
        os.set_blocking(self._input, False)
        for fd in self._outputs:
            os.set_blocking(fd, False)

    def converse(self) -> None:
        """Carry input and output until it has ended and all is said, or nobody listens any more."""
        output = threading.Thread(target=self._print, name="output", daemon=True)
        try:
            self._channel.watch(self._hang_up_soon)
            self._channel.send(BEGUN, BEGUN)
            output.start()
            self._feed()
        except ChannelVoid:
            self._hang_up_soon()
        finally:
            os.close(self._input)
            if output.ident is not None:
                output.join()
            else:
                self._let_go()

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size; nothing where it has none."""
        with self._lock:
            if self._terminal < 0:
                return
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, pack("HHHH", rows, columns, 0, 0))
        # gVisor's kernel keeps the size and tells nobody. Whom it is nothing to does not notice.
        for pid in session_of(self.child.pid):
            processes.send(pid, signal.SIGWINCH)

    def signal(self, number: int) -> None:
        """Signal its process group."""
        with self._quiet.noisy():
            if self.child.status is None:
                processes.send(-self.child.pid, number)

    # --- input ---

    def _feed(self) -> None:
        while data := self._channel.take():
            if not self._write(data):
                # Nobody reads any more; what still comes is taken, so that its end is seen.
                while self._channel.take():
                    pass
                return
        if self._terminal >= 0:
            self._write(_END_OF_INPUT)

    def _write(self, data: bytes) -> bool:
        """Write all of it; False where nobody will read it."""
        rest = memoryview(data)
        poll = select.poll()
        poll.register(self._input, select.POLLOUT)
        while rest:
            try:
                rest = rest[os.write(self._input, rest) :]
            except BlockingIOError:
                poll.poll(_STUCK_MS)
                if self._hung_up or self.child.status is not None:
                    return False
            except OSError:
                return False
        return True

    # --- output ---

    def _wake(self) -> None:
        with self._lock:
            if self._wake_write >= 0:
                # Full: it will look anyhow.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_write, b"\0")

    def _print(self) -> None:
        """Send what it prints, then how it ended."""
        try:
            self._send_output()
            self.child.ended.wait()
            code = self.child.exit_code
            said = {"exit_code": code if code >= 0 else 128 - code}
            self._channel.on_void = None
            self._channel.send(json.dumps(said).encode(), EXIT, last=True)
        except ChannelVoid:
            self._hang_up_soon()
        finally:
            self._let_go()

    def _send_output(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        outputs = dict(self._outputs)
        for fd in outputs:
            poll.register(fd, select.POLLIN)
        while outputs:
            over = self.child.status is not None
            ready = [fd for fd, _ in poll.poll(LAST_WORDS_S * 1000 if over else None)]
            if over and not set(ready) - {self._wake_read}:
                return
            for fd in ready:
                if fd == self._wake_read:
                    os.read(fd, 4096)
                elif not self._copy(fd, outputs[fd]):
                    poll.unregister(fd)
                    del outputs[fd]

    def _copy(self, fd: int, tag: bytes) -> bool:
        """Send one piece, once there is room for it; False at the end. Raises `ChannelVoid`."""
        self._channel.wait_room()
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            # A terminal that nobody holds open any more.
            return False
        self._channel.send(data, tag)
        return bool(data)

    def _let_go(self) -> None:
        with self._lock:
            held = {self._wake_read, self._wake_write, *self._outputs}
            self._wake_write = self._terminal = -1
            for fd in held:
                os.close(fd)

    # --- the end ---

    def _hang_up_soon(self) -> None:
        with self._lock:
            # What one that ended by itself left running is to go on.
            if self._hung_up or self.child.status is not None:
                return
            self._hung_up = True
        threading.Thread(target=self._hang_up, name="hang-up", daemon=True).start()

    def _hang_up(self) -> None:
        """End it as a terminal that goes away does; what insists is killed. What let go of the terminal goes on."""
        with self._quiet.noisy():
            for pid in session_of(self.child.pid):
                processes.send(pid, signal.SIGHUP)
                processes.send(pid, signal.SIGCONT)
        # Looks are counted, not time: one that is held for a snapshot meanwhile gets all of it.
        for look in itertools.count(1):
            time.sleep(_LOOK_S)
            with self._quiet.noisy():
                insisting = self._insisting()
                if not insisting:
                    return
                if look * _LOOK_S >= HANG_UP_S:
                    for pid in insisting:
                        processes.send(pid, signal.SIGKILL)

    def _insisting(self) -> list[int]:
        """What is alive of its process group, and what has its terminal open still."""
        found = (processes.look(pid) for pid in session_of(self.child.pid))
        return [
            process.pid
            for process in found
            if process and process.state not in "ZX" and (process.group == self.child.pid or self._has_open(process))
        ]

    def _has_open(self, process: processes.Process) -> bool:
        if not self._terminal_path:
            return False
        for fd in range(3):
            try:
                if os.readlink(f"/proc/{process.pid}/fd/{fd}") == self._terminal_path:
                    return True
            except OSError:
                continue
        return False


def session_of(leader: int) -> list[int]:
    """Every process of a session."""
    found = (processes.look(pid) for pid in processes.pids())
    return [process.pid for process in found if process and process.session == leader]


def _size(given: object) -> tuple[int, int]:
    if not isinstance(given, list) or len(given) != 2:
        raise ValueError("no size of a terminal")
    rows, columns = (int(str(value)) for value in given)
    if not (0 < rows < 65536 and 0 < columns < 65536):
        raise ValueError("no size of a terminal")
    return rows, columns
