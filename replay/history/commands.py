"""The commands that look back with no machine started: `state`, `plan`, `ls`, `cat`."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from events.commands_entities import AsJson, Home, LogFile
from events.console import console, print_json
from events.home import log_path
from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.history.trees import FileTree

Version = Annotated[str, typer.Argument(metavar="SANDBOX@VERSION", help="A version of a sandbox, as sbx-0123@17.")]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="HOURGLASS_SNAPSHOT_STORE",
        help="The snapshot store: a folder or a URL; default: `snapshots` in the home.",
        show_default=False,
    ),
]
Storage = Annotated[
    Path | None,
    typer.Option(
        "--storage", envvar="HOURGLASS_STORAGE", help="Where this node keeps snapshots whole.", show_default=False
    ),
]

Nearest = Annotated[bool, typer.Option("--nearest", help="Take the nearest snapshot's files, whatever was done since.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the root command."""
    for command in (state, plan, ls, cat):
        app.command()(command)


def state(
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="A session or a sandbox, or a beginning of its id.")],
    version: Annotated[int | None, typer.Option(help="After this event of the stream.")] = None,
    position: Annotated[int | None, typer.Option(help="After this event of the whole log.")] = None,
    time: Annotated[
        str | None, typer.Option(help="At this time, as 2026-11-28T09:30:00Z; without a zone, it is UTC.")
    ] = None,
    home: Home = None,
    log: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a session or a sandbox was at a version, position or time; where none is given, after its last event.

    Reads the log file alone: the service may run, or be long gone.
    """
    from replay.history.show_state import drawn
    from replay.history.states import parse_time, plain, state_at
    from replay.history.target import find_stream

    if sum(one is not None for one in (version, position, time)) > 1:
        raise typer.BadParameter("give one of --version, --position and --time")
    moment = parse_time(time) if time is not None else None
    with SqliteLog(log_path(home, log), read_only=True) as opened:
        found = state_at(opened, find_stream(opened, stream), version=version, position=position, time=moment)
    if as_json:
        print_json(plain(found))
        return
    for one in drawn(found):
        if one is not None:
            console().print(one)


def plan(
    target: Version,
    every: Annotated[bool, typer.Option("--all", help="Show the calls that are in the snapshot, too.")] = False,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Show how a version would be rebuilt: from which snapshot, which calls run again, and what can't be reproduced.

    Nothing is started, and nothing changed.
    """
    from replay.history.planning import plan as make
    from replay.history.presence import Snapshots
    from replay.history.show_plan import drawn
    from replay.history.target import parse

    path = log_path(home, log)
    with SqliteLog(path, read_only=True) as opened:
        wanted = parse(opened, target)
        made = make(opened, wanted.stream, wanted.version, Snapshots.of(path.parent, store, storage).where)
    if as_json:
        print_json(made.plain())
    else:
        console().print(drawn(made, every=every))


def ls(
    target: Annotated[
        str,
        typer.Argument(metavar="SANDBOX@VERSION[:PATH]", help="A version of a sandbox, and a path in it; default: /."),
    ],
    nearest: Nearest = False,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """List the files that a sandbox had at a version, with no machine started.

    Reads the nearest snapshot in the store at or before the version, and says which version that is of. In JSON, what
    is no printable text in a name stands as %XX.
    """
    from replay.history.show_files import show_entries

    with _tree(target, nearest, home, log, store) as (tree, path):
        show_entries(tree, path, as_json=as_json)


def cat(
    target: Annotated[
        str, typer.Argument(metavar="SANDBOX@VERSION:PATH", help="A version of a sandbox, and a file in it.")
    ],
    nearest: Nearest = False,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Print a file as a sandbox had it at a version, with no machine started; its bytes as they were, in a pipe."""
    from replay.history.show_files import show_content

    with _tree(target, nearest, home, log, store) as (tree, path):
        show_content(tree, path, as_json=as_json)


@contextmanager
def _tree(
    target: str, nearest: bool, home: Path | None, log: Path | None, store: str | None
) -> Iterator[tuple[FileTree, str]]:
    from replay.history.presence import Snapshots
    from replay.history.target import parse
    from replay.history.trees import tree_at

    path = log_path(home, log)
    with SqliteLog(path, read_only=True) as opened:
        wanted = parse(opened, target, path=True)
        yield tree_at(opened, wanted, Snapshots.of(path.parent, store), nearest=nearest), wanted.path
