"""The commands `hourglass export` and `hourglass import`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from events.commands_entities import AsJson, Home, LogFile
from events.console import clean, console, print_json, say, size
from events.home import log_path
from events.sqlite_log import SqliteLog
from replay.history.commands import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from events.snapshots import SnapshotStore

Snapshots = Annotated[
    bool, typer.Option("--snapshots/--no-snapshots", help="Whether to take the snapshots along, or the log alone.")
]
_NONE = "none"


def register(app: typer.Typer) -> None:
    """Add the commands to the root command."""
    app.command("export")(export)
    app.command("import")(import_)


def export(
    session: Annotated[
        str, typer.Argument(metavar="SESSION", help="A session or one of its sandboxes, or a beginning of its id.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", metavar="FILE.hourglass")],
    snapshots: Snapshots = True,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Write a session into one file: its history, its sandboxes' and their parents', and the snapshots in the store.

    `hourglass import` takes it over elsewhere. All that its agent did and saw is in it, files and memory included.
    """
    from replay.parcel.packing import export_session

    path = log_path(home, log)
    with SqliteLog(path, read_only=True) as opened, _progress("writing chunks") as progress:
        done = export_session(opened, session, output, _store(path, store, snapshots), progress=progress)
    if as_json:
        print_json(
            {
                "file": str(done.path),
                "bytes": done.bytes,
                "session_id": done.session_id,
                "streams": done.streams,
                "events": done.events,
                "snapshots": list(done.snapshots),
                "left_out": list(done.left_out),
            }
        )
        return
    say(
        f"{done.events:,} events in {len(done.streams):,} streams and {len(done.snapshots):,} snapshots, "
        f"{size(done.bytes)}, in {done.path}"
    )
    if done.left_out and snapshots:
        few = ", ".join(done.left_out[:3]) + (" …" if len(done.left_out) > 3 else "")
        say(f"left out, since the store does not have them: {len(done.left_out):,} snapshots ({few})", "yellow")


def import_(
    file: Annotated[Path, typer.Argument(help="What `hourglass export` wrote.", metavar="FILE.hourglass")],
    snapshots: Snapshots = True,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Take a session that was exported into this home: its history into the log, its snapshots into the store.

    The file may come from anybody: all of it is checked before anything is written. A second time changes nothing.
    """
    from replay.parcel.unpacking import import_session

    path = log_path(home, log)
    with _progress("checking chunks") as progress:
        done = import_session(file, path, _store(path, store, snapshots), progress=progress)
    if as_json:
        print_json(
            {
                "log": str(path),
                "session_id": done.session_id,
                "streams": done.streams,
                "added": done.added,
                "there": done.there,
                "snapshots": list(done.snapshots),
            }
        )
        return
    what = f"session {done.session_id}" if done.session_id else next(iter(done.streams), "nothing")
    there = f", {done.there:,} were there already" if done.there else ""
    say(f"{what}: {done.added:,} events{there}, {len(done.snapshots):,} new snapshots, in {path}")
    if done.session_id:
        at = f" --home {path.parent}" if home is not None else ""
        say(f"next: hourglass timeline {done.session_id}{at}", "dim")


def _store(log: Path, named: str | None, wanted: bool) -> SnapshotStore | None:
    from events.snapshots import SnapshotStore, default_store

    url = named or default_store(log.parent)
    return SnapshotStore.open(url) if wanted and url != _NONE else None


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import Progress

    with Progress(console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task(clean(what), total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
