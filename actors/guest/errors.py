"""What a tool says when it fails, and how any other exception reads: the SDK's rules (contract §11.4)."""

from __future__ import annotations

import errno
import re

EXCEPTION_TEXT_MAX = 4096
"""Characters of an exception that the model is shown (contract §11.4)."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_REASONS: tuple[tuple[type[OSError], str], ...] = (
    (FileNotFoundError, "no such file or directory"),
    (NotADirectoryError, "not a directory"),
    (IsADirectoryError, "is a directory"),
    (PermissionError, "permission denied"),
    (FileExistsError, "file already exists"),
)


class ToolFailure(Exception):
    """Raised by a tool whose text is the whole error result."""


class Stopped(Exception):
    """Raised in a tool that must end now: its time is up, or somebody interrupted it."""


def reason(error: OSError) -> str:
    """An `OSError` in words that hold no path."""
    for kind, words in _REASONS:
        if isinstance(error, kind):
            return words
    if error.errno == errno.ELOOP:
        return "too many levels of symbolic links"
    return (error.strerror or "i/o error").lower()


def well_formed(text: str) -> str:
    """`text` with every unpaired surrogate replaced, so that UTF-8 can carry it."""
    return _SURROGATE.sub("\ufffd", text)


def exception_text(error: BaseException) -> str:
    """What the model reads of an exception that no tool meant to raise."""
    return well_formed(repr(error))[:EXCEPTION_TEXT_MAX]
