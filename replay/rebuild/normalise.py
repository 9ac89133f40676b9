"""What differs between two runs of the same call by nature: the clock, durations, random names, process ids.

Each rule says what is taken for what, and why. A result that is the same once these are set aside is told apart from
one that is the same byte for byte, and names the rules that it needed; nothing is passed over in silence. The rules are
narrow on purpose: a number that could be a count, a size or a line is nobody's clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that differs by nature."""

    kind: str
    """What a reader is told: `clock`, `duration`, `random`, `pid`, `temporary name`."""
    name: str
    pattern: re.Pattern[str]
    """What is set aside: its group `what`, or all of it."""
    why: str


_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_TIME = r"[0-2]\d:[0-5]\d(?::[0-6]\d(?:[.,]\d{1,9})?)?"
_ZONE = r"(?:\s?Z\b|\s?[+-]\d\d:?\d\d\b|\s(?:UTC|GMT)\b)"
_HEX = "[0-9a-f]"


def _rule(kind: str, name: str, pattern: str, why: str) -> Rule:
    return Rule(kind, name, re.compile(pattern, re.MULTILINE), why)


RULES: tuple[Rule, ...] = (
    _rule(
        "temporary name",
        "tempfile",
        r"(?<=/)tmp(?:\.[A-Za-z0-9]{6,12}|[a-z0-9_]{8})(?![\w.])",
        "mktemp and Python's tempfile draw the name: tmp.Xk3qQ0aZ1b, tmpab12cd_9",
    ),
    _rule(
        "temporary name",
        "pytest folder",
        r"(?<=/pytest-of-)(?P<what>\w+/pytest-\d+)\b",
        "pytest numbers the folders of its runs",
    ),
    _rule(
        "random",
        "uuid",
        rf"(?i)\b{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}\b",
        "drawn at random, or made of clock and host",
    ),
    _rule(
        "random",
        "address",
        rf"\b0x{_HEX}{{8,16}}\b",
        "where an object lies in memory: <object at 0x7f3c2a10>",
    ),
    _rule(
        "random",
        "long hex",
        rf"(?i)\b(?=[a-f]*\d)(?=\d*[a-f]){_HEX}{{16,128}}\b",
        "tokens and keys; a digest too, whose change the files of the work tree tell better",
    ),
    _rule(
        "random",
        "commit",
        rf"(?:^\[[^\]\n]*? |\bcommit |^index |\bHEAD is now at )(?P<what>{_HEX}{{7,15}}(?:\.\.{_HEX}{{7,15}})?)\b",
        "a commit's name is made of its time, too: [main 1a2b3c4], HEAD is now at 1a2b3c4",
    ),
    _rule(
        "clock",
        "date and time",
        rf"\b(?:19|20)\d\d-[01]\d-[0-3]\d(?:[T ]{_TIME}{_ZONE}?)?(?!\w)",
        "ISO 8601, with or without the time",
    ),
    _rule(
        "clock",
        "date in words",
        rf"\b(?:{_DAY},? )?(?:{_MONTH} [ 0-3]?\d|[0-3]?\d {_MONTH}(?= (?:19|20)\d\d))(?:,? (?:19|20)\d\d)?"
        rf"(?:,? +{_TIME}(?: [AP]M)?{_ZONE}?)?(?:,? (?:19|20)\d\d)?(?: [+-]\d{{4}})?\b",
        "as date, git log, HTTP and ls -l write it",
    ),
    _rule(
        "clock",
        "time of day",
        r"(?<![\d:.])[0-2]\d:[0-5]\d:[0-6]\d(?:[.,]\d{1,9})?(?![\d:])",
        "with seconds; 12:30 alone could be a line and a column",
    ),
    _rule(
        "clock",
        "seconds since 1970",
        r"(?<![\w.-])1[6-9]\d{8}(?:\.\d{1,9}|\d{3}|\d{6}|\d{9})?(?![\w.])",
        "in seconds, milli-, micro- or nanoseconds, from 2020 to 2033",
    ),
    _rule(
        "duration",
        "minutes and seconds",
        r"\b\d+m ?\d+(?:\.\d+)?s\b",
        "as the shell's time says it: 0m0.012s",
    ),
    _rule(
        "duration",
        "seconds",
        r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)? ?(?:ns|us|µs|μs|ms|s|secs?|seconds?)\b",
        "how long it took: 0.02s, 13 ms, in 1.2 seconds",
    ),
    _rule(
        "pid",
        "named",
        r"(?i)\b(?:pid|process|ppid|tid)(?: id)?(?:[ =:#]{1,3}|['\"]: ?)(?P<what>\d{1,7})\b",
        "the number that follows the word",
    ),
    _rule(
        "pid",
        "job",
        r"^\[\d+\][+-]? +(?P<what>\d{1,7})\b",
        "what bash says of a job in the background: [1] 1234",
    ),
    _rule(
        "pid",
        "message",
        r"(?:\bbash: line \d+: +|\w\[|/proc/|^==)(?P<what>\d{1,7})(?=\]:|/| |==)",
        "bash: line 3: 1234 Killed; name[1234]: …; /proc/1234/…; ==1234==",
    ),
)

FILE_RULES: tuple[Rule, ...] = (
    _rule(
        "clock",
        "git's own files",
        r"(?:^|/)\.git/(?:(?:objects|refs|logs)(?:/.*)?|index|packed-refs|ORIG_HEAD)$",
        "a commit is named by its time, and the index has those of the files; what was committed lies beside it",
    ),
    _rule("clock", "bytecode", r"(?:^|/)__pycache__/[^/]+\.pyc$", "it has the time of its source in it"),
)
"""Files, by their path from the work folder, that differ by nature as a whole. Of any other, its text is looked at."""


def file_kind(path: str) -> str | None:
    """The kind of a file that differs by nature as a whole; None for any other."""
    return next((rule.kind for rule in FILE_RULES if rule.pattern.search(path)), None)


def set_aside(text: str, rules: tuple[Rule, ...] = RULES) -> str:
    """The text with `<kind>` in place of all that differs by nature."""
    for rule in rules:
        text = rule.pattern.sub(partial(_masked, rule), text)
    return text


def needed(one: str, other: str) -> tuple[str, ...] | None:
    """The kinds that two texts differ in; none where they are the same, None where they differ in something else."""
    if one == other:
        return ()
    if set_aside(one) != set_aside(other):
        return None
    kinds = dict.fromkeys(rule.kind for rule in RULES)
    used = [kind for kind in kinds if set_aside(one, _without(kind)) != set_aside(other, _without(kind))]
    # Where one rule would do as well as another, neither is needed by itself.
    return tuple(used or [kind for kind in kinds if set_aside(one, _of(kind)) == set_aside(other, _of(kind))][:1])


def _without(kind: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES if rule.kind != kind)


def _of(kind: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES if rule.kind == kind)


def _masked(rule: Rule, found: re.Match[str]) -> str:
    if "what" not in rule.pattern.groupindex:
        return f"<{rule.kind}>"
    begin, end = found.start("what") - found.start(), found.end("what") - found.start()
    return f"{found[0][:begin]}<{rule.kind}>{found[0][end:]}"
