"""Keeps what tools start from taking the whole machine: a watch on the number of processes and on memory.

The kernels that we run on don't do it for us. gVisor (release 20240729) has a `pids` controller, but charges one
hierarchy of seven, drawn by chance, so a fork bomb passes it; it knows no RLIMIT_NPROC; and reaching the memory limit
of the machine ends the machine. RLIMIT_AS would keep Node and Java from starting. So: look, and end the offender.
Looks only while a call runs or something that one started is alive; an idle machine is not woken.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from actors.guest import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.guest.toolbox import Toolbox

LOOK_S = 0.1
"""Between two looks while a call runs; a bomb makes about 30 processes meanwhile under gVisor."""
IDLE_LOOK_S = 0.5
"""Between two looks at what earlier calls left running."""
ALARMED_LOOK_S = 0.03
"""Between two looks once there are more than a quarter as many processes as may be."""
LATE_S = 0.5
LATE_LOOKS = 3
"""So many looks in a row that came half a second late, with more than half of the processes that may be: a bomb that is
too slow to reach the limit, since nothing gets its turn any more."""
MEMORY_SLACK = 128 << 20
MEMORY_SHARE = 0.15
"""Memory that is kept free of tools, whichever is more: the kernel of a machine needs it, and a look comes late."""


class Limits:
    """What the tools of this machine may use; 0: as much as there is."""

    def __init__(self, processes: int = 0, memory_bytes: int = 0) -> None:
        self.processes = processes
        self.memory_bytes = memory_bytes


class Guard:
    """The watch, in a thread of its own."""

    def __init__(
        self, toolbox: Toolbox, children: processes.Children, busy: Callable[[], bool], *, whole_machine: bool
    ) -> None:
        """`whole_machine`: every process but this one is a tool's; else only those of the shell's session are."""
        self.limits = Limits()
        self._toolbox = toolbox
        self._children = children
        self._busy = busy
        self._whole = whole_machine
        self._go = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """A call begins."""
        if not (self.limits.processes or self.limits.memory_bytes):
            return
        self._go.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_watch, name="guard", daemon=True)
            self._thread.start()

    def _keep_watch(self) -> None:
        late = 0
        while True:
            self._go.wait()
            busy = self._busy()
            began = time.monotonic()
            count = self._look(late)
            if not busy and not self._busy() and count <= 1:
                # The shell alone is left, and it does nothing by itself.
                self._go.clear()
                if self._busy():
                    self._go.set()
                continue
            alarmed = self.limits.processes and count > self.limits.processes // 4
            pause = ALARMED_LOOK_S if alarmed else LOOK_S if busy else IDLE_LOOK_S
            time.sleep(pause)
            late = late + 1 if time.monotonic() - began > pause + LATE_S else 0

    def _look(self, late: int) -> int:
        """One look, after so many that came too late; how many threads the tools have."""
        if self._whole:
            from actors.guest import census

            count, memory = census.take()
            count -= threading.active_count()
        else:
            count, memory = sum(process.threads for process in self._tools()), 0
        limit = self.limits.processes
        if limit and count > limit:
            self._end_all(f"process limit ({limit}) reached")
        elif limit and self._whole and late >= LATE_LOOKS and count > limit // 2:
            self._end_all(f"{count} processes kept the machine from answering")
        elif self.limits.memory_bytes and memory > self._allowed():
            self._too_much_memory(count)
        return count

    def _tools(self) -> list[processes.Process]:
        """Every process that a tool started."""
        found = [process for pid in processes.pids() - {os.getpid()} if (process := processes.look(pid))]
        if self._whole:
            return found
        shell = self._toolbox.shell
        return [process for process in found if shell and process.session == shell.pid]

    def _end_all(self, why: str) -> None:
        said = f"bash: {why}: the shell and all that it started were ended; the next command gets a new shell"
        # Held until they are gone, so that no new shell is made among them, to be counted and ended with them.
        with self._toolbox.lock:
            shell = self._toolbox.shell
            if shell:
                shell.condemned = True
                shell.verdict = said
                self._children.end_group(shell.pid)
            else:
                self._toolbox.notice = said
            if self._whole and len(processes.pids()) > self.limits.processes // 2:
                # Something that left the shell's process group. Group 1 makes it `kill(-1)`: all but this process.
                self._children.end_group(1)

    def _allowed(self) -> int:
        limit = self.limits.memory_bytes
        return limit - max(MEMORY_SLACK, int(limit * MEMORY_SHARE))

    def _too_much_memory(self, count: int) -> None:
        from actors.guest import census

        if census.used_memory() <= self._allowed():
            return
        mib = self.limits.memory_bytes >> 20
        if self.limits.processes and count > self.limits.processes // 4:
            # Most likely a bomb of large processes: looking for the largest would take longer than it leaves.
            self._end_all(f"memory limit ({mib} MiB) reached by {count} processes")
            return
        page = os.sysconf("SC_PAGE_SIZE")
        found = [process for process in self._tools() if process.rss_pages * page > self.limits.memory_bytes // 64]
        if not found:
            # It is in files of a tmpfs, or what a bomb had and the kernel still gives back: ending nothing would help.
            return
        largest = max(found, key=lambda process: process.rss_pages)
        said = (
            f"bash: memory limit ({mib} MiB) reached: process {largest.pid} "
            f"({largest.name}, {largest.rss_pages * page >> 20} MiB) was ended"
        )
        with self._toolbox.lock:
            shell = self._toolbox.shell
            if shell:
                shell.condemned = shell.condemned or largest.pid == shell.pid
                shell.verdict = said
            else:
                self._toolbox.notice = said
            processes.send(largest.pid, signal.SIGKILL)
