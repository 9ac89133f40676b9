"""Running a template's own programs, in its root. For roots of ours: a sandbox's tree is never run on the host."""

from __future__ import annotations

from pathlib import Path

from actors.machines.mounts import run

# In a mount namespace of its own, so that nothing stays mounted whatever ends it.
_SCRIPT = (
    'mount --rbind /dev "$1/dev" && mount -t proc proc "$1/proc" && root=$1 && shift && '
    'exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"'
)


def run_in_root(root: Path, *command: str) -> str:
    """Run a program of the root and return what it printed. Raises `CommandFailed`."""
    return run(["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh", root, *command])
