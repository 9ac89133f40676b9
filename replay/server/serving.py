"""What `hourglass replay serve` and `hourglass replay recordings` do."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import orjson
import typer
from rich.console import Console
from rich.table import Table

from replay.library import Library
from replay.server.recorded import RecordedServer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from replay.server.settings import ServerSettings


def serve(
    settings: ServerSettings,
    recordings: Sequence[Path],
    *,
    port: int,
    api_key: str | None,
    environments: int,
    as_json: bool,
) -> None:
    """Serve until SIGINT or SIGTERM; the first output is where, as one line of JSON or as `export` lines.

    Raises:
        RecordingError: A recording can't be used.
        ServerNotStarted: The port is taken.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with RecordedServer(settings, recordings=recordings, api_key=api_key, port=port) as server:
        made = [server.create_environment(f"recorded-{index + 1}") for index in range(environments)]
        if as_json:
            line = {
                "base_url": server.base_url,
                "api_key": server.api_key,
                "environment_id": made[0].id,
                "environment_key": made[0].key,
                "environments": [{"id": one.id, "key": one.key} for one in made],
            }
            typer.echo(orjson.dumps(line))
        else:
            typer.echo(f"export ANTHROPIC_BASE_URL={server.base_url}")
            typer.echo(f"export ANTHROPIC_API_KEY={server.api_key}")
            for one in made:
                typer.echo(f"export ANTHROPIC_ENVIRONMENT_ID={one.id}")
                typer.echo(f"export ANTHROPIC_ENVIRONMENT_KEY={one.key}")
        ended.wait()


def show_recordings(recordings: Sequence[Path], *, as_json: bool) -> None:
    """Print what can be played. Raises RecordingError."""
    library = Library(recordings)
    found = [library.get(name) for name in library.names]
    if as_json:
        rows = [
            {
                "name": one.name,
                "description": one.header.description,
                "events": len(one.events),
                "calls": len(one.calls),
            }
            for one in found
        ]
        typer.echo(orjson.dumps(rows))
        return
    table = Table("recording", "calls", "events", "what it is")
    for one in found:
        table.add_row(one.name, str(len(one.calls)), str(len(one.events)), one.header.description)
    Console().print(table)
