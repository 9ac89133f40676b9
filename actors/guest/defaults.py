"""What a template says of its sandboxes' programs: environment variables, and the folder that they start in.

It lies in the sandbox's own tree, so a sandbox keeps what it began with when its template is built anew. Whoever is
root inside may change it, and changes nothing but the sandbox's own: a bad file counts as none.
"""

from __future__ import annotations

import json
import os
import stat
import sys

PATH = "/etc/hourglass/defaults.json"
BYTES_MAX = 64 * 1024


def read_defaults(path: str = PATH) -> tuple[dict[str, str], str]:
    """The variables, and the folder or "". Says on standard error why a file is of no use."""
    try:
        # A pipe in its place must not hold up the start of the machine.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return _bad(path, "it is no file")
            data = os.read(fd, BYTES_MAX + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return _bad(path, str(error))
    try:
        said = json.loads(data) if len(data) <= BYTES_MAX else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        return _bad(path, "it is no JSON object")
    env, workdir = said.get("env", {}), said.get("workdir", "")
    if not isinstance(env, dict) or not all(_usable(name, value) for name, value in env.items()):
        return _bad(path, "env is to be an object of strings")
    if not isinstance(workdir, str) or (workdir and not workdir.startswith("/")) or not _text(workdir):
        return _bad(path, "workdir is to be an absolute path")
    return env, workdir


def _usable(name: str, value: object) -> bool:
    return bool(name) and "=" not in name and _text(name) and isinstance(value, str) and _text(value)


def _text(value: str) -> bool:
    """Whether it can be a variable or a path: no NUL, and no half of a pair."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _bad(path: str, why: str) -> tuple[dict[str, str], str]:
    sys.stderr.write(f"{path} is not used: {why}\n")
    return {}, ""
