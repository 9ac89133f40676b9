"""Making a template: `build_template` from packages, `ensure_agent` from the template that is there.

Both make a new root beside the old one and then replace the manifest, so a template is whole at every moment and a
build that dies leaves nothing but a root that the next build removes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from actors.machines.locks import locked
from actors.template import contents
from actors.template.agent import agent_digest, has_own_runtime, install_agent
from actors.template.finish import HOSTS
from actors.template.manifest import BUILD_HINT, Manifest, TemplateError, TemplateMissing, load_manifest, save_manifest
from actors.template.sources import Sources, machine_sources, read_os_release

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actors.machines.volumes import Volumes

    Progress = Callable[[float, str], None]
    """Hears how far a build is, from 0 to 1, and what it does."""

# What the six tools and everyday commands of an agent need.
_EVERYDAY = (
    "bash,busybox-static,ca-certificates,coreutils,curl,diffutils,file,findutils,gawk,git,grep,gzip,iproute2,jq,less,"
    "patch,procps,psmisc,python3,python3-pip,python3-pytest,python3-venv,ripgrep,sed,tar,unzip,xz-utils,zip"
)
_TO_BUILD_WITH = "build-essential,pkg-config"
_LOCALE = "LANG=C.UTF-8\n"
# mmdebstrap's own phases, and how far the build is when each begins; by the clock on a two-core machine.
_PHASES = (
    ("running apt-get update", 0.02, "reading the package lists"),
    ("downloading packages", 0.06, "downloading the base packages"),
    ("extracting archives", 0.12, "unpacking the base packages"),
    ("installing essential", 0.18, "installing the base packages"),
    ("installing remaining", 0.32, "downloading the other packages"),
    ("cleaning package lists", 0.9, "cleaning up"),
)
_REMAINING = (0.32, 0.88)


def build_template(volumes: Volumes, name: str, progress: Progress, *, force: bool = False) -> Manifest:
    """The template, built if it is not there, broken, or `force`.

    Raises `TemplateError`, and `OSError` where the storage fails. Takes half a minute to two minutes.
    """
    volumes.prepare()
    with locked(volumes.templates / f"{name}.lock"):
        if not force:
            try:
                return _refresh(volumes, load_manifest(volumes.templates, name))
            except TemplateError:
                pass  # Missing or broken: that is what the rest is for.
        contents.require_tools()
        began = time.monotonic()
        sources = machine_sources()
        drop_leftovers(volumes, name)
        root_name = f"{name}-{secrets.token_hex(4)}"
        root = volumes.new_root(root_name)
        _bootstrap(root, sources, progress)
        progress(0.92, "putting the guest agent in")
        _finish(root)
        progress(0.94, "looking into it")
        manifest = Manifest(
            name=name,
            root=root_name,
            built_at=datetime.now(UTC),
            distribution=read_os_release(root / "usr/lib/os-release").get("PRETTY_NAME", "unknown"),
            suite=sources.suite,
            architecture=contents.architecture(root),
            agent_digest=agent_digest(),
            programs=contents.programs(root),
            packages=contents.packages(root),
            bytes=contents.size(root),
            digest=contents.digest(root),
            build_seconds=round(time.monotonic() - began, 1),
        )
        volumes.seal_root(root_name)
        save_manifest(volumes.templates, manifest)
        drop_leftovers(volumes, name)
    progress(1.0, "done")
    return manifest


def ensure_agent(volumes: Volumes, name: str) -> Manifest:
    """The template with the guest agent of this code in it, refreshed where it has another. Quick where it has not.

    Raises `TemplateError` where there is no template.
    """
    manifest = load_manifest(volumes.templates, name)
    if manifest.agent_digest == agent_digest():
        return manifest
    with locked(volumes.templates / f"{name}.lock"):
        return _refresh(volumes, load_manifest(volumes.templates, name))


def _refresh(volumes: Volumes, manifest: Manifest) -> Manifest:
    digest = agent_digest()
    if manifest.agent_digest == digest:
        return manifest
    root_name = f"{manifest.name}-{secrets.token_hex(4)}"
    root = volumes.clone_root(manifest.root, root_name)
    if manifest.is_derived and not has_own_runtime(root):
        raise TemplateError(f"the template {manifest.name!r} has lost its agent's Python; {BUILD_HINT} --force")
    install_agent(root)
    volumes.seal_root(root_name)
    refreshed = manifest.model_copy(update={"root": root_name, "agent_digest": digest})
    save_manifest(volumes.templates, refreshed)
    drop_leftovers(volumes, manifest.name)
    return refreshed


def drop_leftovers(volumes: Volumes, name: str) -> None:
    """Remove roots of this template that nothing needs: neither its manifest, nor a sandbox, nor a machine."""
    try:
        needed = {load_manifest(volumes.templates, name).root}
    except TemplateMissing:
        needed = set()
    except TemplateError:
        # The manifest is unreadable or names a root that is gone: either way no root is known to be good.
        needed = set()
    needed |= volumes.roots_in_use() | _roots_of_machines(volumes)
    for entry in list(volumes.templates.iterdir()):
        if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{8}}", entry.name) and entry.name not in needed:
            volumes.drop_root(entry.name)


def _roots_of_machines(volumes: Volumes) -> set[str]:
    """Roots whose agent folder is mounted in a machine that runs or is being started."""
    roots = set()
    for path in volumes.storage.glob("machines/*/machine.json"):
        if (path.parent / "exit.json").exists() or (path.parent / "killed").exists():
            continue
        try:
            roots.add(str(json.loads(path.read_bytes())["template_root"]))
        except (OSError, ValueError, KeyError):
            continue  # Being removed: nothing runs from it.
    return roots


def _bootstrap(root: Path, sources: Sources, progress: Progress) -> None:
    command = [
        "mmdebstrap",
        "--verbose",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        # A build that dies is thrown away whole: syncing each file buys nothing.
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--aptopt={option.rstrip(';')}" for option in sources.apt_options),
        f"--include={_EVERYDAY},{_TO_BUILD_WITH}",
        sources.suite,
        str(root),
        "-",
    ]
    progress(0.0, "starting mmdebstrap")
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )
    with process:
        if process.stdin is None or process.stderr is None:
            raise AssertionError("Popen was asked for both pipes")
        process.stdin.write("\n".join(sources.lines) + "\n")
        process.stdin.close()
        last = deque[str](maxlen=200)
        meter = Meter(progress)
        for line in process.stderr:
            last.append(line.rstrip())
            meter.hear(line)
    if process.returncode != 0:
        raise TemplateError(f"mmdebstrap failed with exit code {process.returncode}: {_cause(list(last))}")


def _cause(lines: list[str]) -> str:
    """The lines of a failed build that say why; the last ones where none stands out."""
    telling = [
        line for line in lines if re.match(r"(E|Err|W|dpkg: error)[: ]", line) and "mmdebstrap failed" not in line
    ]
    return "; ".join(line[:300] for line in (telling or lines)[-4:]) or "it said nothing"


class Meter:
    """Turns what mmdebstrap prints into progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._remaining = False
        self._steps = 0
        self._done = 0

    def hear(self, line: str) -> None:
        """Take one line of mmdebstrap's output."""
        for marker, fraction, text in _PHASES:
            if line.startswith(f"I: {marker}"):
                self._remaining = marker == "installing remaining"
                self._progress(fraction, text)
                return
        if not self._remaining:
            return
        if match := re.match(r"\d+ upgraded, (\d+) newly installed", line):
            # Each package is downloaded, unpacked and set up.
            self._steps = 3 * int(match.group(1))
        elif self._steps and (match := re.match(r"(Get:|Unpacking|Setting up)\s?(\S+)", line)):
            self._done = min(self._done + 1, self._steps)
            start, end = _REMAINING
            text = "downloading packages" if match.group(1) == "Get:" else f"installing {match.group(2).split(':')[0]}"
            self._progress(start + (end - start) * self._done / self._steps, text)


def _finish(root: Path) -> None:
    (root / "workspace").mkdir(mode=0o755)
    (root / "etc/default/locale").write_text(_LOCALE, encoding="ascii")
    (root / "etc/hostname").write_text("sandbox\n", encoding="ascii")
    (root / "etc/hosts").write_text(HOSTS, encoding="ascii")
    # mmdebstrap copies the builder's own; what it says of the network around here is nobody's business inside.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("", encoding="ascii")
    # Each sandbox is to be itself.
    (root / "etc/machine-id").write_text("", encoding="ascii")
    install_agent(root)
