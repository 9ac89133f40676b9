"""What `hourglass timeline` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from events.console import console
from events.home import log_path
from events.sqlite_log import SqliteLog
from replay.timeline import plain
from replay.timeline.follow import follow as follow_timeline
from replay.timeline.follow import follow_json
from replay.timeline.source import Source, find
from replay.timeline.view import View

if TYPE_CHECKING:
    from pathlib import Path

_INTERRUPTED = 130


def show(name: str, *, home: Path | None, log: Path | None, follow: bool, lines: int, as_json: bool) -> None:
    """Print a timeline, once or as it grows. Raises NotInLog, Ambiguous, LogError."""
    path = log_path(home, log)
    with SqliteLog(path, read_only=True) as opened:
        source = Source(opened, find(opened, name))
        try:
            _show(source, path.parent, follow=follow, lines=lines, as_json=as_json)
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None


def _show(source: Source, home: Path, *, follow: bool, lines: int, as_json: bool) -> None:
    if as_json and follow:
        follow_json(source, typer.echo)
        return
    screen = console()
    if follow:
        follow_timeline(source, home, screen, lines)
        return
    source.advance()
    timeline = source.builder.timeline
    if as_json:
        typer.echo(plain.dumps(plain.timeline(timeline)))
    else:
        screen.print(View(screen.width, lines).whole(timeline))
