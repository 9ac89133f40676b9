"""A call that ran again, beside what the log has of it."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson

from replay.rebuild.normalise import needed, set_aside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.types import JsonObject
    from replay.history.planned import PlannedCall

_CONTEXT = 2
_DIFF_LINES = 60
_LINE = 300
_LONGEST = 256 * 1024
"""Characters of a block that the rules are tried on; the output of a command has 100 KiB."""


class Verdict(StrEnum):
    """How a result compares with the recorded one."""

    EQUAL = "equal"
    ASIDE = "equal_but_for"
    """Equal but for what differs by nature; see `replay.rebuild.normalise`."""
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A call that is to be run again, and its outcome in the log."""

    call: PlannedCall
    content: Sequence[JsonObject]
    is_error: bool
    seconds: float

    @property
    def digest(self) -> str:
        """Of the result."""
        return result_digest(self.content, self.is_error)


@dataclass(frozen=True, slots=True)
class Check:
    """What came of a call that was run again."""

    recorded: Recorded
    verdict: Verdict
    aside: tuple[str, ...]
    """The kinds of what differs by nature, in `ASIDE`."""
    digest: str
    """Of the result that the rebuild gave."""
    seconds: float
    diff: str
    """How the results differ, for people, with what differs by nature set aside; "" where they do not."""

    @property
    def words(self) -> str:
        """The verdict, for people."""
        if self.verdict is Verdict.ASIDE:
            return f"equal but for {', '.join(self.aside)}"
        return self.verdict.value

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        call = self.recorded.call
        return {
            "stream": call.at.stream,
            "version": call.at.version,
            "tool_use_id": call.tool_use_id,
            "tool": call.tool,
            "input": call.input,
            "verdict": self.verdict.value,
            "aside": list(self.aside),
            "recorded": self.recorded.digest,
            "rebuilt": self.digest,
            "recorded_seconds": self.recorded.seconds,
            "seconds": self.seconds,
            "diff": self.diff,
        }


def result_digest(content: Sequence[JsonObject], is_error: bool) -> str:
    """SHA-256 of a result, in hex: of its blocks, and whether it is an error."""
    return hashlib.sha256(orjson.dumps([list(content), is_error], option=orjson.OPT_SORT_KEYS)).hexdigest()


def check(recorded: Recorded, content: Sequence[JsonObject], is_error: bool, seconds: float) -> Check:
    """Compare a result with the recorded one."""
    digest = result_digest(content, is_error)
    if digest == recorded.digest:
        return Check(recorded, Verdict.EQUAL, (), digest, seconds, "")
    kinds = _aside(recorded, content, is_error)
    if kinds is not None:
        return Check(recorded, Verdict.ASIDE, kinds, digest, seconds, "")
    return Check(recorded, Verdict.DIFFERS, (), digest, seconds, _diff(recorded, content, is_error))


def _aside(recorded: Recorded, content: Sequence[JsonObject], is_error: bool) -> tuple[str, ...] | None:
    """The kinds of what differs by nature; None where something else does."""
    if is_error is not recorded.is_error or len(content) != len(recorded.content):
        return None
    found: dict[str, None] = {}
    for one, other in zip(recorded.content, content, strict=True):
        if one == other:
            continue
        texts = one.get("text"), other.get("text")
        if {**one, "text": ""} != {**other, "text": ""} or not all(isinstance(text, str) for text in texts):
            return None
        if max(map(len, texts)) > _LONGEST:  # type: ignore[arg-type]
            return None
        kinds = needed(*texts)  # type: ignore[arg-type]
        if kinds is None:
            return None
        found |= dict.fromkeys(kinds)
    return tuple(found)


def _diff(recorded: Recorded, content: Sequence[JsonObject], is_error: bool) -> str:
    before, after = _text(recorded.content, recorded.is_error), _text(content, is_error)
    lines = list(difflib.unified_diff(before, after, "recorded", "rebuilt", lineterm="", n=_CONTEXT))
    if not lines:
        return "the texts are the same, and the blocks around them are not"
    more = [f"… {len(lines) - _DIFF_LINES:,} more lines"] if len(lines) > _DIFF_LINES else []
    return "\n".join([line[:_LINE] for line in lines[:_DIFF_LINES]] + more)


def _text(content: Sequence[JsonObject], is_error: bool) -> list[str]:
    lines = ["(an error)"] if is_error else []
    for block in content:
        text = block.get("text")
        if isinstance(text, str):
            lines += set_aside(text[:_LONGEST]).splitlines()
        else:
            digest = result_digest([block], False)[:16]
            lines.append(f"({block.get('type', 'a block')} {digest})")
    return lines
