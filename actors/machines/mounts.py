"""Mounts of this node: what is mounted where, and the programs that change it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMAND_SECONDS = 60


class CommandFailed(OSError):
    """Raised when a program of the system fails; the message is the program's own."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of `/proc/self/mountinfo`."""

    path: Path
    filesystem: str
    source: str
    """What is mounted: a device, where it is one."""


def run(command: Sequence[str | Path], *, timeout: float = _COMMAND_SECONDS) -> str:
    """Run a program of the system and return what it printed. Raises `CommandFailed`. `timeout` in seconds."""
    name = str(command[0])
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(f"there is no program {name}; `hourglass doctor` says how to get it") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{name} did not end within {timeout:g} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CommandFailed(
            f"{name} failed with exit code {done.returncode}: {said[-1] if said else 'it said nothing'}"
        )
    return done.stdout


def mounted_at(path: Path) -> Mount | None:
    """What is mounted at `path` itself; None where nothing is."""
    wanted = path.resolve()
    found = None
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if _unescape(before.split(" ")[4]) == str(wanted):
            filesystem, source = after.split(" ")[:2]
            found = Mount(wanted, filesystem, _unescape(source))  # The last one lies on top.
    return found


def unmount(path: Path) -> None:
    """Take away what is mounted at `path`, if anything; detached where it is still in use."""
    if mounted_at(path) is None:
        return
    try:
        run(["umount", path])
    except CommandFailed:
        run(["umount", "--lazy", path])


def supports(filesystem: str) -> bool:
    """Whether this kernel has a file system, asking for its module where it is one."""
    known = Path("/proc/filesystems")
    if filesystem in known.read_text(encoding="ascii").split():
        return True
    try:
        run(["modprobe", filesystem])
    except CommandFailed:
        return False
    return filesystem in known.read_text(encoding="ascii").split()


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)
