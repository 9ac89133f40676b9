"""The agent's own Python and bash, for roots that are not ours: brought along from the base template.

A foreign image may have no Python, an old one, or a hostile one, and after a build step nothing in a root is to be
trusted. So the agent of such a template runs on a Python that lies beside it in `AGENT_FOLDER`, with its own C library
and loader, whatever the image has: glibc, musl or nothing. Bash comes along for images that have none.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actors.machines.mounts import run
from actors.template.chroot import run_in_root
from actors.template.manifest import TemplateError

OWN = "own"
"""The folder of it, in `AGENT_FOLDER`. `actors.guest.interpreter` knows what is in it."""

# Parts of the standard library that the agent will never need.
_LEFT_OUT = (
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tkinter",
    "turtledemo",
    "config-*",
    "site-packages",
)
# Run by the Python of the base template, in its root: what makes up a Python that stands by itself.
_LOOK = r"""
import glob, json, os, re, subprocess, sys, sysconfig
python, bash = os.path.realpath(sys.executable), os.path.realpath("/bin/bash")
stdlib = sysconfig.get_path("stdlib")
parts = [python, bash, *glob.glob(stdlib + "/lib-dynload/*.so")]
said = subprocess.run(["ldd", *parts], capture_output=True, text=True).stdout
found = {name: os.path.realpath(path) for name, path in re.findall(r"(\S+) => (/\S+) \(", said)}
loader = re.search(r"^\s*(/\S+) \(", said, re.MULTILINE)[1]
print(json.dumps({
    "python": python, "bash": bash, "stdlib": stdlib, "loader": os.path.realpath(loader), "libraries": found,
    "version": "%d.%d" % sys.version_info[:2],
}))
"""
_Path = Annotated[str, Field(pattern=r"^/\S+$")]


class _Parts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    python: _Path
    bash: _Path
    stdlib: _Path
    loader: _Path
    libraries: dict[Annotated[str, Field(pattern=r"^[\w.+-]+$")], _Path]
    version: Annotated[str, Field(pattern=r"^3\.\d+$")]


def copy_runtime(base: Path, target: Path) -> None:
    """Make the folder `target` from a root that mmdebstrap made, and nobody else has run anything in.

    Raises `TemplateError` where the root has no such Python, `OSError` where it can't be copied.
    """
    said = run_in_root(base, "/usr/bin/python3", "-I", "-c", _LOOK)
    try:
        parts = _Parts.model_validate(json.loads(said))
    except (ValueError, ValidationError) as error:
        raise TemplateError(f"the Python of {base} can't be brought along: {error}") from None
    library = target / "lib"
    library.mkdir(parents=True)
    (target / "bin").mkdir()
    shutil.copy2(base / parts.python[1:], target / "bin/python3")
    shutil.copy2(base / parts.bash[1:], target / "bin/bash")
    shutil.copy2(base / parts.loader[1:], target / "ld.so")
    for name, path in parts.libraries.items():
        shutil.copy2(base / path[1:], library / name)
    # Links lead into the root's /etc, and are of no use here.
    left_out = shutil.ignore_patterns(*_LEFT_OUT, "sitecustomize.py", "_sysconfigdata*", "EXTERNALLY-MANAGED")
    shutil.copytree(base / parts.stdlib[1:], library / f"python{parts.version}", symlinks=True, ignore=left_out)


def run_own_python(own: Path, *arguments: str | Path) -> str:
    """Run the Python of a folder that `copy_runtime` made, here on the host. Raises `CommandFailed`."""
    return run([own / "ld.so", "--library-path", own / "lib", own / "bin/python3", "-I", *arguments])
