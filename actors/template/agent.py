"""The guest agent's place in a root: put there, compiled by the root's own Python, and known by a digest.

A machine mounts this folder of its *template*, read-only, whatever its own tree has there: after an upgrade, old
sandboxes get the new agent at their next start, and nothing in a guest can change what starts as its PID 1.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from importlib import resources
from pathlib import Path

from actors.template.chroot import run_in_root
from actors.template.runtime import OWN, run_own_python

AGENT_FOLDER = "opt/hourglass"
"""Relative to the root."""
_START = ["-I", "-S", "-B", f"/{AGENT_FOLDER}/actors/guest/__main__.py"]


def agent_command(root: Path) -> list[str]:
    """The command line of PID 1 in machines of a template's root: on the root's Python, or on the agent's own."""
    if not has_own_runtime(root):
        return ["/usr/bin/python3", *_START]
    own = f"/{AGENT_FOLDER}/{OWN}"
    return [f"{own}/ld.so", "--library-path", f"{own}/lib", f"{own}/bin/python3", *_START]


def has_own_runtime(root: Path) -> bool:
    """Whether the agent of a root brought its Python along."""
    return (root / AGENT_FOLDER / OWN).is_dir()


def agent_files() -> dict[str, bytes]:
    """What goes into `AGENT_FOLDER`, by path."""
    files = {"actors/__init__.py": b""}
    for entry in resources.files("actors.guest").iterdir():
        if entry.name.endswith(".py"):
            files[f"actors/guest/{entry.name}"] = entry.read_bytes()
    return files


@cache
def agent_digest() -> str:
    """SHA-256 over the agent's files and their names."""
    digest = hashlib.sha256()
    for name, data in sorted(agent_files().items()):
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def install_agent(root: Path) -> None:
    """Put the agent into a root, beside the Python that it brought along if it did.

    The way to `AGENT_FOLDER` must be ours: links in it are followed. A root without a Python of the agent's own must be
    ours as a whole, since its programs are run.
    """
    folder = root / AGENT_FOLDER
    if (folder / "actors").exists():
        shutil.rmtree(folder / "actors")
    for name, data in agent_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    # Unchecked: the folder is mounted read-only, so looking at the sources' dates at each start finds out nothing.
    compile_all = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    if has_own_runtime(root):
        run_own_python(folder / OWN, *compile_all, "-s", root, "-p", "/", folder / "actors")
    else:
        run_in_root(root, "/usr/bin/python3", "-I", *compile_all, f"/{AGENT_FOLDER}/actors")
