"""Control groups of machines: what bounds a machine on the host, counts its out-of-memory kills, and ends it for sure.

A machine's groups are made by us before `runsc` starts: `runsc` only joins groups that it finds, so their counters
outlive the machine and can say why it ended. All machines together are one group, `hourglass`, which weighs as much as
one ordinary service: however busy they are, the host's own heartbeats get their turn.

Standard library alone, and little of it: the supervisor of a machine imports this too. Raises `OSError` throughout.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import signal
import time

ROOT = "/sys/fs/cgroup"
PARENT = "hourglass"
SUPERVISORS = "supervisors"
CONTROLLERS = ("cpu", "memory", "pids")
_COUNTED_V1 = ("freezer", "cpuacct")
"""Of version 1, where they are controllers of their own; version 2 has both in every group."""
_SERVICES_V1 = ("memory", "pids", "systemd")
"""Where a service manager keeps groups of its own."""
_KILL_SECONDS = 10.0
_PERIOD_US = 100_000
_READ_BYTES = 65536
_GONE = frozenset({errno.ENOENT, errno.ENODEV})
"""What the kernel says of a group that is removed: before its file is opened, and after."""


def version() -> int:
    """1 or 2: the version that has the controllers; 0 where there is neither."""
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        return 2
    return 1 if all(os.path.isdir(f"{ROOT}/{name}") for name in CONTROLLERS) else 0


def missing_controllers() -> list[str]:
    """Those of `CONTROLLERS` that this node can't give a machine."""
    if version() == 2:
        offered = _read(f"{ROOT}/cgroup.controllers").split()
    else:
        offered = [name for name in CONTROLLERS if os.path.isdir(f"{ROOT}/{name}")]
    return [name for name in CONTROLLERS if name not in offered]


def create(name: str, *, memory_bytes: int, tasks: int, cpus: float) -> None:
    """Make the groups of a machine and set their limits. Leaves nothing behind where it fails.

    `tasks` bounds processes and threads on the host, `cpus` is in CPUs of time.
    """
    quota = max(int(cpus * _PERIOD_US), 1000)
    try:
        if version() == 2:
            _create_v2(name, memory_bytes, tasks, quota)
        else:
            _create_v1(name, memory_bytes, tasks, quota)
    except OSError:
        remove(name)
        raise


def processes(name: str) -> set[int]:
    """Ids of the processes in a machine's groups; empty where there is no such group."""
    found: set[int] = set()
    for base in _bases():
        try:
            found.update(int(pid) for pid in _read(f"{base}/{PARENT}/{name}/cgroup.procs").split())
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return found


def kill(name: str) -> None:
    """End every process of a machine, and wait until they are gone. Raises `TimeoutError` after ten seconds."""
    deadline = time.monotonic() + _KILL_SECONDS
    while pids := processes(name):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes of {name} do not end: {sorted(pids)}")
        for pid in pids:
            end_process(pid)
        for pid in pids:
            _wait_ended(pid, deadline)


def _wait_ended(pid: int, deadline: float) -> None:
    """Until a process is gone, whosever child it is, or the time is over."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(max(deadline - time.monotonic(), 0) * 1000)
    finally:
        os.close(pidfd)


def end_process(pid: int) -> None:
    """SIGKILL. No error where it has ended already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def oom_kills(name: str) -> int:
    """How many processes of the machine the kernel has killed for want of memory."""
    for folder in _folders(name):
        for file in ("memory.events", "memory.oom_control"):
            if os.path.exists(f"{folder}/{file}"):
                counters = dict(line.split() for line in _read(f"{folder}/{file}").splitlines())
                return int(counters.get("oom_kill", "0"))
    return 0


def freeze(name: str) -> None:
    """Give a machine's processes no CPU. Raises `OSError`, `TimeoutError` where they do not stop in time."""
    _set_frozen(name, frozen=True)


def thaw(name: str) -> None:
    """Let a machine's processes run again. No error where they run, or where there is no such machine."""
    try:
        _set_frozen(name, frozen=False)
    except OSError as error:
        # Its groups are removed at this moment.
        if error.errno not in _GONE:
            raise


def is_frozen(name: str) -> bool:
    """Whether a machine gets no CPU."""
    path = _freezer(name)
    return os.path.exists(path) and _read(path).strip() in {"1", "FROZEN", "FREEZING"}


def cpu_seconds(name: str) -> float:
    """CPU time of a machine so far; 0 where nobody counts it."""
    v2, v1 = f"{ROOT}/{PARENT}/{name}/cpu.stat", f"{ROOT}/cpuacct/{PARENT}/{name}/cpuacct.usage"
    if version() == 2 and os.path.exists(v2):
        return int(dict(line.split() for line in _read(v2).splitlines())["usage_usec"]) / 1e6
    return int(_read(v1)) / 1e9 if os.path.exists(v1) else 0.0


def memory_bytes(name: str) -> tuple[int, int]:
    """What a machine has, and the most that it had, in bytes; 0 where nobody counts it."""
    for folder in _folders(name):
        for now, most in (("memory.current", "memory.peak"), ("memory.usage_in_bytes", "memory.max_usage_in_bytes")):
            if os.path.exists(f"{folder}/{now}"):
                has = int(_read(f"{folder}/{now}"))
                # `memory.peak` is of Linux 5.19.
                return has, int(_read(f"{folder}/{most}")) if os.path.exists(f"{folder}/{most}") else has
    return 0, 0


def _freezer(name: str) -> str:
    if version() == 2:
        return f"{ROOT}/{PARENT}/{name}/cgroup.freeze"
    return f"{ROOT}/freezer/{PARENT}/{name}/freezer.state"


def _set_frozen(name: str, *, frozen: bool) -> None:
    path = _freezer(name)
    if not os.path.exists(path):
        if frozen:
            raise OSError(f"no freezer for {name}: this kernel has no freezer control group")
        return
    if version() == 2:
        wanted, shown, state = "1" if frozen else "0", f"{ROOT}/{PARENT}/{name}/cgroup.events", f"frozen {int(frozen)}"
    else:
        wanted = state = "FROZEN" if frozen else "THAWED"
        shown = path
    _write(path, wanted)
    deadline = time.monotonic() + _KILL_SECONDS
    while state not in _read(shown):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} does not become {state.lower()}")
        time.sleep(0.0005)
        if frozen and version() != 2:
            _write(path, wanted)  # the first try may meet a task that can't be stopped then


def remove(name: str) -> None:
    """Remove a machine's groups, those that `runsc` added included. No error where there are none.

    Takes tens of milliseconds, since the contents of files that the kernel keeps for the group are let go of before. A
    group that is removed with them stays in the kernel as long as they do, and hundreds of such slow down every start.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    for folder in _folders(name):
        _empty(folder)
        while True:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                break
            except OSError as error:
                # A killed process leaves its group a moment after it is gone from the list.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.0005)
            else:
                break


def _empty(folder: str) -> None:
    """Have the kernel let go of what it keeps for a group that has no process."""
    try:
        if os.path.exists(f"{folder}/memory.force_empty"):
            _write(f"{folder}/memory.force_empty", "0")
        elif os.path.exists(f"{folder}/memory.reclaim"):  # of version 2, since Linux 5.19
            _write(f"{folder}/memory.reclaim", _read(f"{folder}/memory.current").strip())
    except OSError as error:
        # Others use some of it, or somebody else removes the group at this moment.
        if error.errno not in {errno.EBUSY, errno.EAGAIN, errno.EINTR, *_GONE}:
            raise


def names(*, older: float = 0) -> set[str]:
    """Machines that have a group on this node, alive or not; made more than `older` seconds ago."""
    before = time.time() - older
    found: set[str] = set()
    for base in _bases():
        try:
            entries = [entry for entry in os.scandir(f"{base}/{PARENT}") if entry.is_dir()]
            found.update(entry.name for entry in entries if not older or entry.stat().st_mtime < before)
        except FileNotFoundError:
            continue
    return found - {SUPERVISORS}


def leave_own_group() -> None:
    """Move this process into the supervisors' group, so that ending its parent's group (a service) does not end it."""
    if version() == 2:
        _make_parent_v2()
    # Known from here on to all that are forked from this process.
    for base in _bases():
        if base != ROOT and os.path.basename(base) not in _SERVICES_V1:
            continue
        os.makedirs(f"{base}/{PARENT}/{SUPERVISORS}", exist_ok=True)
        _write(f"{base}/{PARENT}/{SUPERVISORS}/cgroup.procs", str(os.getpid()))


def _create_v1(name: str, memory_bytes: int, tasks: int, quota: int) -> None:
    for controller in (*CONTROLLERS, *_COUNTED_V1):
        if os.path.isdir(f"{ROOT}/{controller}"):
            os.makedirs(f"{ROOT}/{controller}/{PARENT}/{name}", exist_ok=True)
    memory = f"{ROOT}/memory/{PARENT}/{name}"
    _write(f"{memory}/memory.limit_in_bytes", str(memory_bytes))
    # Absent where the kernel does not account for swap.
    if os.path.exists(f"{memory}/memory.memsw.limit_in_bytes"):
        _write(f"{memory}/memory.memsw.limit_in_bytes", str(memory_bytes))
    _write(f"{ROOT}/pids/{PARENT}/{name}/pids.max", str(tasks))
    _write(f"{ROOT}/cpu/{PARENT}/{name}/cpu.cfs_period_us", str(_PERIOD_US))
    _write(f"{ROOT}/cpu/{PARENT}/{name}/cpu.cfs_quota_us", str(quota))


def _create_v2(name: str, memory_bytes: int, tasks: int, quota: int) -> None:
    _make_parent_v2()
    folder = f"{ROOT}/{PARENT}/{name}"
    os.makedirs(folder, exist_ok=True)
    _write(f"{folder}/memory.max", str(memory_bytes))
    if os.path.exists(f"{folder}/memory.swap.max"):
        _write(f"{folder}/memory.swap.max", "0")
    # Half a machine is of no use to anybody.
    _write(f"{folder}/memory.oom.group", "1")
    _write(f"{folder}/pids.max", str(tasks))
    _write(f"{folder}/cpu.max", f"{quota} {_PERIOD_US}")


def _make_parent_v2() -> None:
    os.makedirs(f"{ROOT}/{PARENT}", exist_ok=True)
    for folder in (ROOT, f"{ROOT}/{PARENT}"):
        enabled = _read(f"{folder}/cgroup.subtree_control").split()
        wanted = [f"+{name}" for name in CONTROLLERS if name not in enabled]
        if wanted:
            _write(f"{folder}/cgroup.subtree_control", " ".join(wanted))


def _bases() -> list[str]:
    return [ROOT] if version() == 2 else _hierarchies(ROOT)


@functools.cache
def _hierarchies(root: str) -> list[str]:
    """Of version 1; looked for once, and each counted once: `cpu` and `cpuacct` are often links to one."""
    return sorted({os.path.realpath(entry.path) for entry in os.scandir(root) if entry.is_dir()})


def _folders(name: str) -> list[str]:
    folders = [f"{base}/{PARENT}/{name}" for base in _bases()]
    return [folder for folder in folders if os.path.isdir(folder)]


def _read(path: str) -> str:
    # Such files are read in the midst of what is measured in milliseconds, and a file object asks the kernel for more.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while piece := os.read(fd, _READ_BYTES):
            data += piece
    finally:
        os.close(fd)
    return data.decode("ascii")


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
