"""The command `hourglass diff`: with no machine, and with `--live` with two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from events.commands_entities import AsJson, Home, LogFile
from events.console import console, print_json
from events.home import log_path
from events.sqlite_log import SqliteLog
from replay.history.commands import Nearest, Storage, Store

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from replay.history.target import Target
    from replay.rebuild.differing import Live

_NOT_LIVE: dict[str, Any] = {"processes": None, "environment": None, "environment_unknown": None, "rebuilt": None}


def diff(
    a: Annotated[str, typer.Argument(metavar="SANDBOX@VERSION", help="A version of a sandbox.")],
    b: Annotated[str, typer.Argument(metavar="SANDBOX@VERSION", help="Another one, of the same or of another.")],
    files: Annotated[
        bool, typer.Option("--files/--no-files", help="Whether to compare the files, and the packages in them.")
    ] = True,
    live: Annotated[
        bool, typer.Option("--live", help="Rebuild both in throw-away machines: processes and environment, too.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="With --live: leave out what can't be repeated on the way.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", metavar="SNAPSHOT", help="With --live: as if this snapshot did not exist; may be repeated."
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show long diffs and tables whole.")] = False,
    nearest: Nearest = False,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two versions: files, packages (dpkg, pip, npm), results of calls, state.

    Files and packages are those that the snapshots in the store have, and no machine is started. With --live, each
    version is rebuilt as by `rebuild`, and its processes and the environment of its shell are compared.
    """
    from replay.history.comparing import compare
    from replay.history.presence import Snapshots
    from replay.history.show_diff import drawn
    from replay.history.target import parse
    from replay.rebuild.preparing import existing

    if (anyway or without) and not live:
        raise typer.BadParameter("--anyway and --without are of a rebuild, and go with --live")
    path = log_path(home, log)
    with SqliteLog(path, read_only=True) as opened:
        one, other, hidden = parse(opened, a), parse(opened, b), existing(opened, without)
        found = compare(opened, one, other, Snapshots.of(path.parent, store, storage), files=files, nearest=nearest)
        if not as_json:
            console().print(drawn(found, every=every))
        seen = None
        if live:
            seen = _live(opened, one, other, path.parent, store, storage, anyway, hidden, quiet=as_json)
    if as_json:
        print_json({**found.plain(), **(seen.plain() if seen else _NOT_LIVE)})
    elif seen is not None:
        from replay.rebuild.show_live import drawn as drawn_live

        console().print(drawn_live(seen, every=every))


def _live(
    log: SqliteLog,
    a: Target,
    b: Target,
    home: Path,
    store: str | None,
    storage: Path | None,
    anyway: bool,
    without: Collection[str],
    *,
    quiet: bool,
) -> Live:
    from replay.rebuild.differing import compare_live
    from replay.rebuild.ground import Ground
    from replay.rebuild.running import run
    from replay.rebuild.show import progress

    ground = Ground.of(home, store, storage)
    with progress("both in machines", hidden=quiet) as heard:
        return run(ground, compare_live(log, a, b, ground, anyway=anyway, without=without, heard=heard))
