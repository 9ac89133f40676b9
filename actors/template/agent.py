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

AGENT_FOLDER = "opt/hourglass"
"""Relative to the root."""
AGENT_COMMAND = ["/usr/bin/python3", "-I", "-S", "-B", f"/{AGENT_FOLDER}/actors/guest/__main__.py"]
"""The command line of PID 1."""


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
    """Put the agent into a root of ours. The root must be no guest's: links in it are followed."""
    folder = root / AGENT_FOLDER
    if folder.exists():
        shutil.rmtree(folder)
    for name, data in agent_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    # Unchecked: the folder is mounted read-only, so looking at the sources' dates at each start finds out nothing.
    compile_all = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", f"/{AGENT_FOLDER}/actors"]
    run_in_root(root, "/usr/bin/python3", "-I", *compile_all)
