"""The persistent `/bin/bash` of a sandbox, and one command in it.

A command goes to the shell's standard input in braces, followed by a `printf` of a mark and the exit status; what the
shell prints up to the mark is the result. Working directory, variables and jobs live on from call to call. All of it
shows in what the agent reads (line numbers in bash's messages, the last 100 KiB, what an unfinished quote does), so it
is as the SDK does it (contract §12). Ours alone: what a command started is ended with it; an exit of the shell is
seen at once though a job holds its output open; interrupts; and a command that asks for `set -x` keeps its status.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import threading
import time

from actors.guest import interpreter, processes
from actors.guest.errors import Stopped
from actors.guest.marks import Tail, mark_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.guest.processes import Child, Children

OUTPUT_LIMIT = 100 * 1024
"""Bytes of output that a result keeps: the last ones."""
INTERRUPT_GRACE_S = 2.0
"""From SIGINT to SIGKILL."""
LAST_WORDS_S = 0.1
"""How long output is awaited from a shell that ended."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# Where none of these is in a command, nothing comes after the program that an interrupt ends. (After `&&` nothing comes
# either, unless the program calls its interruption a success.)
_COMPOUND = re.compile(r"[;\n`({]|\|\||(?<![<>&])&(?![>&])")
_READ_BYTES = 256 * 1024


class ShellGone(Exception):
    """Raised when the shell has ended before the command was given to it."""


class CommandTimeout(Exception):
    """Raised when a command ran longer than it asked for; the shell is gone with it."""


class Control:
    """How others reach a command while it runs. Any thread may set the fields, then `Shell.poke`."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        """Monotonic seconds; past it `Stopped` is raised."""
        self.interrupted = False
        self.stopped = False
        """The call is to end now."""


class Shell:
    """One shell process. `run` is called by one thread at a time."""

    def __init__(self, children: Children, workdir: str, env: Mapping[str, str]) -> None:
        """Start it. Raises `OSError` where the working directory or bash is missing."""
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stdin, self._stdin = os.pipe2(os.O_CLOEXEC)
        self._stdout, stdout = os.pipe2(os.O_CLOEXEC)
        self._open = [self._wake_read, self._wake_write, self._stdin, self._stdout]
        # A descriptor that was closed may be another file's by now: nobody may write to it then.
        self._closing = threading.Lock()
        try:
            self._child: Child = children.spawn(
                [*interpreter.bash(), "--noprofile", "--norc"],
                env={**env, "PS1": "", "PS2": "", "TERM": "dumb"},
                stdin=stdin,
                stdout=stdout,
                stderr=stdout,
                cwd=workdir,
                on_exit=self.poke,
            )
        except BaseException:
            self.close()
            raise
        finally:
            os.close(stdin)
            os.close(stdout)
        # Four times the usual, so that a flood of output costs fewer turns.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, _READ_BYTES)
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        self.pid = self._child.pid
        self.verdict = ""
        """Set by whoever ended processes of the shell for breaking a limit: why."""
        self.condemned = False
        """Set before the verdict where the shell was among them."""

    @property
    def closed(self) -> bool:
        """Whether the shell has ended or was let go of."""
        return not self._open or self._child.status is not None

    def poke(self) -> None:
        """Let `run` look around: any thread, any time."""
        with self._closing:
            try:
                if self._open:
                    os.write(self._wake_write, b"\0")
            except BlockingIOError:
                # Full: a wake-up is on its way already.
                return

    def run(
        self, command: str, *, seconds: float, name: str, control: Control, on_output: Callable[[bytes], None]
    ) -> tuple[str, int, int]:
        """Run one command; (text, exit status, bytes printed). Status -1 where the shell ended before telling.

        `seconds` is what the command may take (`CommandTimeout`); `control.deadline` what the call may (`Stopped`).
        `name` makes the mark. Raises `ShellGone` where the shell ended earlier.
        """
        if self.closed:
            raise ShellGone
        mark = mark_for(name)
        text = f"{{ {command}\n}} </dev/null 2>&1; printf '\\n{mark[:8]}''{mark[8:]}%d\\n' $?\n"
        started = processes.pids()
        tail = Tail(mark.encode(), OUTPUT_LIMIT, on_output)
        try:
            self._converse(text.encode(), tail, time.monotonic() + seconds, control, command, started)
        except (CommandTimeout, Stopped):
            self.kill(started)
            raise
        return self._result(tail)

    def _converse(
        self, text: bytes, tail: Tail, until: float, control: Control, command: str, started: set[int]
    ) -> None:
        """Write the command, read until the mark or the end of the shell."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._stdin, select.POLLOUT)
        rest = memoryview(text)
        interruption = _Interruption(self, command, started)
        while not tail.complete:
            now = time.monotonic()
            if control.stopped or now >= control.deadline:
                raise Stopped
            if now >= until:
                raise CommandTimeout
            if control.interrupted and interruption.over(now):
                return
            limits = [until - now, control.deadline - now]
            if interruption.begun:
                limits.append(0.05)
            if self._child.status is not None:
                limits.append(LAST_WORDS_S)
            ready = dict(poll.poll(max(0, min(*limits, 3600.0)) * 1000 + 1))
            if self._wake_read in ready:
                _drain(self._wake_read)
            if ready.get(self._stdin, 0) and rest:
                rest = self._write(rest, poll)
            if self._stdout in ready:
                over = not self._read(tail)
            else:
                over = self._child.status is not None and self._stdout not in dict(poll.poll(LAST_WORDS_S * 1000))
            if over:
                interruption.wait_over()
                # Its output ends a moment before it does; the next command must find it gone.
                self._child.ended.wait(LAST_WORDS_S)
                return

    def _write(self, rest: memoryview, poll: select.poll) -> memoryview:
        try:
            rest = rest[os.write(self._stdin, rest[:_READ_BYTES]) :]
        except BlockingIOError:
            return rest
        except BrokenPipeError:
            # The shell is ending; what it still says is read until its output ends.
            rest = rest[:0]
        if not rest:
            poll.unregister(self._stdin)
        return rest

    def _read(self, tail: Tail) -> bool:
        """Take what there is; False at the end of the output."""
        try:
            chunk = os.read(self._stdout, _READ_BYTES)
        except BlockingIOError:
            return True
        tail.feed(chunk)
        return bool(chunk)

    def _result(self, tail: Tail) -> tuple[str, int, int]:
        tail.flush()
        text = _ANSI.sub("", tail.kept.decode(errors="replace"))
        if not tail.complete:
            return text.strip(), -1, tail.total
        out = _ANSI.sub("", tail.output.decode(errors="replace")).rstrip("\n")
        if tail.truncated:
            out = "[output truncated]\n" + out
        return out, tail.status, tail.total

    def kill(self, before: set[int] | None = None) -> None:
        """End the shell, and what it started since `before`; without it, the jobs that it left behind go on."""
        if self._child.status is None:
            processes.send(self.pid, signal.SIGKILL)
        if before is not None:
            processes.end_offspring(self.pid, before)
        self.close()

    def close(self) -> None:
        """Let go of the pipes."""
        with self._closing:
            held, self._open = self._open, []
            for fd in held:
                os.close(fd)


class _Interruption:
    """SIGINT, two seconds, SIGKILL.

    A shell that reads a script goes on with the next command when a signal ended the last. So the shell survives only
    where nothing can follow in the interrupted command; else it is ended first, and then what it started.
    """

    def __init__(self, shell: Shell, command: str, before: set[int]) -> None:
        self.begun = False
        self._shell = shell
        self._before = before
        self._spare_shell = _COMPOUND.search(command.rstrip()) is None
        self._until = 0.0

    def wait_over(self) -> None:
        """The shell is gone: see to the rest of what the interrupted command started."""
        while self.begun and not self.over(time.monotonic()):
            time.sleep(0.02)

    def over(self, now: float) -> bool:
        """To be asked again and again; True once everything was ended and nothing more will be printed."""
        if not self.begun:
            self.begun = True
            self._until = now + INTERRUPT_GRACE_S
            targets = processes.offspring(self._shell.pid, self._before)
            if not (self._spare_shell and targets):
                processes.send(self._shell.pid, signal.SIGKILL)
            for process in targets:
                processes.send(process.pid, signal.SIGINT)
            return False
        gone = self._shell.closed and not any(
            process.state not in "ZX" for process in processes.offspring(self._shell.pid, self._before)
        )
        if gone or now >= self._until:
            self._shell.kill(self._before)
            return True
        return False


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        return
