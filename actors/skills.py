"""Skills: fetched from the API on the host, checked there, and unpacked into the sandbox (contract §13).

An archive is third-party content. It is read here under limits and refused as a whole where a member would leave its
folder; links and devices are skipped; modes collapse to 0755 and 0644. A skill that can't be had is a warning, not a
failed session, as it is for the SDK's worker.
"""

from __future__ import annotations

import asyncio
import io
import logging
import stat
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from actors.api import API_ERRORS, describe, is_rejected_credential

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anthropic import AsyncAnthropic

log = logging.getLogger(__name__)

_ARCHIVE_BYTES_MAX = 64 * 1024**2
_UNPACKED_BYTES_MAX = 256 * 1024**2
_FILES_MAX = 10_000
_EXECUTABLE, _PLAIN = 0o755, 0o644
_UNIX_ZIP_HOSTS = (3, 19)  # creators whose external attributes are a Unix mode (PKWARE APPNOTE §4.4.2)


class SkillRefused(Exception):
    """Raised when a skill's archive is malformed, too large, or has a member outside its folder."""


_UNAVAILABLE: tuple[type[Exception], ...] = (SkillRefused, *API_ERRORS)


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill's files, ready to be written below `skills/<name>/`."""

    name: str
    files: Mapping[str, tuple[bytes, int]]
    """Relative POSIX path → (content, mode)."""


async def fetch_skills(clients: Sequence[AsyncAnthropic], skills: Sequence[Any]) -> list[Skill]:
    """Fetch and read every skill of a session's agent.

    `clients` are tried in turn for each skill: the item's own token first, then the environment key, since the skills
    API is reported to refuse the former (contract §19). What can't be had is logged and left out.
    """
    fetched = []
    for skill in skills:
        try:
            fetched.append(await _fetch(clients, skill.skill_id, skill.version))
        except _UNAVAILABLE as error:
            log.warning("skill left out skill_id=%s %s", skill.skill_id, describe(error))
    return fetched


async def _fetch(clients: Sequence[AsyncAnthropic], skill_id: str, version: str) -> Skill:
    for client in clients[:-1]:
        try:
            return await _fetch_as(client, skill_id, version)
        except API_ERRORS as error:
            if not is_rejected_credential(error):
                raise
    return await _fetch_as(clients[-1], skill_id, version)


async def _fetch_as(client: AsyncAnthropic, skill_id: str, version: str) -> Skill:
    found = await client.beta.skills.versions.retrieve(version, skill_id=skill_id)
    archive = bytearray()
    # By the id that the first call gave: the alias `latest` is not accepted here (contract §3.7).
    async with client.beta.skills.versions.with_streaming_response.download(found.id, skill_id=skill_id) as answer:
        async for chunk in answer.iter_bytes():
            archive += chunk
            if len(archive) > _ARCHIVE_BYTES_MAX:
                raise SkillRefused(f"the archive is larger than {_ARCHIVE_BYTES_MAX} bytes")
    # The last part of the name only: it becomes a folder's name in the sandbox.
    name = PurePosixPath((found.name or "").replace("\\", "/")).name
    return Skill(
        name if name not in ("", ".", "..") else skill_id, await asyncio.to_thread(read_archive, bytes(archive))
    )


def read_archive(archive: bytes) -> dict[str, tuple[bytes, int]]:
    """The regular files of a zip or tar archive: relative path → (content, mode), the wrapping folder stripped.

    Raises `SkillRefused` where the archive can't be read, is too large unpacked, or has an absolute or `..` member.
    """
    try:
        members = _zip_members(archive) if zipfile.is_zipfile(io.BytesIO(archive)) else _tar_members(archive)
        files = _bounded(members)
    except SkillRefused:
        raise
    except Exception as error:
        # Whatever third-party bytes make zipfile, tarfile and their decoders raise; zlib.error and RuntimeError too.
        raise SkillRefused(f"the archive can't be read: {error}") from error
    return _unwrapped(files)


def _relative(name: str) -> str:
    """`name` as a clean relative path; "" for the archive's own root."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise SkillRefused(f"the member {name!r} would leave the skill's folder")
    return "" if path == PurePosixPath(".") else str(path)


def _zip_members(archive: bytes) -> Iterator[tuple[str, bytes | None, int]]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        infos = opened.infolist()
        if sum(info.file_size for info in infos) > _UNPACKED_BYTES_MAX:
            raise SkillRefused(f"unpacked, the archive is larger than {_UNPACKED_BYTES_MAX} bytes")
        for info in infos:
            mode = info.external_attr >> 16 if info.create_system in _UNIX_ZIP_HOSTS else 0
            regular = not info.is_dir() and stat.S_IFMT(mode) in (0, stat.S_IFREG)
            yield info.filename, opened.read(info) if regular else None, mode


def _tar_members(archive: bytes) -> Iterator[tuple[str, bytes | None, int]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened:
            if member.size > _UNPACKED_BYTES_MAX:
                raise SkillRefused(f"unpacked, the archive is larger than {_UNPACKED_BYTES_MAX} bytes")
            content = opened.extractfile(member) if member.isreg() else None
            yield member.name, content.read() if content is not None else None, member.mode


def _bounded(members: Iterator[tuple[str, bytes | None, int]]) -> dict[str, tuple[bytes, int]]:
    files: dict[str, tuple[bytes, int]] = {}
    size = 0
    for count, (name, content, mode) in enumerate(members):
        path = _relative(name)  # every member is screened, also one that is skipped
        size += len(content or b"")
        if size > _UNPACKED_BYTES_MAX or count >= _FILES_MAX:
            raise SkillRefused(f"more than {_FILES_MAX} members or {_UNPACKED_BYTES_MAX} bytes unpacked")
        if path and content is not None:
            files[path] = (content, _EXECUTABLE if mode & 0o111 else _PLAIN)
    return files


def _unwrapped(files: dict[str, tuple[bytes, int]]) -> dict[str, tuple[bytes, int]]:
    """Strip the one folder that wraps everything, if there is one."""
    tops = {path.split("/", 1)[0] for path in files}
    if len(tops) != 1 or not all("/" in path for path in files):
        return files
    return {path.split("/", 1)[1]: content for path, content in files.items()}
