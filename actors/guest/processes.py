"""The processes of the guest: starting and reaping children, looking at the others, ending them.

The agent is PID 1, so every orphan becomes its child: `Children.reap` collects whatever ended and hands the status to
whoever waits for it. The `subprocess` module would compete for those statuses, and costs start time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PATIENCE_S = 5.0
"""How long ending the processes of one command is tried."""
BOMB_PATIENCE_S = 20.0
"""How long ending a fork bomb is tried: under gVisor, on two cores with nothing else to do, it takes one to five."""
BURST_S = 0.02
"""How long a group is killed between two rounds of reaping."""
REAP_MOST = 16
"""Children that are reaped in one go."""


_DEFAULTS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM)
"""Python ignores SIGPIPE and PID 1 more; the programs must not inherit that."""
_TERMINAL_DEFAULTS = (*_DEFAULTS, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


class Child:
    """One child of ours, until it ended and long after."""

    def __init__(self, pid: int, on_exit: Callable[[], None] | None) -> None:
        self.pid = pid
        self.status: int | None = None
        """As `os.waitpid` gives it; None while it runs."""
        self.ended = threading.Event()
        self._on_exit = on_exit

    def end(self, status: int) -> None:
        """Its status is known."""
        self.status = status
        self.ended.set()
        if self._on_exit:
            self._on_exit()

    @property
    def exit_code(self) -> int:
        """The exit code, or minus the signal that ended it. Only after `ended`."""
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)


class Children:
    """The children of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, Child] = {}

    def spawn(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        cwd: str,
        on_exit: Callable[[], None] | None = None,
    ) -> Child:
        """Start a program in a session of its own; the three descriptors must be 3 or above and are not closed here.

        Raises `OSError` where `cwd` or the program is missing.
        """
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate((stdin, stdout, stderr))]
        return self._spawn(argv[0], argv, env, actions, cwd, _DEFAULTS, on_exit)

    def spawn_visitor(
        self,
        program: str,
        argv: list[str],
        *,
        env: Mapping[str, str],
        files: tuple[int, int, int] | str,
        cwd: str,
        on_exit: Callable[[], None],
    ) -> Child:
        """As `spawn`, with every signal as a login gives it; `files` may be a terminal's path, which it then controls.

        Raises `OSError`.
        """
        actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
        if isinstance(files, str):
            # The first terminal that the leader of a session opens is the session's.
            actions.append((os.POSIX_SPAWN_OPEN, 0, files, os.O_RDWR, 0))
            files = (0, 0, 0)
        actions += [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(files) if fd != target]
        return self._spawn(program, argv, env, actions, cwd, _TERMINAL_DEFAULTS, on_exit)

    def _spawn(
        self,
        program: str,
        argv: list[str],
        env: Mapping[str, str],
        actions: Sequence[tuple[object, ...]],
        cwd: str,
        defaults: tuple[signal.Signals, ...],
        on_exit: Callable[[], None] | None,
    ) -> Child:
        # Under the lock, so that a child that ends at once is known before it is reaped.
        with self._lock:
            # The whole process changes folder: every other path that the agent uses is absolute.
            os.chdir(cwd)
            pid = os.posix_spawn(
                program, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=defaults
            )
            child = self._running[pid] = Child(pid, on_exit)
        return child

    def reap(self) -> bool:
        """Collect what ended; True where there may be more. (A fork bomb leaves more than can ever be collected.)"""
        with self._lock:
            ended, more = self._collect()
        for child, status in ended:
            child.end(status)
        return more

    def _collect(self) -> tuple[list[tuple[Child, int]], bool]:
        ended: list[tuple[Child, int]] = []
        for _ in range(REAP_MOST):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended, False
            if pid == 0:
                return ended, False
            if child := self._running.pop(pid, None):
                ended.append((child, status))
        return ended, True

    def end_group(self, group: int) -> None:
        """SIGKILL a process group until there is none. Group 1 makes it `kill(-1)`: everything but this process.

        One signal to the whole group, again and again: under gVisor a child forked while the signal is on its way
        escapes it, and killing one by one loses the race against a fork bomb (273 were ended in four seconds, and 647
        were left). No other thread gets its turn meanwhile, since each turn takes long where hundreds of processes
        want one: with turns taken, a bomb that a single thread ends in five seconds was not ended in sixty. The dead
        count as members until they are reaped, a few between two signals.
        """
        deadline = time.monotonic() + BOMB_PATIENCE_S
        ended: list[tuple[Child, int]] = []
        turn = sys.getswitchinterval()
        with self._lock:
            try:
                sys.setswitchinterval(BOMB_PATIENCE_S)
                while time.monotonic() < deadline and _burst(group):
                    ended += self._collect()[0]
                    if group == 1 and len(pids()) == 1:
                        break
            finally:
                sys.setswitchinterval(turn)
        for child, status in ended:
            child.end(status)


def _burst(group: int) -> bool:
    """Kill a group as often as can be for a moment; False where it has no member.

    A process that forks again and again is nearly always within a fork, which it completes before it dies: the child
    must be killed before it has had a turn.
    """
    until = time.monotonic() + BURST_S
    while time.monotonic() < until:
        try:
            os.kill(-group, signal.SIGKILL)
        except ProcessLookupError:
            return False
    return True


class Process:
    """A line of /proc/PID/stat: enough to tell whose child it is and what it costs."""

    __slots__ = ("group", "name", "parent", "pid", "rss_pages", "session", "state", "threads")

    def __init__(self, pid: int, name: str, fields: list[str]) -> None:
        self.pid = pid
        self.name = name
        self.state = fields[0]
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.session = int(fields[3])
        self.threads = int(fields[17])
        self.rss_pages = int(fields[21])


def pids() -> set[int]:
    """Every process there is."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def look(pid: int) -> Process | None:
    """One process; None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read(4096).decode(errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    return Process(pid, head.partition("(")[2], tail.split())


def offspring(shell: int, before: set[int]) -> list[Process]:
    """What a shell started since `before` was taken, however deep: its descendants, and the orphans of its session.

    Not among them: the shell, and whatever a process of `before` started.
    """
    fresh = {pid: process for pid in pids() - before - {shell} if (process := look(pid))}
    return [process for process in fresh.values() if _belongs(process, fresh, shell, before)]


def _belongs(process: Process, fresh: Mapping[int, Process], shell: int, before: set[int]) -> bool:
    seen = set()
    while process.parent in fresh and process.pid not in seen:
        seen.add(process.pid)
        process = fresh[process.parent]
    return process.parent == shell or (
        process.session == shell and (process.parent == 1 or process.parent not in before)
    )


def send(pid: int, number: int) -> None:
    """Signal a process, or with a negative pid a group; one that is gone is no error."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def end_offspring(shell: int, before: set[int]) -> None:
    """SIGKILL what the shell started since `before`, again and again until nothing of it is left alive."""
    deadline = time.monotonic() + PATIENCE_S
    while alive := [process for process in offspring(shell, before) if process.state not in "ZX"]:
        for process in alive:
            send(process.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)
