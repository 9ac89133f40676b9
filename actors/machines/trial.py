"""Whether the machines of this node can have user ids that are nobody's on it (`actors.machines.idmap`).

What a kernel can do on which file system is a long table, and a container may be kept from it besides: so it is tried.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from actors.machines import idmap
from actors.machines.protocol import Finding

if TYPE_CHECKING:
    from actors.machines.volumes import Volumes

_SECONDS = 20.0
_NEEDED = {"btrfs": (5, 15), "overlay": (5, 19)}
"""The Linux that translates owners, for an overlay those of its layers."""


def why_no_ids(volumes: Volumes) -> str:
    """Why machines on these trees run as root of the node; "" where they do not.

    Of trees that are not prepared yet, or for another user than root, only what the kernel's version tells.
    """
    if os.geteuid() == 0 and volumes.slots.is_dir():
        return _try(volumes)
    release = platform.release()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) < _NEEDED[volumes.kind]:
        return f"Linux {release} does not translate the owners of files on {volumes.kind}"
    return ""


def check_ids(volumes: Volumes) -> Finding:
    """What `doctor` says of it."""
    reason = why_no_ids(volumes)
    if not reason:
        detail = f"each machine has {idmap.RANGE} of its own, above {idmap.FIRST}, which are nobody's here"
        return Finding("user ids", ok=True, detail=detail)
    return Finding(
        "user ids",
        ok=False,
        detail=f"machines run as root of this node, in their namespaces: {reason}",
        why="what breaks out of gVisor's kernel is to be nobody outside",
        remedy="use Linux 5.19 or newer, and btrfs, ext4 or xfs for the storage folder",
        required=False,
    )


def _try(volumes: Volumes) -> str:
    # In a process of its own, since it can't leave the namespaces that it enters.
    with TemporaryDirectory(prefix="trial-", dir=volumes.slots, ignore_cleanup_errors=True) as folder:
        return _run(folder, *([] if volumes.places_late else [str(volumes.templates)]))


def _run(*folders: str) -> str:
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-S", "-E", idmap.__file__, *folders],
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if tried.returncode == 0:
        return ""
    return tried.stdout.strip() or tried.stderr.strip().rpartition("\n")[2] or "the trial ended without a word"
