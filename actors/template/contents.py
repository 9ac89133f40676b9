"""Looking into a root: what is really in it, by running its programs and asking its package manager."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from blake3 import blake3

from actors.machines.mounts import CommandFailed, run
from actors.template.agent import AGENT_FOLDER
from actors.template.chroot import run_in_root
from actors.template.manifest import TemplateError
from events.tree_reader import TooMuch, read_tree

PROGRAMS = {
    "bash": ["bash", "--version"],
    "busybox": ["busybox"],
    "coreutils": ["ls", "--version"],
    "curl": ["curl", "--version"],
    "gcc": ["gcc", "--version"],
    "git": ["git", "--version"],
    "jq": ["jq", "--version"],
    "make": ["make", "--version"],
    "procps": ["ps", "--version"],
    "pytest": ["python3", "-m", "pytest", "--version"],
    "python3": ["python3", "--version"],
    "ripgrep": ["rg", "--version"],
}
"""Programs that a template must have, and how each tells its version."""


def programs(root: Path) -> dict[str, str]:
    """The version of each of `PROGRAMS`, as it says when run. Raises `TemplateError` for one that does not run."""
    found = {}
    for name, command in PROGRAMS.items():
        try:
            said = run_in_root(root, *command)
        except CommandFailed as error:
            raise TemplateError(f"the template has no working {name}: {error}") from error
        version = re.search(r"\d+(\.\d+)+", said)
        if version is None:
            raise TemplateError(f"the template's {name} does not tell its version")
        found[name] = version.group()
    return found


def packages(root: Path) -> dict[str, str]:
    """Every installed package with its version."""
    listing = run_in_root(root, "dpkg-query", "--show", "--showformat=${Package}\t${Version}\n")
    return dict(sorted(line.split("\t") for line in listing.splitlines()))


def size(root: Path) -> int:
    """Bytes of the root's files."""
    return int(run(["du", "--summarize", "--bytes", "--one-file-system", root], timeout=300).split()[0])


def digest(root: Path) -> str:
    """BLAKE3 of the root's content: names, modes, owners, times, links and bytes, but for the guest agent's.

    Raises `TemplateError` for a tree that is too deep or too large to be a sandbox's.
    """
    all_of_it = blake3()
    try:
        for path, seen in read_tree(root, {}, lambda data: blake3(data).hexdigest()):
            if path != AGENT_FOLDER and not path.startswith(f"{AGENT_FOLDER}/"):
                all_of_it.update(seen.line.encode() + b"\n")
    except TooMuch as error:
        raise TemplateError(f"the root can't be a template's: {error}") from None
    return all_of_it.hexdigest()


def architecture(root: Path) -> str:
    """What dpkg calls the root's architecture: `amd64`, `arm64`."""
    return run_in_root(root, "dpkg", "--print-architecture").strip()


def require_tools() -> None:
    """Raise `TemplateError` where this machine lacks what a build needs."""
    missing = [name for name in ("mmdebstrap", "unshare", "chroot", "apt-get") if shutil.which(name) is None]
    if missing:
        raise TemplateError(f"missing on this machine: {', '.join(missing)}; get them with `make setup`")
