"""The commands `hourglass branch` and `hourglass branches`. They need no service, and no Ray where none runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from events.commands_entities import AsJson, Home, LogFile
from events.console import console, print_json, say
from events.home import log_path
from events.sqlite_log import SqliteLog
from replay.history.commands import Storage, Store, Version

if TYPE_CHECKING:
    from replay.branching.branching import Branch
    from replay.branching.what_if import WhatIf
    from replay.history.planned import Plan
    from replay.rebuild.ground import Ground


def register(app: typer.Typer) -> None:
    """Add the commands to the root command."""
    app.command()(branch)
    app.command()(branches)


def branch(
    target: Version,
    replace: Annotated[
        list[str] | None,
        typer.Option(
            "--replace",
            metavar="N=JSON",
            help="Run another call in place of the one that was started, or ended, at version N, and go on with the "
            "rest; may be repeated. N=TOOL JSON runs another tool.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="SNAPSHOT", help="As if this snapshot did not exist; may be repeated."),
    ] = None,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Leave out what can't be repeated, and take what came back where it differs."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; nor does --json.")] = False,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Make a new sandbox from a past version of another, which is not touched.

    Shows the plan first. Every call after the snapshot runs again, and where a result or the work tree differs, no
    branch is made. It lies suspended on this node, with a history of its own that goes on from its parent's. With
    --replace it begins right before the first call that is replaced, runs the calls from there on as its own, and tells
    where their results part from its parent's.
    """
    from replay.branching.errors import NotTheSame
    from replay.branching.show import drawn, drawn_what_if
    from replay.branching.what_if import parse_replacement, what_if
    from replay.history.planning import plan as make
    from replay.history.show_plan import drawn as drawn_plan
    from replay.history.target import parse
    from replay.rebuild.ground import Ground
    from replay.rebuild.preparing import checked, existing, hiding
    from replay.rebuild.show import drawn as drawn_rebuild

    given = [parse_replacement(one) for one in replace or []]
    path = log_path(home, log)
    ground = Ground.of(path.parent, store, storage)
    with SqliteLog(path, read_only=True) as opened:
        wanted = parse(opened, target)
        planned = what_if(opened, wanted.stream, wanted.version, given) if given else None
        version = planned.begin.version if planned else wanted.version
        made = make(opened, wanted.stream, version, hiding(ground.snapshots.where, existing(opened, without)))
        if not as_json:
            console().print(drawn_plan(made, every=False))
            if planned is not None:
                console().print(drawn_what_if(planned))
        if planned is not None and not anyway:
            planned.check()
        checked(opened, made, ground.driver.name, anyway=anyway)
        if not (yes or as_json or typer.confirm("Branch it?")):
            raise typer.Exit(1)
        told: dict[str, Any] = {"plan": made.plain(), "what_if": planned.plain() if planned else None}
        try:
            found = _made(opened, made, ground, planned, anyway=anyway, quiet=as_json)
        except NotTheSame as error:
            if error.found is None:
                raise
            if as_json:
                said = {"error": str(error), "next": error.advice, "type": type(error).__name__}
                print_json({**said, **told, "rebuilt": error.found.plain()})
                raise typer.Exit(1) from None
            console().print(drawn_rebuild(error.found))
            raise
    if as_json:
        print_json({**told, **found.plain()})
    else:
        console().print(drawn(found))


def branches(
    stream: Annotated[
        str | None,
        typer.Argument(metavar="STREAM", help="A sandbox or a session, or a beginning of its id; default: all."),
    ] = None,
    home: Home = None,
    log: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Draw which sandbox came from which: forks and branches, each beneath its parent, and from which version.

    Of one that is named, or of a session's, the whole tree that it stands in.
    """
    from replay.branching.family import family
    from replay.branching.show import drawn_family
    from replay.history.target import find_stream

    path = log_path(home, log)
    with SqliteLog(path, read_only=True) as opened:
        named = find_stream(opened, stream) if stream is not None else None
        found = family(opened, named)
    if as_json:
        print_json([one.plain() for one in found])
    elif found:
        console().print(drawn_family(found, (named or "").removeprefix("sandbox-")))
    else:
        say(f"No sandbox in {path} yet." if named is None else f"No sandbox of {named} in {path}.")


def _made(log: SqliteLog, made: Plan, ground: Ground, planned: WhatIf | None, *, anyway: bool, quiet: bool) -> Branch:
    from replay.branching.branching import branch as carry_out
    from replay.rebuild.running import run
    from replay.rebuild.show import progress

    with progress(str(made.target), hidden=quiet) as heard:
        return run(ground, carry_out(log, made, ground, what_if=planned, anyway=anyway, heard=heard))
