"""Throw-away machines: each with a name of its own, gone with whoever made it, or removed by the next one.

| in `rebuilds/` of the storage | what |
| --- | --- |
| `<sandbox id>.lock` | held by the process that rebuilds, as long as it lives; made before anything else of it |
| `<sandbox id>.kept` | it stays, suspended: JSON, written once all of it is durable |

One whose lock nobody holds, and that is not kept, is a dead process's: all of it is removed. One that is to be a branch
has the log's path in its lock, as JSON, from before it is appended there: it stays where that log has its stream.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import secrets
import time
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.machines.locks import locked
from actors.machines.protocol import MachineError
from events.errors import LogError
from events.sqlite_log import SqliteLog
from replay.rebuild.errors import NoSuchRebuild

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.machines.protocol import Driver
    from replay.history.planned import Version

_log = logging.getLogger(__name__)
_PREFIX = "rebuild-"
_LONGEST = 40
_TOKEN = 3
_APPENDING_S = 60.0
"""Longer than an append may take that was handed to the service: it goes on without the process that asked for it."""
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
            for path in sorted(self.folder.glob("[a-z]*.lock")):
                try:
                    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue  # given back just now
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                    continue
                if not os.fstat(fd).st_nlink:
                    os.close(fd)
                    continue  # given back between the two: its name is nobody's, and what had it may stay
                found.append((path.stem, fd))
        return found

    def give_back(self, sandbox_id: str, fd: int) -> None:
        """Nothing is left to be held."""
        self.lock(sandbox_id).unlink(missing_ok=True)
        os.close(fd)

    def promise(self, sandbox_id: str, log: Path) -> None:
        """Say, durably, that it stays if that log has its stream; to be said before the stream is appended."""
        with self.lock(sandbox_id).open("w", encoding="utf-8") as file:
            json.dump(str(log.absolute()), file)
            file.flush()
            os.fsync(file.fileno())

    def withdraw(self, sandbox_id: str) -> None:
        """Say that the stream will never be appended."""
        os.truncate(self.lock(sandbox_id), 0)

    def stays(self, sandbox_id: str) -> bool | None:
        """Whether it stays when nobody holds it; None where that can't be known now, and nothing may be done to it."""
        if self.kept_file(sandbox_id).exists():
            return True
        lock = self.lock(sandbox_id)
        try:
            promised = Path(json.loads(lock.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return False  # nothing was promised, or somebody died while it was written, before any append
        try:
            with SqliteLog(promised, read_only=True) as log:
                if log.version(f"sandbox-{sandbox_id}"):
                    return True
        except LogError as error:
            _log.warning("%s may be a branch, and is left alone: %s", sandbox_id, error)
            return None
        return None if time.time() - lock.stat().st_mtime < _APPENDING_S else False

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
async def throwaway(driver: Driver, place: Place, target: Version, named: str = "") -> AsyncIterator[str]:
    """A name for a sandbox of which nothing is left at the end, unless `Place.keep` was told to, or a log has it.

    What dead processes left is removed meanwhile. `named`: it has this name, which nobody else has.
    """
    sandbox_id = named or new_id(target)
    fd = place.take(sandbox_id)
    sweeping = asyncio.create_task(sweep(driver, place), name="sweep of rebuilds")
    try:
        yield sandbox_id
    finally:
        # To its end, also where the rebuild was cancelled; where it can't be, the next one sees to it.
        await asyncio.shield(_settle(driver, place, sandbox_id, fd))
        await asyncio.wait([sweeping])
        if not sweeping.cancelled() and (error := sweeping.exception()):
            _log.warning("what dead rebuilds left is not removed, the next one tries again: %s", error)


async def sweep(driver: Driver, place: Place) -> list[str]:
    """Remove what rebuilds left whose process is gone; their names."""
    gone = await asyncio.to_thread(place.abandoned)
    for sandbox_id, fd in gone:
        await _settle(driver, place, sandbox_id, fd)
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


async def _settle(driver: Driver, place: Place, sandbox_id: str, fd: int) -> None:
    """Give back the name of one that stays, and remove any other, where it is known which it is."""
    stays = await asyncio.to_thread(place.stays, sandbox_id)
    if stays is None:
        os.close(fd)
    elif stays:
        place.give_back(sandbox_id, fd)
    else:
        await _remove(driver, place, sandbox_id, fd)


async def _remove(driver: Driver, place: Place, sandbox_id: str, fd: int) -> None:
    try:
        await driver.remove(sandbox_id)
    except MachineError as error:
        os.close(fd)
        _log.warning("a rebuild could not be removed, the next one tries again: %s", error)
    else:
        place.give_back(sandbox_id, fd)
