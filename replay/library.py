"""The recordings a server can play, by name: those of the given folders, then those that ship with Hourglass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from replay.recording import SUFFIX, Recording, RecordingMissing, RecordingNameTaken, load

if TYPE_CHECKING:
    from collections.abc import Sequence

SHIPPED = Path(__file__).parent / "recordings"


class Library:
    """Recordings by name. A folder's own recording wins over a shipped one of its name."""

    def __init__(self, folders: Sequence[Path] = (), *, shipped: bool = True) -> None:
        """Read every recording of the folders. Raises RecordingError for the first that can't be used."""
        self._recordings: dict[str, Recording] = {}
        for folder in ([SHIPPED] if shipped else []) + list(reversed(folders)):
            if not folder.is_dir():
                raise RecordingMissing(f"folder {folder}", "Give --recordings a folder that exists.")
            self._recordings |= _read(folder)

    @property
    def names(self) -> list[str]:
        """Sorted."""
        return sorted(self._recordings)

    def add(self, recording: Recording) -> None:
        """Make a recording playable under its name, in place of one that had it."""
        self._recordings[recording.name] = recording

    def get(self, name: str) -> Recording:
        """The recording of that name. Raises RecordingMissing."""
        try:
            return self._recordings[name]
        except KeyError:
            raise RecordingMissing(f"named {name!r}", f"Name one of: {', '.join(self.names) or 'none'}.") from None


def _read(folder: Path) -> dict[str, Recording]:
    found: dict[str, Recording] = {}
    files: dict[str, Path] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        recording = load(path)
        if recording.name in found:
            raise RecordingNameTaken(recording.name, str(files[recording.name]), str(path))
        found[recording.name] = recording
        files[recording.name] = path
    return found
