"""Throw-away machines: each with a name of its own, gone with whoever made it, or removed by the next one.

| in `rebuilds/` of the storage | what |
| --- | --- |
| `<sandbox id>.lock` | held by the process that rebuilds, as long as it lives; made before anything else of it |
| `<sandbox id>.kept` | it stays, suspended: JSON, written once all of it is durable |

One whose lock nobody holds, and that is not kept, is a dead process's: all of it is removed.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import secrets
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.machines.locks import locked
from actors.machines.protocol import MachineError
from replay.rebuild.errors import NoSuchRebuild

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.machines.protocol import Driver
    from replay.history.planned import Version

_log = logging.getLogger(__name__)
_PREFIX = "rebuild-"
_LONGEST = 40
_TOKEN = 3
USED = "used"
"""Verdict of one that somebody went on with after it was compared."""


@dataclass(frozen=True, slots=True)
class KeptRebuild:
    """A rebuild that stays on this node."""

    sandbox_id: str
    """Of its own file tree and snapshot."""
    stream: str
    """What was rebuilt, at `version`."""
    version: int
    snapshot_id: str
    """Memory, processes and files of it, whole on this node."""
    verdict: str
    """What came of it; `USED` where it is not what was compared any more."""


class Place:
    """Where throw-away machines of a storage folder are told apart from those that are dead."""

    def __init__(self, storage: Path) -> None:
        self.folder = storage / "rebuilds"

    def lock(self, sandbox_id: str) -> Path:
        """The file that says that somebody is at it."""
        return self.folder / f"{sandbox_id}.lock"

    def kept_file(self, sandbox_id: str) -> Path:
        """The file that says that it stays."""
        return self.folder / f"{sandbox_id}.kept"

    def take(self, sandbox_id: str) -> int:
        """Make a name ours, as long as this process lives; the descriptor that holds it."""
        with locked(self.folder / ".lock"):
            fd = os.open(self.lock(sandbox_id), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def abandoned(self) -> list[tuple[str, int]]:
        """The names that nobody holds any more, and a descriptor for each, by which they are ours."""
        found: list[tuple[str, int]] = []
        if not self.folder.is_dir():
            return found
        with locked(self.folder / ".lock"):
            for path in sorted(self.folder.glob(f"{_PREFIX}*.lock")):
                try:
                    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue  # given back just now
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                    continue
                found.append((path.stem, fd))
        return found

    def give_back(self, sandbox_id: str, fd: int) -> None:
        """Nothing is left to be held."""
        self.lock(sandbox_id).unlink(missing_ok=True)
        os.close(fd)

    def keep(self, kept: KeptRebuild) -> None:
        """Say, durably, that it stays."""
        fresh = self.folder / f"{kept.sandbox_id}.new"
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(asdict(kept), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.kept_file(kept.sandbox_id))

    def kept(self) -> list[KeptRebuild]:
        """Those that stay, by name."""
        found = []
        for path in sorted(self.folder.glob(f"{_PREFIX}*.kept")) if self.folder.is_dir() else []:
            try:
                found.append(KeptRebuild(**json.loads(path.read_bytes())))
            except FileNotFoundError:
                continue  # removed just now
            except (ValueError, TypeError):
                found.append(KeptRebuild(path.stem, "", 0, "", "its record can't be read"))
        return found


def new_id(target: Version) -> str:
    """A name that says what is rebuilt, and that nobody else has: `rebuild-0123456789abcdef-17-3f9a2c`."""
    tail = f"-{target.version}-{secrets.token_hex(_TOKEN)}"
    of = re.sub(r"[^a-z0-9-]", "", target.stream.removeprefix("sandbox-").removeprefix("sbx-"))
    return _PREFIX + of[: _LONGEST - len(_PREFIX) - len(tail)] + tail


@asynccontextmanager
async def throwaway(driver: Driver, place: Place, target: Version) -> AsyncIterator[str]:
    """A name for a sandbox of which nothing is left at the end, unless `Place.keep` was told to.

    What dead processes left is removed first.
    """
    await sweep(driver, place)
    sandbox_id = new_id(target)
    fd = place.take(sandbox_id)
    try:
        yield sandbox_id
    finally:
        if place.kept_file(sandbox_id).exists():
            place.give_back(sandbox_id, fd)
        else:
            # To its end, also where the rebuild was cancelled; where it can't be, the next one sees to it.
            await asyncio.shield(_remove(driver, place, sandbox_id, fd))


async def sweep(driver: Driver, place: Place) -> list[str]:
    """Remove what rebuilds left whose process is gone; their names."""
    gone = await asyncio.to_thread(place.abandoned)
    for sandbox_id, fd in gone:
        if place.kept_file(sandbox_id).exists():
            place.give_back(sandbox_id, fd)
        else:
            await _remove(driver, place, sandbox_id, fd)
    await driver.sweep()
    return [sandbox_id for sandbox_id, _ in gone]


async def remove_kept(driver: Driver, place: Place, name: str) -> str:
    """Remove a rebuild that was kept, named by its name or a beginning that no other has; its name.

    Raises `NoSuchRebuild`, and `MachineError` where it can't be removed: it is kept then.
    """
    found = [one.sandbox_id for one in place.kept() if one.sandbox_id.startswith(name or "-")]
    if len(found) != 1 and name not in found:
        raise NoSuchRebuild(name=name)
    sandbox_id = name if name in found else found[0]
    await driver.remove(sandbox_id)
    place.kept_file(sandbox_id).unlink(missing_ok=True)
    return sandbox_id


async def _remove(driver: Driver, place: Place, sandbox_id: str, fd: int) -> None:
    try:
        await driver.remove(sandbox_id)
    except MachineError as error:
        os.close(fd)
        _log.warning("a rebuild could not be removed, the next one tries again: %s", error)
    else:
        place.give_back(sandbox_id, fd)
