"""Tar archives of others, read with Python's own reader, which believes what a header says: here it is bounded."""

from __future__ import annotations

import tarfile
from typing import Self

from actors.template.rooted import BadPath

HEADER_BYTES_MAX = 1024**2
"""Of an extended header, which is read into memory as a whole."""
HEADERS_IN_A_ROW_MAX = 16
_IN_A_ROW = "_hourglass_headers_in_a_row"
"""Of the reader: the next entry is read before this one is done."""
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Member(tarfile.TarInfo):
    """An entry whose headers are not believed: for the argument `tarinfo` of `tarfile.open`.

    Reading raises `BadPath` for what would take much memory, `tarfile.ReadError` for a damaged header anywhere: the
    reader itself takes one that is not the first for the end of the archive.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next entry."""
        try:
            made = super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a header is damaged ({error})") from None
        if made.size < 0:
            raise BadPath(f"{made.name[:200]!r} has a size of {made.size}")
        return made

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED:
            return self._extended(archive)
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise BadPath(f"{self.name[:200]!r} is stored with holes; make the archive without --sparse")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]

    def _extended(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """A header that tells of the entry after it, which is read on the way."""
        if not 0 <= self.size <= HEADER_BYTES_MAX:
            raise BadPath(f"it has a header of {self.size:,} bytes")
        before = getattr(archive, _IN_A_ROW, 0)
        if before >= HEADERS_IN_A_ROW_MAX:
            raise BadPath(f"an entry has more than {HEADERS_IN_A_ROW_MAX} headers")
        setattr(archive, _IN_A_ROW, before + 1)
        try:
            made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        finally:
            setattr(archive, _IN_A_ROW, before)
        if sum(len(name) + len(value) for name, value in archive.pax_headers.items()) > HEADER_BYTES_MAX:
            raise BadPath(f"it has more than {HEADER_BYTES_MAX:,} bytes of headers for all entries")
        return made

    def _proc_gnusparse_00(self, *_: object) -> None:
        raise BadPath("a file is stored with holes; make the archive without --sparse")

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00
