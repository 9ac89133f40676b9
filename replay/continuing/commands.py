"""The commands `hourglass transcript` and `hourglass continue`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from events.commands_entities import AsJson, Home, LogFile
from events.console import clean, print_json, say
from events.home import log_path
from events.sqlite_log import SqliteLog
from replay.continuing import LEAST, MOST

if TYPE_CHECKING:
    from events.log import EventLog
    from replay.continuing.wording import Worded

_SESSION = "session-"
Most = Annotated[int, typer.Option("--most", min=LEAST, help="Characters of the transcript at most.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Do not ask the API for what was said: tool calls alone, from the log.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the root command."""
    app.command("transcript")(show)
    app.command("continue")(continue_)


def show(
    target: Annotated[
        str,
        typer.Argument(metavar="BRANCH|SANDBOX[@VERSION]|SESSION", help="What led to it is told; all of a session."),
    ],
    most: Most = MOST,
    offline: Offline = False,
    home: Home = None,
    log: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Print what led to a version of a sandbox, as a new session would begin with it: what was said, calls, results.

    Calls and results are as the log has them. What the user and the agent said is in no log: it is asked of the API,
    with ANTHROPIC_ENVIRONMENT_KEY or ANTHROPIC_API_KEY; where it can't be had, the transcript says so. In JSON, nothing
    is cut.
    """
    from replay.continuing import beginning
    from replay.continuing.transcript import transcript
    from replay.continuing.wording import worded

    with SqliteLog(log_path(home, log), read_only=True) as opened:
        stream, version, whole = _meant(opened, target)
        read = beginning.offline if offline else beginning.reader()
        made = transcript(opened, stream, version, read, whole=whole)
    if as_json:
        print_json(made.plain())
        return
    told = worded(made, most)
    for line in told.text.split("\n"):
        typer.echo(clean(line.expandtabs(4)))
    _tell_cuts(told)


def continue_(
    branch: Annotated[str, typer.Argument(metavar="BRANCH", help="A branch that no session uses, by its id.")],
    message: Annotated[str, typer.Option("--message", "-m", help="What the agent is to do now.")],
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="ID", help="Default: the agent of the parent session.")
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option("--environment", metavar="ID", help="Default: the parent session's, and no other can be."),
    ] = None,
    most: Most = MOST,
    offline: Offline = False,
    home: Home = None,
    log: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Create a session that goes on in a branch, and begins with a transcript of what led there.

    Needs ANTHROPIC_API_KEY. The session is served by `hourglass up` as any other: its sandbox is the branch, with the
    files and processes that it has.
    """
    from replay.continuing import beginning
    from replay.continuing.transcript import transcript
    from replay.continuing.wording import worded
    from replay.history.target import parse

    if not message.strip():
        raise typer.BadParameter("a message has words in it", param_hint="--message")
    with SqliteLog(log_path(home, log), read_only=True) as opened:
        wanted = parse(opened, branch)
        name = wanted.stream.removeprefix("sandbox-")
        origin = beginning.origin_of(opened, name)
        environment_id = beginning.environment_of(origin, name, environment)
        client = beginning.client_with_key()
        read = beginning.offline if offline else beginning.reader(client)
        made = transcript(opened, wanted.stream, wanted.version, read)
    told = worded(made, most)
    session_id = beginning.begin(
        client,
        agent=agent or beginning.agent_of(client, origin.session_id),
        environment_id=environment_id,
        branch=name,
        record=told.text,
        message=message,
    )
    missing = [one.session_id for one in made.chapters if one.silent]
    if as_json:
        print_json(
            {
                "session_id": session_id,
                "sandbox_id": name,
                "environment_id": environment_id,
                "from_session": origin.session_id,
                "transcript_characters": len(told.text),
                "quotations_cut": told.quotations_cut,
                "entries_left_out": told.entries_left_out,
                "conversations_missing": missing,
            }
        )
        return
    say(f"session {session_id} goes on in {name}, where session {origin.session_id} was")
    for one in missing:
        say(f"what was said in session {one} could not be had: the transcript has its tool calls alone", "yellow")
    _tell_cuts(told)
    say(f"`hourglass timeline {session_id} --follow` shows what it does, once `hourglass up` serves it")


def _meant(log: EventLog, target: str) -> tuple[str, int, bool]:
    """Stream and version of a sandbox, and whether a whole session is wanted."""
    from events.session_state import load
    from replay.history.target import find_stream, parse

    if "@" not in target and (stream := find_stream(log, target)).startswith(_SESSION):
        used = load(log, stream.removeprefix(_SESSION)).sandbox_id
        if used:
            return f"sandbox-{used}", log.version(f"sandbox-{used}"), True
    wanted = parse(log, target)
    return wanted.stream, wanted.version, False


def _tell_cuts(told: Worded) -> None:
    if told.quotations_cut or told.entries_left_out:
        typer.echo(
            f"note: {told.quotations_cut:,} quotations are not whole, and {told.entries_left_out:,} entries are left "
            "out; --most allows more",
            err=True,
        )
