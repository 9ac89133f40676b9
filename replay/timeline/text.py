"""What comes out of a guest, made safe and short enough to print.

A guest is root and may be malicious: its text can hold control sequences that rewrite the screen or the terminal's
title, characters that reverse the reading order, lines of a million characters. Everything shown goes through here.
"""

from __future__ import annotations

import re

from rich.cells import cell_len

from events import console

_COLOUR = re.compile(r"\x1b\[[0-9;:]{0,40}m")
_CHARS_PER_CELL = 4
"""Combining characters take no room, so a line is bounded in characters as well."""
_ELLIPSIS = "…"
_TAB = 4


def clean(text: str) -> str:
    """One line with nothing in it that a terminal would obey: colours are dropped, the rest is shown as escapes."""
    return console.clean(_COLOUR.sub("", text).expandtabs(_TAB))


def line(text: str, width: int) -> str:
    """The first line of `text`, clean, in at most `width` cells."""
    first, newline, _ = text[: width * _CHARS_PER_CELL + 1].partition("\n")
    return cut(clean(first), width, more=bool(newline))


def cut(shown: str, width: int, *, more: bool = False) -> str:
    """Clean text in at most `width` cells, with an ellipsis where something was left out.

    Args:
        more: something was left out already.
    """
    if not more and len(shown) <= width * _CHARS_PER_CELL and cell_len(shown) <= width:
        return shown
    kept: list[str] = []
    room = width - len(_ELLIPSIS)
    for char in shown[: width * _CHARS_PER_CELL]:
        room -= cell_len(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept).rstrip() + _ELLIPSIS


def excerpt(text: str, lines: int, width: int) -> list[str]:
    """First and last lines of `text`, clean, each in at most `width` cells.

    There are at most `lines` of them, and one more that says how many were left out. The last lines of a command say
    more than the first, so they get the larger half.
    """
    found = text.rstrip("\n").split("\n") if lines and text.strip("\n") else []
    if len(found) <= lines + 1:
        return [line(one, width) for one in found]
    head = lines // 3
    return [
        *(line(one, width) for one in found[:head]),
        f"{_ELLIPSIS} {len(found) - lines:,} more lines",
        *(line(one, width) for one in found[head - lines :]),
    ]


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 call`, `2 calls`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
