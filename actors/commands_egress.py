"""`hourglass egress allow`, `deny` and `show`: what a sandbox may reach, changed and shown; by Ray where it serves."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from events import sandbox_state, targets
from events.commands_egress import Target, app, show_judged
from events.console import print_json, print_table, say
from events.egress_policy import Policy
from events.egress_view import egress_view
from events.home import LOG_NAME
from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from actors.egress_changes import Edit
    from actors.settings import Settings

_Entries = Annotated[
    list[str], typer.Argument(help="example.com, *.example.com, db.example.com:5432, 10.1.0.0/16:5432 …")
]
_Config = Annotated[Path | None, typer.Option(help="A TOML file of settings; default: ./hourglass.toml.")]
_Home = Annotated[Path | None, typer.Option(help="The home that is served; also HOURGLASS_HOME.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing; say what it would have made of what was asked for so far.")
]


def register() -> None:
    """Add these commands to the group `egress`, which the log's commands make; once, however often it is called."""
    known = {command.callback for command in app.registered_commands}
    for command in (show, deny, allow):
        if command not in known:
            app.command()(command)
            app.registered_commands.insert(0, app.registered_commands.pop())


def allow(
    target: Target,
    entries: _Entries,
    dry_run: _DryRun = False,
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Let a sandbox reach more: names, all names below one, ports, networks; in force at once.

    A name alone is for TCP ports 80 and 443. It works in every state of the sandbox, with or without a service. A
    session's other sandboxes keep their lists.
    """
    from actors.egress_changes import Edit

    _edit(config, home, target, Edit.of(add=entries), dry_run=dry_run, as_json=as_json)


def deny(
    target: Target,
    entries: _Entries,
    dry_run: _DryRun = False,
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Take entries out of what a sandbox may reach, also those that the settings gave; in force at once.

    An entry is named as the list has it: there are no rules that forbid, and what no entry allows is refused.
    """
    from actors.egress_changes import Edit

    _edit(config, home, target, Edit.of(remove=entries), dry_run=dry_run, as_json=as_json)


def show(
    target: Annotated[
        str | None, typer.Argument(help="A session's or a sandbox's id; default: what the settings give.")
    ] = None,
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Show what a sandbox may reach, and where each entry comes from; without one, what the settings give."""
    settings = _settings(config, home)
    if target is None:
        _show_settings(settings, as_json=as_json)
        return
    with SqliteLog(settings.home / LOG_NAME, read_only=True) as log:
        view = egress_view(sandbox_state.load(log, targets.current(log, target)))
    _show(view, as_json=as_json)


def _edit(config: Path | None, home: Path | None, target: str, edit: Edit, *, dry_run: bool, as_json: bool) -> None:
    settings = _settings(config, home)
    if dry_run:
        with SqliteLog(settings.home / LOG_NAME, read_only=True) as log:
            state = sandbox_state.load(log, targets.current(log, target))
            edit.check(state)
            show_judged(log, [state.sandbox_id], Policy.parse(edit.applied(state.egress)), as_json=as_json)
        return
    from actors.egress_changes import change
    from actors.ray_environment import prepare_ray

    prepare_ray(loopback=settings.ray_address is None)
    _show(change(settings, target, edit, _who()), as_json=as_json)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"  # one that no account has


def _settings(config: Path | None, home: Path | None) -> Settings:
    from actors.settings import Settings

    return Settings.load(config, home=home)


def _show(view: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    of = f" of {view['session_id']}" if view["session_id"] else ""
    say(f"{view['sandbox_id']}{of}, {view['phase']}, may reach {'' if view['allow'] else 'nothing'}".rstrip())
    rows = [(entry, "a person" if entry in view["from_people"] else "the settings") for entry in view["allow"]]
    rows += [(entry, "the settings, and taken out by a person") for entry in view["taken_out"]]
    if rows:
        print_table(("entry", "from"), rows)
    if not view["follows_settings"]:
        say("It is a branch, or a fork of one: the settings do not apply to it.")


def _show_settings(settings: Settings, *, as_json: bool) -> None:
    """What they give; of credentials all but their values, which are not in them."""
    agents = {agent: list(entries) for agent, entries in settings.egress_agents.items()}
    hosts = {name: list(addresses) for name, addresses in settings.egress_hosts.items()}
    credentials = {
        name: {"kind": one.kind, "from": f"file {one.file}" if one.file is not None else f"variable {one.env}"}
        for name, one in settings.egress_credentials.items()
    }
    if as_json:
        print_json({"allow": list(settings.egress), "agents": agents, "hosts": hosts, "credentials": credentials})
        return
    rows = [(entry, "every sandbox") for entry in settings.egress]
    rows += [(entry, f"sessions of agent {agent}") for agent, entries in agents.items() for entry in entries]
    if rows:
        print_table(("entry", "for"), rows)
    else:
        say("The settings let no sandbox reach anything: see `egress` and `egress_agents`.")
    if hosts:
        print_table(("host", "address"), [(name, ", ".join(addresses)) for name, addresses in hosts.items()])
    if credentials:
        print_table(
            ("guests ask", "credential", "value from"),
            [(f"http://{name}.internal/", one["kind"], one["from"]) for name, one in credentials.items()],
        )
