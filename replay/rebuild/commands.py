"""Commands that bring machines up to look back: `rebuild`, `rebuilds`, `verify`. They need no service, and no Ray."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from events.commands_entities import AsJson, Home, LogFile
from events.console import console, print_json, say
from events.home import log_path
from events.sqlite_log import SqliteLog
from replay.history.commands import Storage, Store, Version
from replay.rebuild.running import ground_of as _ground
from replay.rebuild.running import run as _run

if TYPE_CHECKING:
    from pathlib import Path

    from actors.machines.protocol import Machine
    from replay.history.planned import Plan
    from replay.rebuild.ground import Ground
    from replay.rebuild.rebuilding import Rebuilt
    from replay.rebuild.verifying import Outcome

rebuilds = typer.Typer(name="rebuilds", help="The rebuilds that were kept on this node.", no_args_is_help=True)

_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the root command."""
    app.command()(rebuild)
    app.add_typer(rebuilds)
    app.command()(verify)


def rebuild(
    target: Version,
    until: Annotated[int | None, typer.Option("--until", min=1, help="Go no further than this version.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it on this node, suspended; `rebuilds rm` ends it.")
    ] = False,
    shell: Annotated[
        bool, typer.Option("--shell", help="Then open a shell in it, in this terminal; it goes when the shell ends.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="SNAPSHOT", help="As if this snapshot did not exist; may be repeated."),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Leave out what can't be repeated, where the plan has such calls or gaps.")
    ] = False,
    yes: _Yes = False,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Bring a version back in a throw-away machine without network, and say how exactly it is what it was.

    Shows the plan first. Every call after the snapshot runs again and is compared with its recorded result, and at the
    end the work tree with that of a snapshot of the same version. Exits 1 where anything differs. The sandbox itself,
    which may be in use, and its log are not touched. With --shell and --keep, what the shell leaves is kept.
    """
    from replay.history.planning import plan as make
    from replay.history.show_plan import drawn as drawn_plan
    from replay.history.target import parse
    from replay.rebuild.errors import NoTerminal
    from replay.rebuild.preparing import checked, existing, hiding
    from replay.rebuild.show import drawn, kept_line

    if as_json and not yes:
        raise typer.BadParameter("with --json nobody can be asked: say --yes")
    if as_json and shell:
        raise typer.BadParameter("--shell takes the terminal, and goes not with --json")
    path = log_path(home, log)
    ground = _ground(path.parent, store, storage)
    with SqliteLog(path, read_only=True) as opened:
        wanted = parse(opened, target)
        version = min(wanted.version, until or wanted.version)
        if shell and not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise NoTerminal(target=f"{wanted.stream}@{version}")
        made = make(opened, wanted.stream, version, hiding(ground.snapshots.where, existing(opened, without)))
        if not as_json:
            console().print(drawn_plan(made, every=False))
        checked(opened, made, ground.driver.name, anyway=anyway)
        if not (yes or typer.confirm("Rebuild it?")):
            raise typer.Exit(1)
        found = _carried_out(opened, made, ground, keep=keep, anyway=anyway, quiet=as_json, shell=shell)
    if as_json:
        print_json({"plan": made.plain(), **found.plain()})
    elif not shell:
        console().print(drawn(found))
    elif found.kept is not None:
        console().print(kept_line(found.kept))
    if found.verdict.value == "differs":
        raise typer.Exit(1)


@rebuilds.command("ls")
def list_rebuilds(storage: Storage = None, as_json: AsJson = False) -> None:
    """Show the rebuilds that were kept: of which version, and what came of them."""
    from dataclasses import asdict

    from replay.history.presence import default_storage
    from replay.rebuild.show import kept_table
    from replay.rebuild.throwaway import Place

    kept = Place(storage or default_storage()).kept()
    if as_json:
        print_json([asdict(one) for one in kept])
    elif kept:
        console().print(kept_table(kept))
    else:
        say("No rebuild is kept on this node.")


@rebuilds.command("rm")
def remove(
    name: Annotated[str, typer.Argument(metavar="REBUILD", help="Its name, or a beginning of it.")],
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Remove a rebuild that was kept: files, memory, and a machine where one runs on it."""
    from replay.rebuild.throwaway import remove_kept

    ground = _ground(None, None, storage)
    gone = _run(ground, remove_kept(ground.driver, ground.place, name))
    if as_json:
        print_json({"removed": gone})
    else:
        say(f"removed {gone}")


def verify(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="SANDBOX[@VERSION]", help="Sandboxes, by id or a beginning of it; up to a version."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every sandbox of the log.")] = False,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Whether to append to the log what was found.")
    ] = True,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Run all calls of sandboxes again, from each snapshot to the next, and compare every result and work tree.

    What was found is appended to the log, in streams of their own (`replay-…`), by the service where one runs. Goes on
    after one that differs, and exits 1 in the end where any did, or could not be verified.
    """
    from replay.rebuild.show import outcomes
    from replay.rebuild.verifying import Status

    path = log_path(home, log)
    ground = _ground(path.parent, store, storage)
    with SqliteLog(path, read_only=True) as opened:
        wanted = _wanted(opened, targets or [], every=every)
        found = _run(ground, _verified(opened, wanted, ground, path if record else None, quiet=as_json))
    if as_json:
        counts = {status.value: sum(one.status is status for one, _ in found) for status in Status}
        print_json({**counts, "sandboxes": [{**one.plain(), "not_recorded": lost or None} for one, lost in found]})
    else:
        console().print(outcomes(found))
    if any(lost or one.status in (Status.DIVERGED, Status.FAILED) for one, lost in found):
        raise typer.Exit(1)


def _wanted(log: SqliteLog, targets: list[str], *, every: bool) -> list[tuple[str, int]]:
    """Streams and versions."""
    from replay.history.target import parse
    from replay.rebuild.errors import NothingToVerify

    if every and targets:
        raise typer.BadParameter("give sandboxes or --all, and not both")
    if every:
        found = [(one, log.version(one)) for one in log.streams() if one.startswith("sandbox-")]
        if not found:
            raise NothingToVerify(because="the log has none")
        return found
    if not targets:
        raise NothingToVerify(because="none was named")
    parsed = [parse(log, one) for one in targets]
    return list(dict.fromkeys((one.stream, one.version) for one in parsed))


async def _verified(
    log: SqliteLog, wanted: list[tuple[str, int]], ground: Ground, path: Path | None, *, quiet: bool
) -> list[tuple[Outcome, str]]:
    """What came of each, and why it could not be recorded."""
    from replay.rebuild.errors import NotRecorded
    from replay.rebuild.findings import record
    from replay.rebuild.show import progress
    from replay.rebuild.verifying import verify as check

    found: list[tuple[Outcome, str]] = []
    for number, (stream, version) in enumerate(wanted, start=1):
        with progress(f"{number} of {len(wanted)}, {stream}", hidden=quiet) as heard:
            outcome = await check(log, stream, version, ground, heard=heard)
        event, lost = outcome.event(), ""
        if event is not None and path is not None:
            [first] = log.read(stream, limit=1)
            try:
                await asyncio.to_thread(record, path, stream, event, first.correlation_id)
            except NotRecorded as error:
                lost = f"{error} {error.advice}"
        found.append((outcome, lost))
    return found


def _carried_out(
    log: SqliteLog, made: Plan, ground: Ground, *, keep: bool, anyway: bool, quiet: bool, shell: bool
) -> Rebuilt:
    from replay.rebuild.rebuilding import rebuild as carry_out
    from replay.rebuild.shell import in_terminal
    from replay.rebuild.show import drawn, progress

    with ExitStack() as showing:
        heard = showing.enter_context(progress(str(made.target), hidden=quiet))

        async def in_a_shell(machine: Machine, found: Rebuilt) -> None:
            # The terminal is the shell's now.
            showing.close()
            console().print(drawn(found))
            say("A shell in it; Enter, then ~. leaves it where nothing else does.")
            await machine.guest.wake()
            await in_terminal(machine)

        then = in_a_shell if shell else None
        return _run(ground, carry_out(log, made, ground, keep=keep, anyway=anyway, heard=heard, then=then))
