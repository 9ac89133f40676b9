"""Stopping a whole guest for a snapshot, and letting it go on: here, or wherever its memory is brought back.

While it is quiet nothing but the agent runs, so memory and files belong together, and who was brought back can be made
itself before any of its programs sees that time has passed.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from contextlib import contextmanager

from actors.guest import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

STOP_S = 2.0
"""How long processes are given to stop; they are asked again and again, since they may start others meanwhile."""
_PAUSE_S = 0.001


class Quiet:
    """Whether the guest is quiet, and what was stopped to make it so. Any thread may ask."""

    def __init__(self, mine: Callable[[], Iterable[int]]) -> None:
        """`mine` tells the processes that may be stopped."""
        self._mine = mine
        self._lock = threading.Condition(threading.Lock())
        self._stopped: set[int] | None = None

    @property
    def kept(self) -> bool:
        """Whether nothing may be started now."""
        return self._stopped is not None

    def begin(self, busy: Callable[[], bool]) -> int:
        """Stop everything; how many were stopped. Raises `OSError` EBUSY where `busy`, ETIME where they don't stop."""
        with self._lock:
            if self._stopped is not None:
                return len(self._stopped)
            if busy():
                raise OSError(errno.EBUSY, "a tool call runs")
            # From here on no call is begun; one that came in between is seen by the second look.
            self._stopped = set()
            try:
                if busy():
                    raise OSError(errno.EBUSY, "a tool call runs")
                self._stop(self._stopped)
            except OSError:
                self._go_on()
                raise
            os.sync()
            return len(self._stopped)

    def end(self) -> int:
        """Let everything go on that was stopped; how many that was. Nothing where the guest is not quiet."""
        with self._lock:
            return self._go_on()

    @contextmanager
    def noisy(self) -> Iterator[None]:
        """Wait until the guest is not quiet, and keep it so: for who signals what may have been stopped here.

        A signal that lets a process go on would otherwise let it run under a snapshot, or as its parent in a fork.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._stopped is None)
            yield

    def _stop(self, stopped: set[int]) -> None:
        deadline = time.monotonic() + STOP_S
        left_alone: set[int] = set()
        while True:
            found = [process for pid in self._mine() if (process := processes.look(pid)) and process.state not in "ZX"]
            running = [process for process in found if process.pid not in left_alone]
            if not stopped:
                # Stopped by somebody else already: it is to stay so.
                left_alone = {process.pid for process in running if process.state in "Tt"}
                running = [process for process in running if process.pid not in left_alone]
            waiting = [process for process in running if process.pid not in stopped or process.state not in "Tt"]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise OSError(errno.ETIME, f"{len(waiting)} processes do not stop")
            for process in waiting:
                stopped.add(process.pid)
                processes.send(process.pid, signal.SIGSTOP)
            time.sleep(_PAUSE_S)

    def _go_on(self) -> int:
        stopped, self._stopped = self._stopped, None
        self._lock.notify_all()
        if not stopped:
            return 0
        # Children first: a shell that asks about its jobs must not find one stopped.
        parents = {pid: process.parent for pid in stopped if (process := processes.look(pid))}
        for pid in sorted(stopped, key=lambda pid: _depth(pid, parents), reverse=True):
            processes.send(pid, signal.SIGCONT)
        return len(stopped)


def _depth(pid: int, parents: Mapping[int, int]) -> int:
    depth = 0
    while pid in parents and depth < len(parents):
        pid, depth = parents[pid], depth + 1
    return depth
