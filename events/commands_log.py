"""`hourglass log`: the log itself, event by event, and whether it is whole."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.json import JSON
from rich.progress import Progress
from rich.text import Text

from events.commands_entities import AsJson, Home, LogFile
from events.console import clean, complain, console, print_json, say, table
from events.errors import FileNotWritten, NothingThere
from events.home import log_path
from events.log import CaughtUp
from events.sqlite_log import SqliteLog
from events.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.rows import Row

app = typer.Typer(
    name="log",
    help="Look at the log: its last events, one stream or event, all of it, and whether it is whole.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_COLUMNS = (">position", "time", "stream", ">version", "event", "what")
_NO_POSITION = 2**62
"""Beyond every position, and still an integer of SQLite's."""

_TOO_LONG = 19
"""Digits that no position has."""

_TYPE_STYLES = {"session.failed": "red", "sandbox.crashed": "red", "tool_call.interrupted": "yellow"}


@app.command()
def tail(
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="How many of the last events.")] = 20,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with each new event, until Ctrl-C.")] = False,
    home: Home = None,
    log: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the last events, and with --follow each new one. With --json, one object on a line for each."""
    path = log_path(home, log)
    with SqliteLog(path, read_only=True) as opened:
        after = _position_before(opened, count)
        rows = list(opened.rows(after))
        if not rows and not as_json:
            say(f"The log {path} is empty.")
        _show(opened, rows, as_json=as_json)
        if follow:
            _follow(opened, rows[-1].position if rows else after, as_json=as_json)


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="STREAM|POSITION",
            help="A stream, session or sandbox, or a beginning of its id; or a position of the log.",
        ),
    ],
    home: Home = None,
    log: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Show every event of one stream, or one event with all that it holds."""
    path = log_path(home, log)
    with SqliteLog(path, read_only=True) as opened:
        if what.isascii() and what.isdigit():
            _show_one(opened, int(what) if len(what) < _TOO_LONG else _NO_POSITION, as_json=as_json)
            return
        rows = _stream(opened, what)
        if as_json:
            print_json([_plain(opened, row) for row in rows])
        else:
            _show(opened, rows, as_json=False)


@app.command()
def verify(home: Home = None, log: LogFile = None, as_json: AsJson = False) -> None:
    """Check every event against the hash chain, and every blob; exit 1 with the first broken place if there is one."""
    path = log_path(home, log)
    with SqliteLog(path, read_only=True) as opened:
        with Progress(console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty()) as progress:
            [(total,)] = opened.query("SELECT count(*) FROM events")
            task = progress.add_task("verifying", total=total)
            broken = opened.verify(lambda done: progress.update(task, completed=done))
        last = opened.query("SELECT lower(hex(hash)) FROM events ORDER BY position DESC LIMIT 1")
    last_hash = last[0][0] if last else None
    if as_json:
        found = broken and {"position": broken.position, "stream": broken.stream, "reason": broken.reason}
        print_json({"whole": broken is None, "events": total, "last_hash": last_hash, "broken": found})
    elif broken is None:
        say(f"whole: {total} events, last hash {last_hash}" if total else f"whole: {path} is empty", "green")
    else:
        of = f" of {broken.stream}" if broken.stream else ""
        complain(
            f"{path} is broken at position {broken.position}{of}: {broken.reason}",
            "stop writing to it, keep a copy of the whole directory, and go back to a backup; "
            f"what stands before position {broken.position} is as it was written.",
        )
    if broken is not None:
        raise typer.Exit(1)


@app.command()
def export(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write; default: stdout.")] = None,
    home: Home = None,
    log: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Write all events as JSON Lines, as they were stored; with -o, the file is there whole or not at all."""
    with SqliteLog(log_path(home, log), read_only=True) as opened:
        lines = (orjson.dumps(_plain(opened, row)) + b"\n" for row in opened.rows())
        if output is None:
            for line in lines:
                sys.stdout.buffer.write(line)
            sys.stdout.flush()
            return
        written = _write_whole(output, lines)
    if as_json:
        print_json({"file": str(output), "events": written})
    else:
        say(f"{written} events written to {output}")


def _write_whole(output: Path, lines: Iterator[bytes]) -> int:
    temporary = output.with_name(output.name + ".part")
    written = 0
    try:
        with temporary.open("wb") as file:
            for line in lines:
                file.write(line)
                written += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(output)
    except OSError as error:
        raise FileNotWritten(path=output, detail=error.strerror or str(error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return written


def _position_before(log: SqliteLog, count: int) -> int:
    """What the last `count` rows come after."""
    rows = log.query("SELECT position FROM events ORDER BY position DESC LIMIT 1 OFFSET ?", (count,))
    return int(rows[0][0]) if rows else 0


def _stream(log: SqliteLog, name: str) -> list[Row]:
    """The rows of a stream, which may be named by its session's or sandbox's id alone, or by a beginning."""
    names = (name, f"session-{name}", f"sandbox-{name}")
    for stream in names:
        rows = list(log.rows(stream=stream))
        if rows:
            return rows
    found = [stream for stream in log.streams() if name and stream.startswith(names)]
    if len(found) == 1:
        return list(log.rows(stream=found[0]))
    raise NothingThere(path=log.path, what=f"stream that alone begins with {name}" if found else f"stream {name}")


def _follow(log: SqliteLog, after: int, *, as_json: bool) -> None:
    for row in log.subscribe_rows(after):
        if isinstance(row, CaughtUp):
            sys.stdout.flush()
        else:
            _show(log, [row], as_json=as_json, heading=False)


def _show(log: SqliteLog, rows: list[Row], *, as_json: bool, heading: bool = True) -> None:
    if as_json:
        for row in rows:
            print_json(_plain(log, row))
    elif rows:
        made = table(_COLUMNS, (_cells(log, row) for row in rows))
        made.show_header = heading
        if not heading:
            # Each new event is a table of its own, and must stand under the ones before it.
            for column, width in zip(made.columns, (8, 12, 28, 7, 22), strict=False):
                column.min_width = width
        console().print(made)


def _cells(log: SqliteLog, row: Row) -> tuple[object, ...]:
    return (
        row.position,
        _time(row)[11:23],
        row.stream,
        row.version,
        Text(clean(row.type), style=_TYPE_STYLES.get(row.type, "cyan")),
        summarize(row.type, log.json(row)),
    )


def _show_one(log: SqliteLog, position: int, *, as_json: bool) -> None:
    row = next(log.rows(position - 1, 1), None)
    if row is None or row.position != position:
        raise NothingThere(path=log.path, what=f"event at position {position}")
    plain = _plain(log, row)
    if as_json:
        print_json(plain)
    else:
        # As ASCII, since a terminal would obey what a guest put into its output.
        console().print(JSON.from_data(plain, ensure_ascii=True))


def _plain(log: SqliteLog, row: Row) -> dict[str, Any]:
    """An event as JSON, as it was stored: `data` of the schema version that wrote it."""
    return {
        **row._asdict(),
        "recorded_at": _time(row),
        "data": log.json(row),
        "metadata": orjson.loads(row.metadata),
        "hash": row.hash.hex(),
    }


def _time(row: Row) -> str:
    seconds, micros = divmod(row.recorded_at, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"
