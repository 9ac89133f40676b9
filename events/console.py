"""How every command speaks: tables for people, JSON for programs, one way to say what went wrong.

What a guest printed may hold terminal escapes, markup, or text that runs backwards. It is shown, never obeyed: `clean`
makes every such character visible, and text goes to rich as `Text`, in which markup means nothing.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, TYPE_CHECKING, Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PIPE_WIDTH = 160
"""Columns where there is no terminal to ask."""

_OUR_PACKAGES = ("events", "actors", "replay")


def console(stream: IO[str] | None = None) -> Console:
    """A console on stdout, or on another stream; made when it is needed, since tests and commands change stdout.

    As wide as the terminal, or as `COLUMNS` says; 160 columns where there is neither.
    """
    file = stream if stream is not None else sys.stdout
    known = file.isatty() or "COLUMNS" in os.environ
    return Console(file=file, width=None if known else _PIPE_WIDTH, highlight=False, emoji=False)


def clean(text: object, limit: int | None = None) -> str:
    """Text of any origin, fit for a terminal: what is not printable is shown as an escape.

    Args:
        limit: characters, at least 1; what is longer ends in an ellipsis.
    """
    shown = str(text)
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    if shown.isprintable():
        return shown
    return "".join(one if one.isprintable() else _escape(one) for one in shown)


def _escape(character: str) -> str:
    return json.dumps(character)[1:-1] if ord(character) > 0x7F else repr(character)[1:-1]


def first_line(text: str, limit: int = 100) -> str:
    """The first line that says something, cleaned, with the number of those that follow."""
    lines = text.strip().splitlines() or [""]
    more = f"  (+{len(lines) - 1} lines)" if len(lines) > 1 else ""
    return clean(lines[0].replace("\t", " "), limit) + more


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """A table whose cells are cleaned and never read as markup; a cell may be a rich `Text` made of cleaned text.

    Args:
        columns: headings; one that begins with ">" is aligned to the right.
    """
    made = Table(title=title or None, box=None, pad_edge=False, header_style="bold")
    for heading in columns:
        made.add_column(
            heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(clean("" if cell is None else cell)) for cell in row))
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a `table` to stdout."""
    console().print(table(columns, rows, title))


def say(text: str, style: str = "") -> None:
    """Print a line to stdout; the text is cleaned and never read as markup."""
    console().print(Text(clean(text), style=style), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value on one line, as every command does with `--json`."""
    sys.stdout.write(orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode() + "\n")


def duration(seconds: float | None) -> str:
    """Seconds as people say them: `340 ms`, `12.4 s`, `3 min 20 s`, `2 h 5 min`; "" for None."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def size(count: int | None) -> str:
    """Bytes as people say them: `812 B`, `4.0 KiB`, `2.5 MiB`; "" for None."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def is_ours(error: BaseException) -> bool:
    """Whether an error was made by Hourglass, for people; any other is a bug, and keeps its traceback."""
    return type(error).__module__.partition(".")[0] in _OUR_PACKAGES


def advice(error: BaseException) -> str:
    """What the user can do about one of our errors, or ""."""
    if isinstance(error, HourglassError):
        return error.advice
    return str(getattr(error, "next_step", "") or "")


def report(error: BaseException, *, as_json: bool) -> None:
    """Say what went wrong and what to do: red lines on stderr, or with `--json` an object on stdout."""
    if as_json:
        print_json({"error": str(error), "next": advice(error), "type": type(error).__name__})
        return
    complain(str(error), advice(error))


def complain(cause: str, next_step: str = "") -> None:
    """`error: cause` in red on stderr, and `next: step` where there is one."""
    screen = console(sys.stderr)
    screen.print(Text(f"error: {clean(cause)}", style="bold red"), soft_wrap=True)
    if next_step:
        screen.print(Text(f"next: {clean(next_step)}"), soft_wrap=True)
