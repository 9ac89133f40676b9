"""What `runsc` is told of a machine: its OCI bundle (runtime-spec 1.0.2)."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from actors.machines import idmap
from actors.template.agent import AGENT_FOLDER, agent_command

if TYPE_CHECKING:
    from events.types import JsonObject, Limits

_MIB = 1024**2
# What root needs to install, build and debug programs. Without SYS_ADMIN and SYS_RESOURCE, so that its own
# RLIMIT_NPROC holds for it too: a fork bomb then fails inside, and the machine lives.
_CAPABILITIES = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
]
# What the agent needs to be the machine's init. It takes these out of its bounding set, so no program of a guest has
# them.
_AGENT_ONLY = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"]
_OPEN_FILES = 65536
LIVE = "live"
"""Where a sandbox's tree is put, in the root of a slot."""
_AGENT = "agent"
_BUSYBOX = "init/busybox"


def guest_tasks(limits: Limits) -> int:
    """How many processes and threads one user of the guest may have, by its own kernel.

    Above the limit itself: the guest agent looks for that one and ends the offender. A bomb that is faster than its
    looks stops here, and leaves the agent the room to end it.
    """
    return limits.processes + 64


def host_tasks(limits: Limits) -> int:
    """How many processes and threads a machine may have on the host.

    gVisor keeps a stub process for each guest process, and threads of its own. The limit that a guest is to meet first
    is the one inside; this one ends a machine that gets past it.
    """
    return 4 * guest_tasks(limits)


def oci_config(limits: Limits, *, machine_id: str, root: Path, agent_root: Path, own_ids: bool) -> JsonObject:
    """The bundle's `config.json`, for whatever sandbox the machine will be.

    `root` is a slot's root, made by `make_root`; `agent_root` the template's root, whose agent folder is mounted
    read-only. With `own_ids` the machine's processes have user ids of their own; the cradle fills in which, once it has
    claimed them, and mounts both folders where the configuration says.
    """
    where, agent = (idmap.ROOT, idmap.AGENT) if own_ids else (str(root), str(agent_root / AGENT_FOLDER))
    namespaces = ["pid", "ipc", "uts", "mount", "network", *(["user"] if own_ids else [])]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [f"/{_BUSYBOX}", "sh", "-c", _init(limits, agent_command(agent_root))],
            "cwd": "/",
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "LANG=C.UTF-8",
            ],
            "capabilities": {kind: [*_CAPABILITIES, *_AGENT_ONLY] for kind in ("bounding", "effective", "permitted")},
            "rlimits": [
                {"type": "RLIMIT_NPROC", "hard": guest_tasks(limits), "soft": guest_tasks(limits)},
                {"type": "RLIMIT_NOFILE", "hard": _OPEN_FILES, "soft": _OPEN_FILES},
            ],
            "noNewPrivileges": False,
        },
        "root": {"path": where, "readonly": False},
        "hostname": "sandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": f"/{_AGENT}",
                "type": "bind",
                "source": agent,
                "options": ["rbind", "ro"],
            },
        ],
        "linux": {
            "cgroupsPath": f"/hourglass/{machine_id}",
            "namespaces": [{"type": name} for name in namespaces],
        },
    }


def make_root(root: Path) -> None:
    """What the first program of a machine needs; the sandbox's tree is put at `live` in it, at the last moment.

    The program is this node's own, never one of a sandbox's tree, and is out of the guest's reach once it runs. Raises
    `OSError` where there is none.
    """
    for name in (_AGENT, "dev", "proc", "init"):
        (root / name).mkdir(parents=True)
    shutil.copyfile(find_busybox(), root / _BUSYBOX)
    (root / _BUSYBOX).chmod(0o755)


@cache
def find_busybox() -> Path:
    """This node's busybox, which must be a static one. Raises `FileNotFoundError` where there is none."""
    for name in ("busybox", "busybox-static"):
        found = shutil.which(name)
        # The dynamic linker is named in every program that needs one.
        if found is not None and b"/ld-linux" not in Path(found).read_bytes():
            return Path(found)
    raise FileNotFoundError(
        "there is no static busybox, the first program of every machine: apt-get install busybox-static"
    )


def _init(limits: Limits, agent: list[str]) -> str:
    """The script of PID 1: make the sandbox's tree the root, leave nothing of the slot in sight, become the agent."""
    # What lies in a tmpfs is memory, and running out of memory ends the machine.
    mib = max(limits.memory_bytes // 4 // _MIB, 16)
    tmpfs = f"$b mount -t tmpfs -o nosuid,nodev,mode=1777,size={mib}m tmpfs"
    return f"""
b=/{_BUSYBOX}
set -e
$b mount --bind /{LIVE} /{LIVE}
cd /{LIVE}
for d in dev proc tmp {AGENT_FOLDER}; do [ -d $d ] || $b mkdir -p $d; done
$b mount --bind /dev dev
$b mount -t devpts devpts dev/pts
$b mount -t proc proc proc
{tmpfs} tmp
{tmpfs} dev/shm
$b mount --bind /{_AGENT} {AGENT_FOLDER}
exec 9</{_BUSYBOX}
$b pivot_root . .
(exec -a busybox /proc/self/fd/9 umount -l .)
exec 9<&-
exec {" ".join(agent)}
"""
