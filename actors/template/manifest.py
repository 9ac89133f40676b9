"""A template's manifest: which root it has now and what is in it, found out by looking into that root.

The manifest is the template: a build or a new agent makes a new root beside the old one, and the template changes at
the moment when the manifest is replaced. What it does not name is a leftover of a build that died.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from events.payload import JsonObject

NAME = r"[a-z0-9][a-z0-9-]{0,39}"
"""What can name a template."""
BASE = "base"
"""The template that is always this machine's own distribution, and lends others the agent's Python."""
BUILD_HINT = "build it with `hourglass template build`"


class TemplateError(Exception):
    """Raised when there is no usable template or none can be built; the message names the cause and the next step."""


class StepFailed(TemplateError):
    """Raised when the command of a step fails, or its machine; has what it printed."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output
        """Untrusted, and bounded."""

    next_step = "Mend the step and build again: the steps before it are kept, and are not run again."


class TemplateMissing(TemplateError):
    """Raised when there is no template of that name."""


class Manifest(BaseModel):
    """What `templates/<name>.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    root: str
    """The folder of the root file system, beside the manifest."""
    built_at: datetime
    distribution: str
    """`PRETTY_NAME` of the root's os-release."""
    suite: str
    """The release's code name: `bookworm`, `trixie`, `noble`."""
    architecture: str
    agent_digest: str
    """Of the guest agent in it; see `actors.template.agent`."""
    programs: dict[str, str]
    """What each program says of its version, when run in the root."""
    packages: dict[str, str]
    """Every package of the root, with its version."""
    bytes: int
    """Size of the root's files."""
    build_seconds: float
    origin: str = "debian"
    """What it was made from; see `actors.template.origin`."""
    origin_id: str = ""
    """Which state of that it was: an image's digest, a digest of a file, another template's time of building."""
    steps: list[JsonObject] = []
    """In order; see `actors.template.steps`."""
    env: dict[str, str] = {}
    """What the sandboxes' programs have in their environment, beyond the usual."""
    workdir: str = ""
    """Where they start; "" is `/workspace`."""
    layers: list[str] = []
    """What of `actors.template.layers` it was made of."""
    digest: str = ""
    """BLAKE3 of the root's content but for the guest agent; "" where an older version built it."""

    @property
    def is_derived(self) -> bool:
        """Whether programs have run in its root that are not this distribution's own: they are not run on the host."""
        return self.origin != "debian" or bool(self.steps)


def manifest_path(templates: Path, name: str) -> Path:
    """Where a template's manifest lies."""
    return templates / f"{name}.json"


def load_manifest(templates: Path, name: str) -> Manifest:
    """Read a manifest and see that its root is there. Raises `TemplateMissing` or `TemplateError`."""
    path = manifest_path(templates, name)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise TemplateMissing(f"there is no template {name!r} in {templates}; {BUILD_HINT}") from None
    except (OSError, ValidationError) as error:
        detail = error.strerror if isinstance(error, OSError) else f"{error.error_count()} bad fields"
        raise TemplateError(f"the manifest {path} can't be read ({detail}); {BUILD_HINT} --force") from None
    if not (templates / manifest.root).is_dir():
        raise TemplateError(
            f"the template {name!r} is broken: {templates / manifest.root} is gone; {BUILD_HINT} --force"
        )
    return manifest


def save_manifest(templates: Path, manifest: Manifest) -> None:
    """Make this the template: at once, and for good even where the power goes."""
    path = manifest_path(templates, manifest.name)
    fresh = path.with_suffix(".json.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(templates, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
