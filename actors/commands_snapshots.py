"""`hourglass snapshots`: what there is, whether it is whole, and what may go. They need no service."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from events.console import clean, console, print_json, print_table, say, size
from events.errors import HourglassError, NothingThere

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actors.settings import Settings
    from events.pruning import Choice, Plan
    from events.snapshots import SnapshotStore
    from events.sqlite_log import SqliteLog

app = typer.Typer(help="Snapshots of sandboxes, on this node and in the store.", no_args_is_help=True)

_Config = Annotated[Path | None, typer.Option(help="A TOML file of settings; default: ./hourglass.toml.")]
_Home = Annotated[Path | None, typer.Option(help="Where the log lies; also HOURGLASS_HOME.")]
_Store = Annotated[
    str | None,
    typer.Option(
        help="A folder, a URL of fsspec, or none; also HOURGLASS_SNAPSHOT_STORE; default: snapshots in the home."
    ),
]
_Storage = Annotated[Path | None, typer.Option(help="Where templates and sandboxes lie; also HOURGLASS_STORAGE.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(eq=False)
class NoStore(HourglassError):
    """There is no snapshot store: the setting snapshot_store is none."""

    next_step = "Name one with --store."


@app.command()
def ls(
    sandbox: Annotated[
        str, typer.Argument(help="A session's or a sandbox's id, or a beginning of it; default: all.")
    ] = "",
    config: _Config = None,
    home: _Home = None,
    store: _Store = None,
    storage: _Storage = None,
    as_json: _Json = False,
) -> None:
    """Show every snapshot: whose, of which version, where it is, what needs it."""
    from actors.inventory import inventory, sandboxes_named

    settings = _settings(config, home, store, storage)
    with _log(settings) as log:
        named = sandboxes_named(log, sandbox) if sandbox else None
        if named is not None and not named:
            raise NothingThere(path=settings.home, what=f"sandbox or session {sandbox}")
        rows = inventory(settings, log, _store(settings) if settings.store_url else None, named)
    if as_json:
        print_json([row.as_json() for row in rows])
        return
    print_table(
        ("snapshot", "sandbox", ">version", "taken", ">image", ">files", "where", "needed by"),
        (
            (
                row.snapshot_id,
                row.sandbox_id,
                row.version,
                time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row.taken_at)) if row.taken_at else "",
                size(row.image_bytes),
                size(row.tree_bytes),
                " and ".join([*(["node"] if row.local else []), *(["store"] if row.stored else [])]),
                f"damaged: {row.broken}" if row.broken else "; ".join(row.needed_by),
            )
            for row in rows
        ),
    )
    alone = [row for row in rows if row.local and not row.stored] if settings.store_url else []
    if alone:
        say(
            f"{len(alone)} are on this node alone, with {size(sum(row.image_bytes for row in alone))} of images: the "
            "store does not have them yet, or refuses them; what `hourglass up` prints says why"
        )


@app.command()
def verify(
    snapshots: Annotated[list[str] | None, typer.Argument(help="Ids; default: all, and the templates.")] = None,
    config: _Config = None,
    home: _Home = None,
    store: _Store = None,
    as_json: _Json = False,
) -> None:
    """Read every chunk of the store again. Reports all that is damaged, and exits with 1 where anything is."""
    from rich.progress import Progress

    opened = _store(_settings(config, home, store))
    good: set[str] = set()
    bad: list[tuple[str, HourglassError]] = []
    ids = snapshots or opened.ids()
    with Progress(console=console(), disable=as_json or not console().is_terminal, transient=True) as progress:
        for one in progress.track(ids, description="verifying"):
            bad += ((one, error) for error in opened.verify(one, good))
    if as_json:
        told = [
            {"snapshot_id": one, "chunk": getattr(error, "chunk", ""), "error": str(error), "next": error.advice}
            for one, error in bad
        ]
        print_json({"snapshots": len(ids), "chunks": len(good), "bad": told})
    else:
        for _, error in bad:
            say(str(error), style="red")
        broken = len({one for one, _ in bad})
        say(f"{len(ids) - broken} of {len(ids)} are whole; {len(good):,} chunks are what was written")
        if bad:
            say(f"next: {bad[0][1].advice}")
    if bad:
        raise typer.Exit(1)


@app.command()
def prune(
    snapshots: Annotated[list[str] | None, typer.Argument(help="Ids; default: all that nothing needs.")] = None,
    keep: Annotated[int, typer.Option(help="How many of each sandbox stay, the newest.", min=0)] = 0,
    older_than: Annotated[str, typer.Option(help="Only those taken so long ago: 90m, 12h, 7d, 4w.")] = "",
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Of the ids, also those of sandboxes that this log does not know.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: _Config = None,
    home: _Home = None,
    store: _Store = None,
    as_json: _Json = False,
) -> None:
    """Remove from the store what no sandbox that lives, no fork and no branch needs. Says first what would go."""
    from events.needs import needs, sandboxes_of
    from events.pruning import Choice, plan
    from events.pruning import prune as carry_out

    if as_json and not (yes or dry_run):
        raise typer.BadParameter("with --json nobody can be asked: say --yes or --dry-run")
    if snapshots and (keep or older_than):
        raise typer.BadParameter("--keep and --older-than choose among all; leave them out with ids")
    before = time.time() - _seconds(older_than) if older_than else None
    choice = Choice(ids=tuple(snapshots or ()), keep=keep, taken_before=before, foreign=foreign)
    settings = _settings(config, home, store)
    opened = _store(settings)
    with _log(settings) as log:
        asked: dict[str, Any] = {"known": sandboxes_of(log), "needs": lambda stored: needs(log, stored)}
        made = plan(opened, choice, **asked)
        if not as_json:
            _say_plan(made)
        done = dry_run or not _agreed(made, yes=yes)
        if not done:
            # What was agreed to, and no more: others may have come meanwhile.
            only = Choice(ids=tuple(made.snapshots), foreign=foreign) if made.snapshots else _nothing(choice)
            made = carry_out(opened, only, **asked)
    if as_json:
        print_json(_as_json(made, removed=not done))
    elif not done:
        say(f"removed {_count(made)}")


def _nothing(choice: Choice) -> Choice:
    """No snapshot, and so only what nothing refers to."""
    from dataclasses import replace

    return replace(choice, taken_before=float("-inf"))


def _agreed(made: Plan, *, yes: bool) -> bool:
    if not (made.snapshots or made.templates or made.chunks):
        return False
    return yes or typer.confirm("Remove them?")


def _say_plan(made: Plan) -> None:
    for one in (*made.snapshots, *made.templates):
        say(one)
    say(f"{_count(made)} would go")


def _count(made: Plan) -> str:
    return (
        f"{len(made.snapshots)} snapshots, {len(made.templates)} templates, {len(made.chunks):,} chunks "
        f"({size(made.bytes)})"
    )


def _as_json(made: Plan, *, removed: bool) -> dict[str, Any]:
    return {
        "snapshots": made.snapshots,
        "templates": made.templates,
        "chunks": len(made.chunks),
        "bytes": made.bytes,
        "removed": removed,
    }


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if found is None:
        raise typer.BadParameter(f"--older-than {clean(text)!r}: a number and s, m, h, d or w, as in 7d")
    return float(int(found[1]) * _UNITS[found[2]])


def _settings(config: Path | None, home: Path | None, store: str | None, storage: Path | None = None) -> Settings:
    from actors.settings import Settings

    return Settings.load(config, home=home, snapshot_store=store, storage=storage)


def _store(settings: Settings) -> SnapshotStore:
    from events.snapshots import SnapshotStore

    if settings.store_url is None:
        raise NoStore
    return SnapshotStore.open(settings.store_url)


@contextmanager
def _log(settings: Settings) -> Iterator[SqliteLog]:
    from events.home import LOG_NAME
    from events.sqlite_log import SqliteLog

    with SqliteLog(settings.home / LOG_NAME, read_only=True) as opened:
        yield opened
