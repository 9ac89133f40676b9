"""Large data beside the log, by content: `blobs/ab/<sha256 in hex>`.

A blob is durable before the row that names it: written to a temporary file, synced, renamed, its directory synced.
A crash leaves at worst a temporary file, which the next writer removes, or a blob that no row names.
"""

from __future__ import annotations

import os
import tempfile
from hashlib import sha256
from pathlib import Path

from events.errors import BlobBroken

_TEMPORARY = "writing-"


class BlobStore:
    """A directory of blobs. One writer, any number of readers."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where a blob with this digest lies, if it does. `digest` is from a row that the log wrote."""
        return self.root / digest[:2] / digest

    def put(self, content: bytes) -> str:
        """Write a blob durably and return its digest; one that is there and whole is not written again.

        Raises:
            OSError: no room, no rights, a failing disk. Then the blob may or may not be there.
        """
        digest = sha256(content).hexdigest()
        target = self.path(digest)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            _sync_directory(self.root)
            _sync_directory(self.root.parent)
        if not self._is_whole(target, digest):
            handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=self.root)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        # Also where it was there already: whoever wrote it may have died between the rename and the sync.
        _sync_directory(target.parent)
        return digest

    def get(self, digest: str) -> bytes:
        """Read a blob and check it against its digest.

        Raises:
            BlobBroken: it is missing, unreadable, or other than what was written.
        """
        path = self.path(digest)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise BlobBroken(path=path, digest=digest, detail="the file is missing") from None
        except OSError as error:
            raise BlobBroken(path=path, digest=digest, detail=f"the file can't be read ({error.strerror})") from error
        if sha256(content).hexdigest() != digest:
            raise BlobBroken(path=path, digest=digest, detail="the file is not what was written")
        return content

    def sweep(self) -> None:
        """Remove what a writer that died left half-written. Only for the one writer."""
        for leftover in self.root.glob(f"{_TEMPORARY}*"):
            leftover.unlink(missing_ok=True)

    @staticmethod
    def _is_whole(target: Path, digest: str) -> bool:
        try:
            return sha256(target.read_bytes()).hexdigest() == digest
        except FileNotFoundError:
            return False


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
