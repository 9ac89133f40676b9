"""Where a path really leads, and whether a file tool may go there.

The file tools are held to the working directory as in the SDK (contract §12). That is no boundary here, since `bash` is
not held to anything and the machine is the boundary; it is kept so that the agent reads the same answers.
"""

from __future__ import annotations

import errno
import os

from actors.guest.errors import reason

_MAX_HOPS = 40
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)


def canonical(path: str) -> str:
    """`path` with `.` and `..` taken out of the text, then every link followed, the last one too.

    Parts that don't exist stay as they are spelled. Raises `OSError`: a loop, a part that can't be read, and
    `ValueError` for a NUL byte.
    """
    base, missing = os.path.normpath(path), ""
    for _ in range(_MAX_HOPS + 1):
        base, missing = _last_existing(base, missing)
        try:
            return os.path.join(os.path.realpath(base, strict=True), missing).rstrip("/") or "/"
        except OSError as error:
            if error.errno not in _NOT_THERE or not os.path.islink(base):
                raise
        # A link to nowhere: go where it points, by hand.
        folder = os.path.realpath(os.path.dirname(base), strict=True)
        base, missing = os.path.normpath(os.path.join(folder, os.readlink(base), missing)), ""
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _last_existing(base: str, missing: str) -> tuple[str, str]:
    """Splits off the trailing parts of which there is nothing, not even a broken link."""
    while True:
        try:
            os.lstat(base)
        except OSError as error:
            parent = os.path.dirname(base)
            if error.errno not in _NOT_THERE or parent == base:
                raise
            base, missing = parent, os.path.join(os.path.basename(base), missing)
        else:
            return base, missing


def within(path: str, root: str) -> bool:
    """Whether `path` is `root` or below it; both canonical."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def resolve(workdir: str, path: str) -> str:
    """The canonical path that a file tool may use for `path`.

    Raises `ValueError`, whose text is for the model, where it leads out of `workdir`.
    """
    root = os.path.realpath(workdir)
    try:
        full = canonical(os.path.join(root, path))
    except OSError as error:
        raise ValueError(f"path {path!r}: {reason(error)}") from error
    if not within(full, root):
        raise ValueError(f"path {path!r} is outside the session's working directory")
    return full


def suffix(path: str) -> str:
    """The ending of the last part, with its dot, in lower case; a name that only begins with a dot has none."""
    name = os.path.basename(path)
    at = name.rfind(".")
    return name[at:].lower() if 0 < at < len(name) - 1 else ""
