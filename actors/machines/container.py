"""The machine as a process: how a supervisor starts `runsc`, and what is done after it.

Standard library alone, as for all that a supervisor imports.
"""

from __future__ import annotations

import os
import signal
import time

from actors.machines import cgroups

_DELETE_SECONDS = 10.0

Orders = dict[str, list[str] | str]
"""`run`: the command line of the machine. `delete`: the one that clears up after it. `group`: its control group and
the container's id. `state`: the folder of what `runsc` knows of containers, in files with the id in their names."""


def start_machine(command: list[str]) -> tuple[int, int, int, int]:
    """Start the machine; its process id, and our ends of its standard input, output and error."""
    stdin, to_guest = os.pipe2(os.O_CLOEXEC)
    from_guest, stdout = os.pipe2(os.O_CLOEXEC)
    errors, stderr = os.pipe2(os.O_CLOEXEC)
    pid = os.posix_spawn(
        command[0],
        command,
        {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        ],
        setsigdef=[signal.SIGPIPE],
        setsigmask=[],
    )
    for fd in (stdin, stdout, stderr):
        os.close(fd)
    for fd in (to_guest, from_guest, errors):
        os.set_blocking(fd, False)
    return pid, to_guest, from_guest, errors


def clear_up(orders: Orders) -> None:
    """End what is left of the machine's processes and take away what it left on the host."""
    group = str(orders["group"])
    cgroups.kill(group)
    if _left_by_runsc(orders):
        _run_bounded(list(orders["delete"]))
        # `delete` knows nothing of a container that was ended before it was whole.
        for path in _left_by_runsc(orders):
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
    cgroups.remove(group)


def _left_by_runsc(orders: Orders) -> list[str]:
    folder, group = str(orders["state"]), str(orders["group"])
    if not os.path.isdir(folder):
        return []
    return [f"{folder}/{name}" for name in os.listdir(folder) if group in name]


def _run_bounded(command: list[str]) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    pid = os.posix_spawn(command[0], command, {}, file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)])
    os.close(null)
    deadline = time.monotonic() + _DELETE_SECONDS
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.01)
