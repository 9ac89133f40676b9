"""The command `hourglass bisect`. It needs no service, and no Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from events.commands_entities import AsJson, Home, LogFile
from events.console import console, print_json
from events.home import log_path
from events.sqlite_log import SqliteLog
from replay.history.commands import Storage, Store
from replay.rebuild.running import ground_of, run

if TYPE_CHECKING:
    from pathlib import Path

    from events.types import BisectBegun
    from replay.bisect.bisecting import Bisected
    from replay.rebuild.ground import Ground

_MOST_JOBS = 32


def register(app: typer.Typer) -> None:
    """Add the command to the root command."""
    app.command()(bisect)


def bisect(
    stream: Annotated[str, typer.Argument(metavar="SANDBOX", help="A sandbox: its id, or a beginning of it.")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="The program and its arguments, after --.")],
    good: Annotated[int, typer.Option("--good", min=1, help="A version at which the command succeeds.")],
    bad: Annotated[int, typer.Option("--bad", min=1, help="A later one at which it fails.")],
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=_MOST_JOBS, help="How many machines at once.")] = 1,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=86_400, help="Seconds that the command may run in each.")
    ] = 120.0,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Judge by versions, too, that do not come back as they were.")
    ] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Probe again what an earlier bisect has found out.")] = False,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Whether to append to the log what was found.")
    ] = True,
    home: Home = None,
    log: LogFile = None,
    store: Store = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Find the tool call that broke something: the first version at which a command fails.

    The command runs in throw-away machines without network, each a version brought back, in the sandbox's own shell.
    As with `git bisect run`, exit code 0 says good, 125 that it can't be told, 1 to 127 bad, and others end the bisect.
    What was found is appended to the log, in a stream of its own; one that was cut short goes on where it was. Exits 1
    where no single change is to blame.
    """
    from replay.bisect.bisecting import asked
    from replay.bisect.show import drawn
    from replay.history.target import parse

    if "@" in stream:
        raise typer.BadParameter("name the versions with --good and --bad", param_hint="SANDBOX")
    path = log_path(home, log)
    ground = ground_of(path.parent, store, storage, waiting=jobs)
    with SqliteLog(path, read_only=True) as opened:
        found_stream = parse(opened, stream).stream
        begun = asked(
            opened,
            found_stream,
            good,
            bad,
            command,
            driver=ground.driver.name,
            jobs=jobs,
            seconds=timeout,
            anyway=anyway,
        )
        found = run(ground, _carried_out(opened, begun, ground, path if record else None, anew=anew, quiet=as_json))
    if as_json:
        print_json(found.plain())
    else:
        console().print(drawn(found))
    if not found.exact:
        raise typer.Exit(1)


async def _carried_out(
    log: SqliteLog, begun: BisectBegun, ground: Ground, path: Path | None, *, anew: bool, quiet: bool
) -> Bisected:
    from replay.bisect.bisecting import bisect as carry_out
    from replay.bisect.evidence import Evidence
    from replay.rebuild.show import progress

    what = f"{begun.stream} from {begun.good} to {begun.bad}"
    with Evidence.opened(log, begun, path, anew=anew) as evidence, progress(what, hidden=quiet) as heard:
        return await carry_out(log, begun, ground, evidence, heard=heard)
