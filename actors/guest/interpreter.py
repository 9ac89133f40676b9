"""Where the agent's own Python and bash are, in a template that brought them along; see `actors.template.runtime`.

They are started through a loader that lies beside them, so that they run whatever C library the template has.
"""

from __future__ import annotations

import os
import sys

OWN = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "own")
BASH = "/bin/bash"


def python() -> list[str]:
    """The command that runs a program as the agent itself is run."""
    return [*_loaded("python3"), "-I", "-S", "-B"] if os.path.isdir(OWN) else [sys.executable, "-I", "-S", "-B"]


def bash() -> list[str]:
    """The command of the shell: the template's bash, and the one that was brought along where there is none."""
    if os.access(BASH, os.X_OK) or not os.path.isdir(OWN):
        return [BASH]
    return _loaded("bash")


def _loaded(program: str) -> list[str]:
    return [f"{OWN}/ld.so", "--library-path", f"{OWN}/lib", f"{OWN}/bin/{program}"]
