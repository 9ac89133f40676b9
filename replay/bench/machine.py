"""The machine that a figure was measured on."""

from __future__ import annotations

import mmap
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ASK_SECONDS = 5
_IDLE_PAGES = 2000
_IDLE_SECONDS = 0.5


def facts() -> dict[str, Any]:
    """Kernel, CPU, cores, memory, versions and git revision; "" where one can't be had. Names nobody's machine.

    Takes half a second. Raises nothing.
    """
    return {
        "kernel": platform.release(),
        "arch": platform.machine(),
        "cpu": _first(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "idle_page_us": round(_idle_page_us(), 2),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "runsc": _ask("runsc", "--version").removeprefix("runsc version ").partition("\n")[0],
        "hourglass": version("hourglass-agents"),
        "revision": _revision(),
    }


def _idle_page_us() -> float:
    """What it costs to read a page of memory that nobody has read for half a second, in microseconds.

    A page that was just read costs less than 0.1. A guest whose host takes back what it finds idle pays up to tens of
    microseconds for each, unseen by its own kernel, and most of all whoever comes after a pause, as a resume does.
    """
    size = mmap.PAGESIZE
    with mmap.mmap(-1, _IDLE_PAGES * size) as memory:
        for page in range(_IDLE_PAGES):
            memory[page * size] = 1
        time.sleep(_IDLE_SECONDS)
        began = time.perf_counter()
        for page in range(_IDLE_PAGES):
            memory[page * size]
        return (time.perf_counter() - began) / _IDLE_PAGES * 1e6


def _first(pattern: str, path: Path) -> str:
    try:
        found = re.search(pattern, path.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _revision() -> str:
    """Of the source tree that this runs from; with `+` where it was changed since."""
    tree = str(Path(__file__).parent)
    revision = _ask("git", "-C", tree, "rev-parse", "--short=12", "HEAD")
    changed = revision and _ask("git", "-C", tree, "status", "--porcelain", "--untracked-files=no")
    return f"{revision}+" if changed else revision


def _ask(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
