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
"""Between two looks once there are more than half as many processes as may be."""
MANY = 32
"""With more processes, threads are not counted: while a bomb goes off, every file that is read is time lost."""
SLOWLY = 10
"""Memory is read at every tenth look then."""
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
        self._looks = 0

    def watch(self) -> None:
        """A call begins."""
        if not (self.limits.processes or self.limits.memory_bytes):
            return
        self._go.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_watch, name="guard", daemon=True)
            self._thread.start()

    def _keep_watch(self) -> None:
        while True:
            self._go.wait()
            busy = self._busy()
            count = self._look()
            if not busy and not self._busy() and count <= 1:
                # The shell alone is left, and it does nothing by itself.
                self._go.clear()
                if self._busy():
                    self._go.set()
                continue
            alarmed = self.limits.processes and count > self.limits.processes // 2
            time.sleep(ALARMED_LOOK_S if alarmed else LOOK_S if busy else IDLE_LOOK_S)

    def _look(self) -> int:
        """One look; how many processes there are."""
        self._looks += 1
        seen = self._tools()
        limit = self.limits.processes
        if limit and (self._threads(seen) if len(seen) <= MANY else len(seen)) > limit:
            self._too_many(limit)
        elif self.limits.memory_bytes and self._whole and (len(seen) <= MANY or self._looks % SLOWLY == 0):
            self._check_memory(seen)
        return len(seen)

    @staticmethod
    def _threads(seen: set[int]) -> int:
        return sum(process.threads for pid in seen if (process := processes.look(pid)))

    def _tools(self) -> set[int]:
        """Every process that a tool started."""
        shell = self._toolbox.shell
        if self._whole:
            return processes.pids() - {1}
        if shell is None:
            return set()
        session = shell.pid
        return {pid for pid in processes.pids() if (process := processes.look(pid)) and process.session == session}

    def _too_many(self, limit: int) -> None:
        shell = self._toolbox.shell
        said = (
            f"bash: process limit ({limit}) reached: the shell and all that it started were ended; "
            "the next command gets a new shell"
        )
        if shell:
            shell.condemned = True
            shell.verdict = said
            self._children.end_group(shell.pid)
        else:
            self._toolbox.notice = said
        if self._whole and len(self._tools()) > limit:
            # Something that left the shell's process group. Group 1 makes it `kill(-1)`: everything but this process.
            self._children.end_group(1)

    def _check_memory(self, seen: set[int]) -> None:
        limit = self.limits.memory_bytes
        allowed = limit - max(MEMORY_SLACK, int(limit * MEMORY_SHARE))
        if used_memory() <= allowed:
            return
        found = [process for pid in seen if (process := processes.look(pid))]
        if not found:
            return
        largest = max(found, key=lambda process: process.rss_pages)
        processes.send(largest.pid, signal.SIGKILL)
        said = (
            f"bash: memory limit ({limit >> 20} MiB) reached: process {largest.pid} ({largest.name}, "
            f"{largest.rss_pages * os.sysconf('SC_PAGE_SIZE') >> 20} MiB) was ended"
        )
        shell = self._toolbox.shell
        if shell:
            shell.verdict = said
        else:
            self._toolbox.notice = said


def used_memory() -> int:
    """Bytes in use on this machine."""
    values = {}
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            values[name] = int(rest.split()[0]) * 1024
    return values[b"MemTotal"] - values.get(b"MemAvailable", values[b"MemFree"])
