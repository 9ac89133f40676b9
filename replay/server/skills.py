"""Skills: named folders of files, fetched as zip archives (contract §3.7, §13)."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

from replay.server.errors import invalid, missing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from replay.recording import JsonObject
    from replay.server.clock import Clock, Ids

_EXECUTABLE = 0o755 << 16
_PLAIN = 0o644 << 16


class Skills:
    """Every skill of the server. A skill's archive is wrapped in one folder of its name, as the API's are."""

    def __init__(self, clock: Clock, ids: Ids) -> None:
        self._clock = clock
        self._ids = ids
        self._versions: dict[str, list[JsonObject]] = {}
        self._archives: dict[str, bytes] = {}

    def add(self, name: str, files: Mapping[str, bytes | str], *, skill_id: str | None = None) -> JsonObject:
        """A new skill, or a new version of `skill_id`.

        Args:
            name: The folder's name.
            files: Content by path within the folder; a path ending in `.sh` is executable.
            skill_id: The skill to add a version to; it need not exist.

        Returns:
            The SkillVersion object.
        """
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in files.items():
                entry = zipfile.ZipInfo(f"{name}/{path}")
                entry.create_system = 3
                entry.external_attr = _EXECUTABLE if path.endswith(".sh") else _PLAIN
                archive.writestr(entry, content)
        return self.add_archive(name, packed.getvalue(), skill_id=skill_id)

    def add_archive(self, name: str, archive: bytes, *, skill_id: str | None = None) -> JsonObject:
        """As `add`, with an archive served as it is, be it sound or hostile."""
        skill_id = skill_id or self._ids.mint("skill_")
        version: JsonObject = {
            "id": self._ids.mint("skillver_"),
            "type": "skill_version",
            "skill_id": skill_id,
            "name": name,
            "description": f"The skill {name}.",
            "created_at": self._clock.stamp(),
        }
        self._versions.setdefault(skill_id, []).append(version)
        self._archives[version["id"]] = archive
        return version

    def all(self) -> list[JsonObject]:
        """The skills, newest first."""
        return [self.get(skill_id) for skill_id in reversed(self._versions)]

    def get(self, skill_id: str) -> JsonObject:
        """A Skill object. Raises ApiError (404)."""
        versions = self.versions(skill_id)
        return {
            "id": skill_id,
            "type": "skill",
            "source": "custom",
            "display_title": versions[-1]["name"],
            "latest_version": versions[-1]["id"],
            "created_at": versions[0]["created_at"],
            "updated_at": versions[-1]["created_at"],
        }

    def versions(self, skill_id: str) -> list[JsonObject]:
        """Oldest first. Raises ApiError (404)."""
        if skill_id not in self._versions:
            raise missing("Skill", skill_id)
        return self._versions[skill_id]

    def version(self, skill_id: str, version: str) -> JsonObject:
        """A version by its id, or `latest`. Raises ApiError (404)."""
        versions = self.versions(skill_id)
        found = [one for one in versions if version in ("latest", one["id"])]
        if not found:
            raise missing(f"Skill {skill_id}, version", version)
        return found[-1]

    def content(self, skill_id: str, version_id: str) -> bytes:
        """A version's archive. Raises ApiError (400 for the alias, 404)."""
        if version_id == "latest":
            raise invalid("version: 'latest' is not accepted here, give the version's id")
        return self._archives[self.version(skill_id, version_id)["id"]]

    def delete(self, skill_id: str) -> None:
        """Forget a skill. Raises ApiError (404)."""
        for version in self.versions(skill_id):
            del self._archives[version["id"]]
        del self._versions[skill_id]
