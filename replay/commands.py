"""The commands `hourglass timeline`, `hourglass bench` and `hourglass demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from events.commands_entities import AsJson, Home, LogFile
from replay.bisect import commands as bisecting
from replay.branching import commands as branching
from replay.commands_diff import diff
from replay.continuing import commands as continuing
from replay.history import commands as history
from replay.parcel import commands as parcel
from replay.rebuild import commands as rebuilding


def register(app: typer.Typer) -> None:
    """Add the commands to the root command."""
    app.command()(timeline)
    app.command()(bench)
    app.command()(demo)
    history.register(app)
    app.command()(diff)
    rebuilding.register(app)
    branching.register(app)
    bisecting.register(app)
    parcel.register(app)
    continuing.register(app)


def timeline(
    name: Annotated[str, typer.Argument(metavar="ID", help="A session or a sandbox: its id, or the beginning of it.")],
    home: Home = None,
    log: LogFile = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the session is at rest.")] = False,
    lines: Annotated[int, typer.Option(min=0, max=1000, help="Lines of output shown for each call.")] = 6,
    as_json: AsJson = False,
) -> None:
    """Show what a session did, when, how long it took, what it printed and what it changed.

    Reads the log file alone: the service may run, or be long gone.
    """
    from replay.timeline.command import show

    show(name, home=home, log=log, follow=follow, lines=lines, as_json=as_json)


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="append, replay, fold, tool, start, worker; default: all."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what Hourglass promises of its speed, beside a yardstick, on this machine.

    Exits 0 where every promise holds, 1 where one does not.
    """
    from replay.bench.command import bench as run

    run(names or [], as_json=as_json)


def demo(
    home: Annotated[
        Path | None, typer.Option(help="A folder for the demo's log; default: a new one for temporary files.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show it all on this machine, with no key and no network: two sessions, two sandboxes, one log."""
    from replay.demo.show import demo as run

    run(home, as_json=as_json)
