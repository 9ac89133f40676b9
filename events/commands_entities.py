"""`hourglass sessions` and `hourglass sandboxes`: what there is, from the views of the log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from events.console import clean, duration, print_json, print_table, say
from events.home import log_path
from events.sqlite_log import SqliteLog
from events.views import SANDBOXES, SESSIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

Home = Annotated[
    Path | None, typer.Option("--home", envvar="HOURGLASS_HOME", help="Folder with the log.", show_default=False)
]
LogFile = Annotated[Path | None, typer.Option("--log", help="The log file itself, wherever it is.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]

_STYLES = {
    "attached": "green",
    "running": "green",
    "claimed": "yellow",
    "lost": "yellow",
    "stopped": "yellow",
    "frozen": "cyan",
    "suspended": "blue",
    "failed": "red",
    "crashed": "red",
    "terminated": "dim",
    "killed": "dim",
}


def sessions(home: Home = None, log: LogFile = None, as_json: AsJson = False) -> None:
    """Show every session: where it stands, how long it ran, how many tool calls it made."""
    path = log_path(home, log)
    rows = _query(path, SESSIONS)
    if as_json:
        print_json(rows)
    elif not rows:
        say(f"No session in {path} yet.")
    else:
        columns = ("session", "phase", "began", ">for", ">calls", ">posted", ">denied", "sandbox", "last word")
        print_table(
            columns,
            (
                (
                    row["session_id"],
                    _phase(row["phase"]),
                    _clock(row["first_at"]),
                    duration(row["seconds"]),
                    row["tool_calls"],
                    row["results_posted"],
                    row["denied"],
                    row["sandbox_id"],
                    _last_word(row, ("failure", "failure_detail") if row["phase"] == "failed" else ("stop_reason",)),
                )
                for row in rows
            ),
        )


def sandboxes(home: Home = None, log: LogFile = None, as_json: AsJson = False) -> None:
    """Show every sandbox: where it stands, whose it is, what it did."""
    path = log_path(home, log)
    rows = _query(path, SANDBOXES)
    if as_json:
        print_json(rows)
    elif not rows:
        say(f"No sandbox in {path} yet.")
    else:
        has_forks = any(row["parent"] for row in rows)
        columns = (
            "sandbox",
            "phase",
            "session",
            "template",
            *(["forked from"] if has_forks else []),
            "machine or snapshot",
            "last event",
            ">calls",
            ">cut short",
            ">crashes",
        )
        print_table(
            columns,
            (
                (
                    row["sandbox_id"],
                    _phase(row["phase"]),
                    row["session_id"],
                    row["template"],
                    *([_parent(row)] if has_forks else []),
                    row["snapshot_id" if row["phase"] == "suspended" else "machine_id"],
                    _clock(row["last_at"]),
                    row["tool_calls"],
                    row["interrupted"],
                    f"{row['crashes']} ({row['last_crash']})" if row["crashes"] else 0,
                )
                for row in rows
            ),
        )


def _query(path: Path, view: str) -> list[dict[str, Any]]:
    # Not by the view in the file: that is as old as the last writer of it, who need not be of this version.
    with SqliteLog(path, read_only=True) as opened:
        return opened.query_dicts(f"SELECT * FROM ({view}) ORDER BY first_at")


def _parent(row: dict[str, Any]) -> str:
    return f"{row['parent']} at {row['parent_version']}" if row["parent"] else ""


def _phase(phase: str | None) -> Text:
    return Text(clean(phase or "unknown"), style=_STYLES.get(phase or "", ""))


def _clock(moment: str) -> str:
    """`2026-11-23T09:22:39.575Z` without what nobody reads in a table."""
    return moment[:19].replace("T", " ")


def _last_word(row: dict[str, Any], fields: Sequence[str]) -> str:
    return clean(": ".join(str(row[field]) for field in fields if row[field]), 60)
