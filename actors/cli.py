"""The commands that run things: `up`, `init`, `doctor`, `tools`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from actors import commands_egress, commands_sandboxes, commands_snapshots, commands_templates, commands_visits
from events.console import clean, console, print_json, print_table, say

if TYPE_CHECKING:
    from actors.machines.protocol import Finding
    from actors.settings import Settings

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Config = Annotated[Path | None, typer.Option(help="A TOML file of settings; default: ./hourglass.toml.")]
_Home = Annotated[Path | None, typer.Option(help="Where the log lies; also HOURGLASS_HOME.")]
_Storage = Annotated[Path | None, typer.Option(help="Where templates and sandboxes lie; also HOURGLASS_STORAGE.")]


def register(app: typer.Typer) -> None:
    """Add this package's commands to the root command."""
    app.command()(up)
    app.command("init")(init)
    app.command()(doctor)
    app.command()(tools)
    app.add_typer(commands_templates.template, name="template")
    app.add_typer(commands_snapshots.app, name="snapshots")
    commands_egress.register()
    commands_sandboxes.register(app)
    commands_visits.register(app)


def up(
    config: _Config = None,
    home: _Home = None,
    storage: _Storage = None,
    environment_id: Annotated[str | None, typer.Option(help="env_…; also ANTHROPIC_ENVIRONMENT_ID.")] = None,
    environment_key_file: Annotated[
        Path | None, typer.Option(help="A file with the environment's key; else ANTHROPIC_ENVIRONMENT_KEY.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Where the API is; also ANTHROPIC_BASE_URL.")] = None,
    isolation: Annotated[str | None, typer.Option(help="host, or process: an actor for each session.")] = None,
    max_sandboxes: Annotated[int | None, typer.Option(help="Machines at a time on this node.")] = None,
    max_idle: Annotated[float | None, typer.Option(help="Seconds a session is held after its turn.")] = None,
    drain_seconds: Annotated[float | None, typer.Option(help="How long a stop waits for calls that run.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics on this port of loopback; 0: any.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster to join; default: Ray on this machine.")] = None,
    dashboard: Annotated[bool, typer.Option(help="Ray's dashboard and `ray list`, on loopback.")] = False,
    as_json: _Json = False,
) -> None:
    """Serve an environment until SIGTERM or Ctrl-C, then hand everything back."""
    from actors.ray_environment import prepare_ray
    from actors.settings import Settings

    settings = Settings.load(
        config,
        home=home,
        storage=storage,
        environment_id=environment_id,
        environment_key_file=environment_key_file,
        base_url=base_url,
        isolation=isolation,
        max_sandboxes=max_sandboxes,
        max_idle=max_idle,
        drain_seconds=drain_seconds,
        metrics_port=metrics_port,
        ray_address=address,
    )
    prepare_ray(loopback=settings.ray_address is None)
    from actors.up import serve, take_key

    settings, key = take_key(settings)
    _check_node(settings)
    serve(settings, key, dashboard=dashboard, ready=lambda metrics: _say_ready(settings, metrics, as_json))


def _say_ready(settings: Settings, metrics: list[str], as_json: bool) -> None:
    if as_json:
        told = {"serving": settings.environment_id, "base_url": settings.base_url, "home": str(settings.home)}
        print_json({**told, "metrics": metrics} if metrics else told)
        return
    say(f"serving {settings.environment_id} at {settings.base_url}; the log is in {settings.home}; Ctrl-C stops")
    for address in metrics:
        say(f"metrics at {address}")


def _check_node(settings: Settings) -> None:
    """Before Ray is started: what a machine needs and is not there ends the command with the remedy."""
    from actors.doctor import check
    from actors.up import CannotServe

    for finding in asyncio.run(check(settings)):
        if not finding.ok and finding.required:
            raise CannotServe(f"{finding.name}: {finding.detail}", finding.remedy)


def doctor(config: _Config = None, storage: _Storage = None, as_json: _Json = False) -> None:
    """Name what this machine lacks, why it matters, and the command that mends it."""
    from actors.doctor import check
    from actors.settings import Settings

    findings = asyncio.run(check(Settings.load(config, storage=storage)))
    missing = [finding for finding in findings if not finding.ok and finding.required]
    if as_json:
        print_json({"ok": not missing, "findings": [_as_json(finding) for finding in findings]})
    else:
        for finding in findings:
            _show(finding)
        say("")
        say("everything that is needed is there" if not missing else f"{len(missing)} to mend, see above")
    raise typer.Exit(1 if missing else 0)


def _as_json(finding: Finding) -> dict[str, object]:
    return {
        "name": finding.name,
        "ok": finding.ok,
        "required": finding.required,
        "detail": finding.detail,
        "why": finding.why,
        "remedy": finding.remedy,
    }


def _show(finding: Finding) -> None:
    mark, style = ("✓", "green") if finding.ok else ("✗", "bold red") if finding.required else ("-", "yellow")
    console().print(Text.assemble((mark, style), f" {finding.name}: {clean(finding.detail)}"), soft_wrap=True)
    if not finding.ok:
        for label, text in (("why", finding.why), ("do", finding.remedy)):
            console().print(Text(f"    {label}: {clean(text)}"), soft_wrap=True)


def init(
    name: Annotated[str, typer.Option(help="Name of the environment and the agent.")] = "hourglass",
    model: Annotated[str | None, typer.Option(help="The agent's model.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Where the API is; also ANTHROPIC_BASE_URL.")] = None,
    as_json: _Json = False,
) -> None:
    """Make a self-hosted environment and an agent, with the API key in ANTHROPIC_API_KEY."""
    from actors.initialize import DEFAULT_MODEL, initialize

    made = initialize(name=name, model=model or DEFAULT_MODEL, base_url=base_url)
    if as_json:
        print_json({"environment_id": made.environment_id, "agent_id": made.agent_id})
        return
    say(f"environment  {made.environment_id}")
    say(f"agent        {made.agent_id}")
    say("")
    say("Next, in the Console: Environments → this one → create an environment key, and put it into a file. Then:")
    say(f"  hourglass up --environment-id {made.environment_id} --environment-key-file FILE")


def tools(as_json: _Json = False) -> None:
    """Show the custom tools that an agent may be given; --json: as the API takes them in an agent's `tools`."""
    from actors.custom_tools import TOOLS

    if as_json:
        print_json(TOOLS)
        return
    print_table(["tool", "what it does"], [(tool["name"], tool["description"]) for tool in TOOLS])
    say("`hourglass tools --json` prints them for the `tools` of an agent")
