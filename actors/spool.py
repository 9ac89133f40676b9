"""What a running command prints, as it prints it, in a file that anybody may follow.

The log holds a call's result once it ended; until then its output lies in `<home>/output/<sandbox>/<call>`, bounded,
and is removed when the result is durable. Losing a spool loses a view, never a fact.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

_BYTES_MAX = 1024**2
_MARK = b"\n[output goes on; the rest is in the result]\n"
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def spool_path(home: Path, sandbox_id: str, tool_use_id: str) -> Path:
    """Where the live output of a call lies. An id that is no plain word is hashed: it comes from outside."""
    safe = _SAFE_NAME.fullmatch(tool_use_id)
    name = tool_use_id if safe else hashlib.sha256(tool_use_id.encode()).hexdigest()
    return home / "output" / sandbox_id / name


class Spool:
    """The live output of one call. A context manager: the file is there while the call runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = _BYTES_MAX

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb", buffering=0)
        return self

    def write(self, data: bytes) -> None:
        """Add output; what is past the bound is dropped, with a mark."""
        if self._left <= 0:
            return
        self._file.write(data[: self._left])
        self._left -= len(data)
        if self._left <= 0:
            self._file.write(_MARK)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)
