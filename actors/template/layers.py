"""The layer cache: roots that steps have led to, by what led there, so that a second build begins where it changed.

A layer is named by the digest of its parent's name and its step. It is made under another name, written to the disk,
and then renamed: what has a layer's name is whole. With btrfs it costs what it changed; with overlays it is a copy.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from blake3 import blake3

from actors.template.manifest import TemplateError, load_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actors.machines.volumes import Volumes

_FOLDER = "layers"
_UNUSED_SECONDS = 24 * 3600.0
"""How long a layer is kept that no template was made of: a build that failed at its end is soon tried again."""
_FORMAT = "1"
"""Goes into every name: to be counted up when the same step comes to mean something else."""


def layer_key(*parts: str) -> str:
    """The name of a layer, from what led to it."""
    digest = blake3(_FORMAT.encode())
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


class Layers:
    """The layers of one storage folder. Whoever makes some holds the lock `lock`."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._folder = volumes.templates / _FOLDER
        # Not `layers.lock`, which a template called `layers` has.
        self.lock = volumes.templates / f".{_FOLDER}.lock"

    def find(self, key: str) -> Path | None:
        """A layer that is there."""
        path = self._folder / key
        return path if path.is_dir() else None

    def make(self, key: str, fill: Callable[[str], object]) -> Path:
        """Make a layer: `fill` is given the name of a root that is not there yet, and makes it, or fails."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        fresh = f"{_FOLDER}/{key}.new"
        self._volumes.drop_root(fresh)
        try:
            fill(fresh)
            self._volumes.seal_root(fresh)
            self._volumes.drop_root(f"{_FOLDER}/{key}")  # Where it is made anew.
        except BaseException:
            # What can't be removed now is removed by the next build.
            with contextlib.suppress(OSError):
                self._volumes.drop_root(fresh)
            raise
        return (self._volumes.templates / fresh).rename(self._folder / key)

    def touch(self, key: str) -> None:
        """Count a layer as used now. (A layer's own time is its root's, which a step may set.)"""
        (self._folder / f"{key}.used").touch()

    def drop_unused(self) -> None:
        """Remove half-made layers, and those that no template was made of and nobody has used for a day."""
        if not self._folder.is_dir():
            return
        needed = self._needed()
        for path in list(self._folder.iterdir()):
            if path.suffix == ".used":
                continue
            if path.suffix == ".new" or (path.name not in needed and self._age(path.name) > _UNUSED_SECONDS):
                self._volumes.drop_root(f"{_FOLDER}/{path.name}")
                (self._folder / f"{path.name}.used").unlink(missing_ok=True)

    def _age(self, key: str) -> float:
        try:
            return time.time() - (self._folder / f"{key}.used").stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def _needed(self) -> set[str]:
        needed: set[str] = set()
        for path in self._volumes.templates.glob("*.json"):
            with contextlib.suppress(TemplateError):  # A broken template needs nothing.
                needed.update(load_manifest(self._volumes.templates, path.stem).layers)
        return needed
