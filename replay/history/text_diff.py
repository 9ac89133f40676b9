"""Unified diffs of texts that a guest wrote: bounded, since the algorithm takes the square of its input at worst."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEXT_BYTES = 1024**2
"""Larger files are told by their sizes alone."""
_CONTEXT = 3
_MOST_LINES = 1500
"""Between the first and the last line that differ."""
_NO_END = "\\ No newline at end of file"


def as_text(content: bytes) -> str | None:
    """The text; None where it is none."""
    if b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def unified(old: str, new: str) -> list[str] | None:
    """The hunks of a unified diff, without the names of files; None where too much differs to be compared.

    Lines end at `\\n` alone, as in `diff`.
    """
    before, after = _lines(old), _lines(new)
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    tail = 0
    while tail < min(len(before), len(after)) - same and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    if max(len(before), len(after)) - same - tail > _MOST_LINES:
        return None
    first = max(same - _CONTEXT, 0)
    last = max(tail - _CONTEXT, 0)
    return list(_hunks(before[first : len(before) - last], after[first : len(after) - last], first))


def _lines(text: str) -> list[str]:
    """Each with its end, so that a missing one at the end of the text counts."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _hunks(before: Sequence[str], after: Sequence[str], skipped: int) -> Iterator[str]:
    # No line is junk, however often it comes: what differs is short.
    for group in SequenceMatcher(None, before, after, autojunk=False).get_grouped_opcodes(_CONTEXT):
        _, a1, _, b1, _ = group[0]
        _, _, a2, _, b2 = group[-1]
        yield f"@@ -{_range(a1 + skipped, a2 + skipped)} +{_range(b1 + skipped, b2 + skipped)} @@"
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from _marked(" ", before[i1:i2])
            else:
                yield from _marked("-", before[i1:i2])
                yield from _marked("+", after[j1:j2])


def _range(begin: int, end: int) -> str:
    length = end - begin
    return f"{begin + 1}" if length == 1 else f"{begin + (length > 0)},{length}"


def _marked(mark: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield mark + line.removesuffix("\n")
        if not line.endswith("\n"):
            yield _NO_END
