"""Where a secret could lie: each function gives places by name, with the bytes that are there."""

from __future__ import annotations

import os
import re
import stat
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from events.snapshots import SnapshotStore

Place = tuple[str, bytes]
_ZSTD = b"\x28\xb5\x2f\xfd"
PAGE = os.sysconf("SC_PAGESIZE")
_PIECE = 64 * 1024**2
_OVERLAP = 4096
"""Above the length of any needle: what lies across two pieces is in one of them."""


def files(
    folder: Path, *, skipped: Path | None = None, but: Callable[[Path, os.stat_result], bool] = lambda *_: False
) -> Iterator[Place]:
    """Every regular file below a folder, its name, and the targets of links, which are not followed.

    `skipped`: a folder into which nobody looks; `but`: files of which only the name counts.
    """
    for parent, folders, names in os.walk(folder):
        if skipped == Path(parent):
            folders.clear()
            continue
        for name in (*folders, *names):
            path = Path(parent, name)
            with suppress(FileNotFoundError):  # a service that runs removes its files
                status = path.lstat()
                yield f"the name {path}", os.fsencode(name)
                if stat.S_ISLNK(status.st_mode):
                    yield f"the link {path}", os.fsencode(os.readlink(path))
                elif stat.S_ISREG(status.st_mode) and not but(path, status):
                    yield from file(path)


def file(path: Path) -> Iterator[Place]:
    """A file, in pieces."""
    with path.open("rb") as opened:
        rest = b""
        while data := opened.read(_PIECE):
            yield str(path), rest + data
            rest = data[-_OVERLAP:]


def tree(root: Path, template: Path) -> Iterator[Place]:
    """The files of a sandbox's tree, but for those that are its template's own, which nobody has touched."""

    def untouched(path: Path, status: os.stat_result) -> bool:
        try:
            original = (template / path.relative_to(root)).lstat()
        except OSError:
            return False
        return (original.st_ino, original.st_ctime_ns, original.st_size) == (
            status.st_ino,
            status.st_ctime_ns,
            status.st_size,
        )

    return files(root, but=untouched)


def chunks(store: SnapshotStore) -> Iterator[Place]:
    """Every chunk of a snapshot store, unpacked, but for those of templates, which are older than any secret."""
    theirs: set[str] = set()
    for name in store.ids():
        manifest, _ = store.manifest(name)
        if manifest.kind == "template":
            theirs |= {name for line in store.lines(manifest) for name in re.findall(r"\b[0-9a-f]{64}\b", line)}
    for name in store.chunks.names().keys() - theirs:
        yield f"the chunk {name}", store.chunks.get(name, "any")


def archive(path: Path) -> Iterator[Place]:
    """The members of an exported session, unpacked."""
    with tarfile.open(path) as tar:
        for member in tar:
            opened = tar.extractfile(member)
            assert opened is not None
            data = opened.read()
            if data.startswith(_ZSTD):
                data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
            yield f"{member.name} in {path}", member.name.encode() + b"\n" + data


def command_lines() -> Iterator[Place]:
    """Of every process of this computer, where everybody can read them."""
    return _of_processes(_processes(), "cmdline")


def environments(pids: Iterable[int]) -> Iterator[Place]:
    """Of some processes, as they were started with. Those of others are nobody's business."""
    return _of_processes(pids, "environ")


def _of_processes(pids: Iterable[int], what: str) -> Iterator[Place]:
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended
            yield f"{what} of process {pid}", Path(f"/proc/{pid}/{what}").read_bytes()


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def family(pid: int) -> set[int]:
    """A process and all that it started, and they, as far as each one's parent lives."""
    children: dict[int, list[int]] = {}
    for one in _processes():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended
            parent = int(Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(one)
    found, waiting = set(), [pid]
    while waiting:
        found.add(one := waiting.pop())
        waiting += children.get(one, [])
    return found


def memory(pid: int) -> Iterator[Place]:
    """What a process may write to of its memory, and has."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem, open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for begin, end in _written(Path(f"/proc/{pid}/smaps").read_text()):
            for at in range(begin, end, _PIECE):
                size = min(_PIECE, end - at)
                pagemap.seek(at // PAGE * 8)
                with suppress(OSError):  # the pages of a device
                    yield f"the memory of process {pid} at {at:x}", _present(mem, at, pagemap.read(size // PAGE * 8))


def _written(smaps: str) -> Iterator[tuple[int, int]]:
    """Where a process may write, and has something there."""
    span = (0, 0)
    for line in smaps.splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            begin, end = (int(part, 16) for part in name.split("-"))
            span = (begin, end) if rest[0].startswith("rw") else (0, 0)
        elif name == "Rss:" and int(rest[0]) and span[1]:
            yield span


def _present(mem: BinaryIO, begin: int, entries: bytes) -> bytes:
    """The pages that are there, one after the other: next to each other where they are so in memory."""
    there = np.flatnonzero(np.frombuffer(entries, dtype="u8") >> np.uint64(63))
    runs = np.split(there, np.flatnonzero(np.diff(there) != 1) + 1) if len(there) else []
    return b"".join(os.pread(mem.fileno(), len(run) * PAGE, begin + int(run[0]) * PAGE) for run in runs)
