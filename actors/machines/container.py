"""The container as processes: how a supervisor creates it, has it come to life, and clears up after it.

Standard library alone, as for all that a supervisor imports.
"""

from __future__ import annotations

import json
import os
import time

from actors.machines import cgroups, cradle
from actors.machines.birth import Birth, Command, printable, restorer
from actors.machines.cradle import CRADLE_FILE

Orders = dict[str, list[str] | str]
"""What a supervisor is told of its machine, in `orders.json`.

`create`: the command line that makes the container, without the guest running yet. `mapped`: the folders of root and
agent, and of an overlay's layers, where the machine is to have user ids of its own; else empty. `start`, `restore`:
those that bring it to life; `restore` lacks the image's folder, which is told with the order. `control`: the socket on
which a restore may be asked of the sandbox itself, "" where it may not. `group`: its control group and the container's
id. `state`: the folder of what `runsc` knows of containers, in files with the id in their names. `slot`: the folder of
its root, which is its bundle too, removed with a container that nobody used."""

PIPE_BYTES = 256 * 1024
"""What the machine's standard input and output hold, by the kernel: a reader wakes for all of it at once."""
_SAID_BYTES = 4000
_CODE_BYTES = 16


class NotCreated(OSError):
    """Raised when `runsc` can't do what it was told; the message is its own."""


def create(orders: Orders) -> tuple[int, int, int, int]:
    """Make the container; the process id of its cradle, and our ends of its standard input, output and error.

    The cradle ends as the sandbox does, and with its exit code (`actors.machines.cradle`).
    """
    stdin, to_guest = os.pipe2(os.O_CLOEXEC)
    from_guest, stdout = os.pipe2(os.O_CLOEXEC)
    errors, stderr = os.pipe2(os.O_CLOEXEC)
    for fd in (to_guest, from_guest):
        _widen(fd)
    try:
        pid, heard = cradle.begin(
            list(orders["create"]), list(orders["mapped"]), str(orders["slot"]), (stdin, stdout, stderr)
        )
    finally:
        for fd in (stdin, stdout, stderr):
            os.close(fd)
    for fd in (to_guest, from_guest, errors):
        os.set_blocking(fd, False)
    try:
        code = os.read(heard, _CODE_BYTES)
    finally:
        os.close(heard)
    if code != b"0":
        os.waitpid(pid, 0)
        raise NotCreated(f"exit code {code.decode()}: {_said(errors)}" if code else _said(errors))
    # Later hosts ask `runsc` about the container, too.
    with open(CRADLE_FILE, "w", encoding="ascii") as file:
        file.write(str(pid))
    return pid, to_guest, from_guest, errors


def _widen(pipe: int) -> None:
    """Have it hold as much as the guest agent reads at once; where the system has a lower limit, it stays as it is."""
    import fcntl

    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return


def animate(orders: Orders, pid: int, image: str | None) -> Birth:
    """Begin to start the container of a cradle, or to restore it from an image.

    Raises `OSError` where that can't be begun.
    """
    if image is None:
        return Command(list(orders["start"]), pid)
    *command, name = list(orders["restore"])
    return restorer(str(orders["control"]), image, [*command, "--image-path", image, name], pid)


def clear_up(orders: Orders) -> None:
    """End what is left of the machine's processes and take away what it left on the host, but for its control groups.

    Not by `runsc delete`, which takes as long as a start, and can hang after several checkpoints: with its processes
    gone, all that is left of a container is what `runsc` wrote down about it.
    """
    group = str(orders["group"])
    cgroups.kill(group)
    folder = str(orders["state"])
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            if group in name:
                _unlink(f"{folder}/{name}")


def remove_groups(orders: Orders) -> None:
    """Remove the control groups of a machine that has ended: by a child, since nobody needs to wait for it.

    Where nobody does it in the end, whoever sweeps the node will.
    """
    group = str(orders["group"])
    try:
        if os.fork():
            return
    except OSError:
        # The kernel has no room for one.
        cgroups.remove(group)
        return
    status = 1
    try:
        os.chdir("/")
        cgroups.remove(group)
        status = 0
    finally:
        os._exit(status)


def discard(orders: Orders) -> None:
    """Remove the folders of a container that nobody used, unless a sandbox's tree has been put there already."""
    slot = str(orders["slot"])
    if os.path.lexists(f"{slot}/root/live"):
        return
    for folder in (slot, os.getcwd()):
        for parent, folders, files in os.walk(folder, topdown=False):
            for name in files:
                _unlink(f"{parent}/{name}")
            for name in folders:
                os.rmdir(f"{parent}/{name}")
        os.rmdir(folder)


def load_orders() -> Orders:
    """The orders of this folder. Raises `OSError`, `ValueError`."""
    with open("orders.json", encoding="utf-8") as file:
        orders: Orders = json.load(file)
        return orders


def _said(errors: int) -> str:
    time.sleep(0.001)
    try:
        return printable(os.read(errors, _SAID_BYTES).decode("utf-8", "replace"))
    except BlockingIOError:
        return "it said nothing"


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
