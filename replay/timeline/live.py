"""What a command prints while it runs, from its spool: `<home>/output/<sandbox>/<tool_use_id>`.

The sandbox's actor writes the file while the call runs and removes it when the result is in the log. A tool_use_id
that is no plain word is hashed, as it comes from outside. Losing a spool loses a view, never a fact.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,100}")
_TAIL_BYTES = 32 * 1024
"""More than a screen holds."""


def spool(home: Path, sandbox_id: str, tool_use_id: str) -> Path:
    """Where the live output of a call lies."""
    name = tool_use_id if _PLAIN.fullmatch(tool_use_id) else hashlib.sha256(tool_use_id.encode()).hexdigest()
    return home / "output" / sandbox_id / name


def tail(home: Path, sandbox_id: str, tool_use_id: str) -> str:
    """The end of what a call has printed so far; "" where nothing is there, or the ids name no such file."""
    if not _PLAIN.fullmatch(sandbox_id):
        return ""
    try:
        handle = os.open(spool(home, sandbox_id, tool_use_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            return ""
        data = os.pread(handle, _TAIL_BYTES, max(0, info.st_size - _TAIL_BYTES))
    finally:
        os.close(handle)
    if info.st_size > _TAIL_BYTES:
        data = data.partition(b"\n")[2] or data
    return data.decode(errors="replace")
