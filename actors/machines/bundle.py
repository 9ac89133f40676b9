"""What `runsc` is told of a machine: its OCI bundle (runtime-spec 1.0.2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from actors.template.agent import AGENT_COMMAND, AGENT_FOLDER

if TYPE_CHECKING:
    from actors.machines.protocol import MachineSpec
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
_OPEN_FILES = 65536


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


def oci_config(spec: MachineSpec, *, machine_id: str, rootfs: Path, agent_root: Path) -> JsonObject:
    """The bundle's `config.json`.

    `rootfs` is the sandbox's tree, `agent_root` the template's root, whose agent folder is mounted read-only.
    """
    limits = spec.limits
    # What lies in a tmpfs is memory, and running out of memory ends the machine.
    tmpfs_mib = max(limits.memory_bytes // 4 // _MIB, 16)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": AGENT_COMMAND,
            "cwd": "/",
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "LANG=C.UTF-8",
            ],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "rlimits": [
                {"type": "RLIMIT_NPROC", "hard": guest_tasks(limits), "soft": guest_tasks(limits)},
                {"type": "RLIMIT_NOFILE", "hard": _OPEN_FILES, "soft": _OPEN_FILES},
            ],
            "noNewPrivileges": False,
        },
        "root": {"path": str(rootfs), "readonly": False},
        "hostname": spec.hostname,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _tmpfs("/tmp", tmpfs_mib),
            _tmpfs("/dev/shm", tmpfs_mib),
            {
                "destination": f"/{AGENT_FOLDER}",
                "type": "bind",
                "source": str(agent_root / AGENT_FOLDER),
                "options": ["rbind", "ro"],
            },
        ],
        "linux": {
            "cgroupsPath": f"/hourglass/{machine_id}",
            "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/sysrq-trigger"],
            "readonlyPaths": ["/proc/sys"],
        },
    }


def _tmpfs(destination: str, mib: int) -> JsonObject:
    options = ["nosuid", "nodev", "mode=1777", f"size={mib}m"]
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}
