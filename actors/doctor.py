"""What `hourglass doctor` looks at: what this machine lacks, why that matters, and the command that mends it."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from actors.machines.drivers import make_driver
from actors.machines.protocol import Finding
from actors.machines.volumes import open_volumes
from actors.settings import SettingsError
from actors.template.agent import agent_digest
from actors.template.manifest import TemplateError, load_manifest

if TYPE_CHECKING:
    from actors.machines.volumes import Volumes
    from actors.settings import Settings

OLDEST_PYTHON = (3, 11)
_GIB = 1024**3
_ROOM_BYTES = 5 * _GIB
"""What a template and a few busy sandboxes take."""


async def check(settings: Settings) -> list[Finding]:
    """Every finding, in the order in which a person would mend them. Changes nothing but to mount the file trees."""
    driver = make_driver(settings)
    volumes = open_volumes(settings.storage, settings.volumes, settings.pool_bytes)
    findings = [check_python(sys.version_info[:3]), check_ray(), check_root(os.geteuid())]
    findings.extend(await driver.check())
    findings.append(check_loop(Path("/dev/loop-control")))
    findings.append(check_mmdebstrap())
    findings.append(check_room("disk", settings.storage, _ROOM_BYTES))
    findings.append(await asyncio.to_thread(check_template, volumes, settings.template, os.geteuid()))
    findings.append(check_environment(settings))
    findings.append(check_key(settings))
    return findings


def check_python(version: tuple[int, ...]) -> Finding:
    """This Python is new enough."""
    said = ".".join(str(part) for part in version)
    if version[:2] >= OLDEST_PYTHON:
        return Finding("python", ok=True, detail=f"{said} at {sys.executable}")
    why = "Hourglass is written for 3.11 and newer"
    return Finding(
        "python", False, f"{said} is too old", why, "install Python 3.11 or newer, then `make setup PYTHON=…`"
    )


def check_ray() -> Finding:
    """Ray is installed. It is not imported: that takes seconds."""
    try:
        return Finding("ray", ok=True, detail=importlib.metadata.version("ray"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("ray", False, "not installed", "sessions and sandboxes run as actors on it", "pip install ray")


def check_root(uid: int) -> Finding:
    """Who we are."""
    if uid == 0:
        return Finding("root", ok=True, detail="running as root")
    why = "mounting file trees and starting gVisor machines needs root; reading a log does not"
    return Finding("root", False, f"running as user {uid}", why, "sudo hourglass …")


def check_loop(control: Path) -> Finding:
    """Loop devices, on which the file trees are mounted."""
    if control.exists():
        return Finding("loop devices", ok=True, detail=str(control))
    why = (
        "the file trees lie in a file that is mounted through one, unless a btrfs disk is mounted in the storage folder"
    )
    return Finding("loop devices", False, f"there is no {control}", why, "modprobe loop", required=False)


def check_mmdebstrap() -> Finding:
    """What builds templates."""
    found = shutil.which("mmdebstrap")
    if found:
        return Finding("mmdebstrap", ok=True, detail=found)
    why = "`hourglass template build` makes the sandboxes' root file system with it"
    return Finding("mmdebstrap", False, "not installed", why, "apt-get install mmdebstrap", required=False)


def check_room(name: str, folder: Path, wanted: int) -> Finding:
    """Room on the disk where `folder` is, or will be. `wanted` in bytes."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    detail = f"{free / _GIB:.1f} GiB free at {folder}"
    if free >= wanted:
        return Finding(name, ok=True, detail=detail)
    why = f"the template and a few sandboxes take {wanted / _GIB:.0f} GiB; a full disk fails every one of them"
    return Finding(name, False, detail, why, "free some, or set storage to a folder on a larger disk")


def check_template(volumes: Volumes, name: str, uid: int) -> Finding:
    """The template is there, whole, and has this version's guest agent."""
    if uid != 0:
        return Finding("template", False, "only root can look", "new sandboxes start from it", "sudo hourglass doctor")
    why = "new sandboxes start from it"
    try:
        volumes.prepare()
        manifest = load_manifest(volumes.templates, name)
    except (TemplateError, OSError) as error:
        return Finding("template", False, str(error), why, f"hourglass template build {name}")
    detail = f"{manifest.name}: {manifest.distribution}, {len(manifest.packages)} packages"
    if manifest.agent_digest != agent_digest():
        detail += "; its guest agent is of another version and is replaced at the next start"
    return Finding("template", ok=True, detail=detail)


def check_environment(settings: Settings) -> Finding:
    """Which environment is served."""
    if settings.environment_id:
        return Finding("environment", ok=True, detail=settings.environment_id, required=False)
    why = "`hourglass up` serves one self-hosted environment; the demo and reading a log need none"
    return Finding("environment", False, "none set", why, "export ANTHROPIC_ENVIRONMENT_ID=env_…", required=False)


def check_key(settings: Settings) -> Finding:
    """The environment's key can be read, by us alone. Never says what it is."""
    why = "`hourglass up` proves with it that it may serve the environment"
    remedy = "put the key into a file of mode 600 and set HOURGLASS_ENVIRONMENT_KEY_FILE"
    try:
        key = settings.read_environment_key()
    except SettingsError as error:
        return Finding("environment key", False, str(error), why, remedy, required=False)
    path = settings.environment_key_file
    if key is None:
        return Finding("environment key", False, "none set", why, remedy, required=False)
    if path is None:
        return Finding("environment key", ok=True, detail="set in the environment or the settings file", required=False)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        open_to = "others can read the key, and with it take the environment's work"
        return Finding(
            "environment key", False, f"{path} is open to others", open_to, f"chmod 600 {path}", required=False
        )
    return Finding("environment key", ok=True, detail=f"in {path}", required=False)
