"""The `hourglass` command: it gathers the commands of every installed package and says what goes wrong in one way.

Packages name their commands as entry points of the group `hourglass.commands`: a function that takes the root app and
adds to it. So this module imports no other package, and reading a log works where the others can't be imported.
"""

from __future__ import annotations

import inspect
import os
import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from events import commands_egress, commands_log
from events.commands_entities import sandboxes, sessions
from events.commands_usage import usage
from events.console import clean, is_ours, report

_GROUP = "hourglass.commands"
_DISTRIBUTION = "hourglass-agents"
_BROKEN_PIPE_EXIT = 141
"""What a shell reports of a program that died of SIGPIPE."""


def register(app: typer.Typer) -> None:
    """Add the commands that read the log."""
    app.command()(sessions)
    app.command()(sandboxes)
    app.command()(usage)
    app.add_typer(commands_log.app)
    app.add_typer(commands_egress.app)


def build() -> typer.Typer:
    """The root app, with the commands of every package that can be imported."""
    app = typer.Typer(
        name="hourglass",
        help="The hands of Claude Managed Agents: every session in a sandbox of its own, every change an event.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(_root)
    for entry_point in sorted(entry_points(group=_GROUP), key=lambda one: one.name):
        try:
            entry_point.load()(app)
        except Exception as error:
            # Whatever it is, the other packages' commands must go on working, the log's above all.
            cause = clean(f"{type(error).__name__}: {error}", 200)
            sys.stderr.write(f"warning: the commands of {entry_point.name} are missing: {cause}\n")
    _unwrap(app)
    return app


def _unwrap(app: typer.Typer) -> None:
    """Have the help of each command broken where the terminal ends, and not where its docstring has its lines."""
    for command in app.registered_commands:
        text = command.help or inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _unwrap(group.typer_instance)


def main() -> None:
    """Run the command line and exit: 0 done, 1 an error of ours, 2 wrong usage."""
    app = build()
    try:
        app()
    except BrokenPipeError:
        # Whoever read stdout has seen enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE_EXIT)
    except Exception as error:
        if not is_ours(error):
            raise
        report(error, as_json="--json" in sys.argv[1:])
        sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hourglass {version(_DISTRIBUTION)}")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass
