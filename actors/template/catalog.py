"""The templates of a storage folder: which there are, what needs them, and taking one away."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.machines.boots import PREFIX as BOOT
from actors.machines.folder import MachineFolder
from actors.machines.images import Images
from actors.machines.locks import locked
from actors.template.layers import Layers
from actors.template.manifest import TemplateError, TemplateMissing, load_manifest, manifest_path
from actors.template.workshop import PREFIX as BUILD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actors.machines.node import Node
    from actors.machines.volumes import Volumes
    from actors.template.manifest import Manifest


class TemplateInUse(TemplateError):
    """Raised when a template can't be removed, because sandboxes need it."""

    next_step = "End them with `hourglass kill`, or keep the template."


@dataclass(frozen=True, slots=True)
class Listed:
    """One template, or what is left of it."""

    name: str
    manifest: Manifest | None
    """None where it is broken."""
    problem: str = ""
    """Why it is."""
    sandboxes: list[str] = field(default_factory=list)
    """Those of this storage folder that were made from it."""


def list_templates(volumes: Volumes) -> list[Listed]:
    """Every template, by name."""
    volumes.prepare()
    made = _sandboxes(volumes)
    listed = []
    for path in sorted(volumes.templates.glob("*.json")):
        name = path.stem
        users = sorted(sandbox_id for sandbox_id, roots in made.items() if any(_is_of(name, root) for root in roots))
        try:
            listed.append(Listed(name, load_manifest(volumes.templates, name), sandboxes=users))
        except TemplateMissing:
            continue  # Removed since.
        except TemplateError as error:
            listed.append(Listed(name, None, str(error), users))
    return listed


def remove_template(node: Node, name: str, alive: Iterable[str] = ()) -> list[str]:
    """Remove a template; the names of the roots that went with it.

    At once out of use, then its files: whoever dies in between leaves what the next removal or build of it removes.

    Args:
        alive: sandboxes of it that live by the log.

    Raises:
        TemplateMissing: there is none, and nothing is left of it.
        TemplateInUse: a sandbox was made from it that is not gone.
        OSError: the storage failed.
    """
    volumes = node.volumes
    volumes.prepare()
    with locked(Layers(volumes).lock), locked(volumes.templates / f"{name}.lock"):
        made = _sandboxes(volumes)
        users = {sandbox_id for sandbox_id, roots in made.items() if any(_is_of(name, root) for root in roots)}
        users.update(alive)
        if users:
            shown = ", ".join(sorted(users)[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
            raise TemplateInUse(f"the template {name!r} is needed by {shown}")
        roots = [entry.name for entry in volumes.templates.iterdir() if _is_of(name, entry.name) and entry.is_dir()]
        if not roots and not manifest_path(volumes.templates, name).exists():
            (volumes.templates / f"{name}.lock").unlink()
            raise TemplateMissing(f"there is no template {name!r} in {volumes.templates}; see `hourglass template ls`")
        manifest_path(volumes.templates, name).unlink(missing_ok=True)
        for snapshot_id in node.images.ids():
            if any(snapshot_id.startswith(f"{BOOT}{root}-") for root in roots):
                node.drop_snapshot(snapshot_id)
        for root in roots:
            volumes.drop_root(root)
        Layers(volumes).drop_unused()
        (volumes.templates / f"{name}.lock").unlink()
    return sorted(roots)


def _is_of(name: str, root: str) -> bool:
    return re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{8}}", root) is not None


def _sandboxes(volumes: Volumes) -> dict[str, set[str]]:
    """The roots that each sandbox of this storage folder can't do without, or was last started from."""
    found: dict[str, set[str]] = {}
    for path in volumes.storage.glob("machines/*/machine.json"):
        record = MachineFolder(volumes.storage, path.parent.name).record()
        if record is not None:
            found.setdefault(record.sandbox_id, set()).add(record.template_root)
    for snapshot in Images(volumes.snapshots).records():
        found.setdefault(snapshot.sandbox_id, set()).add(snapshot.template_root)
    for sandbox_id in volumes.sandboxes():
        lower = volumes.lower_root(sandbox_id)
        if lower:
            found.setdefault(sandbox_id, set()).add(lower)
    return {sandbox_id: roots for sandbox_id, roots in found.items() if not sandbox_id.startswith((BOOT, BUILD))}
