"""The cradle: the first process of a machine's own namespace of process ids, in which `runsc` creates the container.

`runsc` begins a sandbox in the namespace of process ids that it is in itself, so it is begun in a new one. The kernel
ends every process of such a namespace with its first one: the cradle ends with its supervisor and with its sandbox,
and no process of a machine is ever left. It holds the machine's range of user ids (`actors.machines.idmap`) as long.

What is mounted for a machine is mounted in the view of the `runsc` that creates it, which the sandbox leaves behind:
nothing of it is in the host's, and there is nothing to take away. The cradle itself keeps to the host's.

A fork of the supervisor; standard library alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal

from actors.machines import idmap
from actors.machines.birth import ENVIRONMENT, SHOWING

PID_FILE = "pid"
"""What `runsc` says of the sandbox: its process id as the cradle sees it."""
CRADLE_FILE = "cradle"
"""Where the supervisor says which process the cradle is."""
CONFIG = "config.json"
"""Of the bundle."""
MOUNTED = (idmap.ROOT, idmap.AGENT, idmap.LOWER, idmap.DISK)
"""The last two where the sandbox's tree is an overlay."""
FAILED = 125
"""Exit code of what could not even begin `runsc`."""
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def begin(create: list[str], mapped: list[str], bundle: str, stdio: tuple[int, int, int]) -> tuple[int, int]:
    """Begin a cradle, and in it the command that creates a container.

    Args:
        mapped: the folders that are mounted at `MOUNTED`, in this order, with the machine's range of user ids; empty
            where it has none. What is in `bundle` is told the range.
        stdio: standard input, output and error of the command, and so of the container.

    Returns:
        The cradle's process id, and a descriptor from which the command's exit code can be read, as text, once it has
        ended; nothing where it was never begun. The cradle's own exit code is the sandbox's, 128 + n for signal n.
    """
    heard, told = os.pipe2(os.O_CLOEXEC)
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        idmap.enter_pid_namespace()
        try:
            pid = os.fork()
            if pid == 0:
                status = FAILED
                try:
                    status = _live(create, mapped, bundle, stdio, told)
                finally:
                    # Never back into the supervisor's code, whatever went wrong.
                    os._exit(status)
        finally:
            idmap.join_pid_namespace(home)
    except OSError:
        os.close(heard)
        raise
    finally:
        os.close(told)
        os.close(home)
    return pid, heard


def inside(cradle: int, command: list[str]) -> list[str]:
    """The command line, for another process, of a command of `runsc` about a cradle's container; see `birth.spawn`."""
    return ["nsenter", f"--pid=/proc/{cradle}/ns/pid", "--", *SHOWING, *command]


def _live(create: list[str], mapped: list[str], bundle: str, stdio: tuple[int, int, int], told: int) -> int:
    # A supervisor that ended before this is found out by telling it something.
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    # The supervisor's: whoever waits for their end waits for its end.
    _close_all_but({0, 1, 2, told, *stdio})
    first = 0
    if mapped:
        try:
            # The descriptor is kept until the end, and with it the range.
            first, _ = idmap.claim()
            _tell_range(f"{bundle}/{CONFIG}", first)
        except (OSError, ValueError) as error:
            os.write(stdio[2], f"no user ids for it: {error}".encode())
            return FAILED
    pid = os.fork()
    if pid == 0:
        _create(create, dict(zip(MOUNTED, mapped, strict=False)), first, stdio)
    for fd in stdio:
        os.close(fd)
    _, status = os.waitpid(pid, 0)
    code = _code(status)
    sandbox = _sandbox() if code == 0 else 0
    os.write(told, str(code).encode())
    os.close(told)
    while sandbox:
        pid, status = os.wait()
        if pid == sandbox:
            return _code(status)
    return code


def _create(create: list[str], mapped: dict[str, str], first: int, stdio: tuple[int, int, int]) -> None:
    """Become the command, in a view of the mounts of its own."""
    try:
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        idmap.enter_mount_namespace()
        if mapped:
            namespace = idmap.user_namespace(first)
            for target, source in mapped.items():
                idmap.mount_mapped(source, target, namespace)
            if idmap.DISK in mapped:
                idmap.mount_overlay(first)
            _lift_process_limit()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execve(create[0], create, ENVIRONMENT)
    except (OSError, ValueError) as error:
        os.write(2, f"nothing is begun: {error}".encode())
    finally:
        os._exit(FAILED)


def _lift_process_limit() -> None:
    """Of a user, and not of root: the one that the host's own process has. The control group bounds a machine."""
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        # Root without CAP_SYS_RESOURCE, as in a container.
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _tell_range(path: str, first: int) -> None:
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    mappings = [
        {"containerID": inside, "hostID": outside, "size": count} for inside, outside, count in idmap.ids(first)
    ]
    config["linux"] |= {"uidMappings": mappings, "gidMappings": mappings}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)


def _sandbox() -> int:
    with open(PID_FILE, encoding="ascii") as file:
        return int(file.read())


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own
