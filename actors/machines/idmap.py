"""User ids of the host that belong to nobody, for the processes of machines: ranges, and mounts that translate them.

A machine runs in a user namespace whose ids 0 to 65535 are, on the host, a range of its own; its processes have the
first of these. Ids above are there for owners of files, as of an archive that was packed elsewhere, and all machines
have the same for them. Files keep the owners that they have on the disk: what a machine sees of them is mounted with
its ids in their place (`mount_setattr(2)` with `MOUNT_ATTR_IDMAP`, since Linux 5.12; on btrfs since 5.15), so a
snapshot, a digest or a template has 0 where root is.

The numbers are those of `linux/sched.h`, `linux/mount.h` and of the system calls that every architecture shares.
Standard library alone, as for all that a supervisor imports. By itself, `python3 -I -S -E idmap.py FOLDER
[LOWER]` says why machines can't have such ids on the file system of a folder, or nothing. Raises `OSError` throughout.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import struct
import sys

FIRST = 0x70000000
"""Of the ids that the Linux world leaves to nobody (systemd's "Users, Groups, UIDs and GIDs on systemd systems")."""
RANGE = 65536
"""Ids of one machine alone."""
RANGES = 4094
"""Ranges from `FIRST` on, up to those that systemd knows as foreign."""
_ABOVE = 0x80000000
"""What ids from `RANGE` on are moved by. The upper half of all ids is nobody's either: some programs can't tell them
from errors. Here none meets them: no file has them, and no process begins with one."""
_LAST = 0xFFFFFFFE
RUN = "/run/hourglass"
"""Of this node: who has which range, and where machines find what they are made of, each in its own view of the mounts.
Anybody may pass through it, as the storage folder is for root alone."""
ROOT = f"{RUN}/root"
"""What is a container's root."""
AGENT = f"{RUN}/agent"
"""The template's agent."""
LOWER, DISK = f"{RUN}/lower", f"{RUN}/disk"
"""The layers of an overlay: what lies below, and the folder of `upper` and `work`."""
LIVE = f"{ROOT}/live"
"""Where an overlay of both is mounted."""

_TAKEN = f"{RUN}/ranges"
_LIBC = ctypes.CDLL(None, use_errno=True)
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000
_ATTRIBUTES = struct.Struct("=QQQQ")
"""Attributes to set, to clear, propagation, and the user namespace as a descriptor."""
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_PR_SET_KEEPCAPS = 8
_CAPABILITIES_V3 = struct.pack("=Ii", 0x20080522, 0)


def claim() -> tuple[int, int]:
    """A range that no machine of this node has: its first id, and the descriptor that holds it.

    It is this process's until it ends or closes the descriptor; its children do not have it.
    """
    os.makedirs(RUN, exist_ok=True)
    fd = os.open(_TAKEN, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    start = secrets.randbelow(RANGES)
    for step in range(RANGES):
        number = (start + step) % RANGES
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            continue
        return FIRST + number * RANGE, fd
    os.close(fd)
    raise OSError(errno.EAGAIN, f"all {RANGES} ranges of user ids are in use by machines")


def ids(first: int) -> list[tuple[int, int, int]]:
    """What the ids of a machine with this range are on the host: first id inside, first id outside, and how many.

    Inside, there are none from 0x7fffffff to 0xfffefffe; the highest are there for a "nobody" that is -2.
    """
    return [
        (0, first, RANGE),
        (RANGE, _ABOVE + RANGE, _LAST + 1 - _ABOVE - RANGE),
        (_LAST + 1 - RANGE, _ABOVE, RANGE),
    ]


def enter_pid_namespace() -> None:
    """Have the next child of this process be the first of a new namespace of process ids."""
    _check(_LIBC.unshare(_CLONE_NEWPID))


def join_pid_namespace(fd: int) -> None:
    """Have children begin in this namespace of process ids: this process's own, or one made in it."""
    _check(_LIBC.setns(fd, _CLONE_NEWPID))


def enter_mount_namespace() -> None:
    """A view of the mounts of this process's own, which learns of the host's and tells it nothing.

    `/proc` shows the processes of this process's own namespace in it.
    """
    _check(_LIBC.unshare(_CLONE_NEWNS))
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def user_namespace(first: int) -> int:
    """A new user namespace with the ids of the range that begins at `first`; as a descriptor.

    For a process that shows its own children in `/proc`, and has one thread.
    """
    ready, begun = os.pipe2(os.O_CLOEXEC)
    wait, done = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(done)
            _check(_LIBC.unshare(_CLONE_NEWUSER))
            os.write(begun, b".")
            os.read(wait, 1)
            status = 0
        finally:
            os._exit(status)
    try:
        os.close(begun)
        if not os.read(ready, 1):
            raise OSError(errno.EPERM, "no user namespace can be made")
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{kind}", "w", encoding="ascii") as file:
                file.write("".join(f"{inside} {outside} {count}\n" for inside, outside, count in ids(first)))
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (done, ready, wait):
            os.close(fd)
        os.waitpid(pid, 0)


def mount_mapped(source: str, target: str, namespace: int) -> None:
    """Mount the folder `source` at `target`, without what is mounted in it, as a user namespace's ids have it."""
    tree = _check(
        _LIBC.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC), source
    )
    try:
        attributes = _ATTRIBUTES.pack(_MOUNT_ATTR_IDMAP, 0, 0, namespace)
        _check(
            _LIBC.syscall(
                _MOUNT_SETATTR,
                tree,
                b"",
                _AT_EMPTY_PATH,
                ctypes.create_string_buffer(attributes, len(attributes)),
                ctypes.c_size_t(len(attributes)),
            ),
            source,
        )
        os.makedirs(target, exist_ok=True)
        os.chmod(os.path.dirname(target), 0o755)
        _check(_LIBC.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH), target)
    finally:
        os.close(tree)


def mount_overlay(first: int) -> None:
    """Mount an overlay of `LOWER` and `DISK` at `LIVE`, which are there, mapped for the range that begins at `first`.

    The kernel works on the layers in the name of whoever mounted the overlay, and makes files in `work` as theirs: so a
    process with the machine's id does it, and with root's capabilities.
    """
    heard, told = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _become(first)
            layers = f"lowerdir={LOWER},upperdir={DISK}/upper,workdir={DISK}/work"
            _mount("overlay", LIVE, "overlay", _MS_NOSUID | _MS_NODEV, layers)
            status = 0
        except OSError as error:
            os.write(told, str(error).encode())
        finally:
            os._exit(status)
    os.close(told)
    with open(heard, encoding="utf-8") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise OSError(f"no overlay of the translated layers: {said}")


def _become(user: int) -> None:
    """Have this id as user and group, with all the capabilities that this process may have."""
    _check(_LIBC.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    with open("/proc/self/status", encoding="ascii") as file:
        permitted = int(next(line.split()[1] for line in file if line.startswith("CapPrm:")), 16)
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    # Twice effective, permitted, inheritable.
    _check(_LIBC.capset(_CAPABILITIES_V3, struct.pack("=6I", low, low, 0, high, high, 0)))


def why_not(folder: str, lower: str = "") -> str:
    """Why what lies in a folder can't be mounted so, "" where it can; with `lower`, as layers of an overlay.

    Writes into the folder for the latter. Not for a process that has anything else to do: it is in a namespace of its
    own afterwards.
    """
    try:
        enter_mount_namespace()
        namespace = user_namespace(FIRST)
        mount_mapped(folder, ROOT, namespace)
        seen = os.stat(ROOT).st_uid
        if lower:
            mount_mapped(lower, LOWER, namespace)
            for name in ("upper", "work", "live"):
                os.mkdir(f"{folder}/{name}")
            mount_mapped(folder, DISK, namespace)
            mount_overlay(FIRST)
            os.chown(LIVE, FIRST + 1, FIRST + 1)  # fails where it was mounted read-only
    except OSError as error:
        return str(error)
    return "" if seen == os.stat(folder).st_uid + FIRST else f"the owner of {folder} is seen as {seen}"


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    names = [None if name is None else os.fsencode(name) for name in (source, target, kind)]
    _check(_LIBC.mount(*names, ctypes.c_ulong(flags), None if options is None else options.encode()), target)


def _check(result: int, name: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


if __name__ == "__main__":
    reason = why_not(*sys.argv[1:])
    print(reason)  # noqa: T201 - what it is for
    sys.exit(1 if reason else 0)
