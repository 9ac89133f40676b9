"""The commands on the sandboxes of a running service: `pause`, `resume`, `snapshot`, `fork`, `keep`, `kill`, `top`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live

from events.console import console, print_json, say

if TYPE_CHECKING:
    from actors.settings import Settings

_Target = Annotated[str, typer.Argument(help="A session's or a sandbox's id, or a beginning of it.")]
_Config = Annotated[Path | None, typer.Option(help="A TOML file of settings; default: ./hourglass.toml.")]
_Home = Annotated[Path | None, typer.Option(help="The home that is served; also HOURGLASS_HOME.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_TOP_S = 1.0


def register(app: typer.Typer) -> None:
    """Add these commands to the root command."""
    for command in (pause, resume, snapshot, fork, keep, kill, top):
        app.command()(command)


def pause(
    target: _Target,
    freeze: Annotated[bool, typer.Option("--freeze", help="Keep it in memory, without CPU.")] = False,
    force: Annotated[bool, typer.Option("--force", help="End what runs: calls, programs, forwards.")] = False,
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Put a sandbox to disk: memory, processes and files. A call that runs is awaited, and so are visitors."""
    told = _operate(config, home, "pause", target, not freeze, force)
    _show(told, f"{told['sandbox_id']} is {told['phase']}", as_json=as_json)


def resume(target: _Target, config: _Config = None, home: _Home = None, as_json: _Json = False) -> None:
    """Let a sandbox run again. A tool call does that by itself."""
    told = _operate(config, home, "resume", target)
    _show(told, f"{told['sandbox_id']} is {told['phase']}", as_json=as_json)


def snapshot(target: _Target, config: _Config = None, home: _Home = None, as_json: _Json = False) -> None:
    """Take a snapshot of a sandbox, which goes on."""
    told = _operate(config, home, "snapshot", target)
    _show(told, f"{told['snapshot_id']} of {told['sandbox_id']}", as_json=as_json)


def fork(
    target: _Target,
    count: Annotated[int, typer.Option("-n", "--count", help="How many.", min=1)] = 1,
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Make sandboxes from a sandbox as it is now, each with a machine of its own."""
    told = _operate(config, home, "fork", target, count)
    refused = [child for child in told["children"] if "error" in child]
    if as_json:
        print_json(told)
    else:
        for child in told["children"]:
            say(child["sandbox_id"] if "error" not in child else f"{child['sandbox_id']} refused: {child['error']}")
    if refused:
        raise typer.Exit(1)


def keep(target: _Target, config: _Config = None, home: _Home = None, as_json: _Json = False) -> None:
    """Make a fork its session's sandbox, and end its parent and the other forks."""
    told = _operate(config, home, "keep", target)
    ended = ", ".join(told["ended"]) or "nothing"
    _show(told, f"{told['sandbox_id']} is the sandbox of {told['session_id']}; ended: {ended}", as_json=as_json)


def kill(target: _Target, config: _Config = None, home: _Home = None, as_json: _Json = False) -> None:
    """End a sandbox: its machine, files and snapshots on this node are gone.

    Its history stays, and so do copies in the snapshot store, until `hourglass snapshots prune`.
    """
    told = _operate(config, home, "kill", target)
    _show(told, f"{told['sandbox_id']} is {told['phase']}", as_json=as_json)


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Look once, and end; so it is where nobody watches a terminal.")
    ] = False,
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Show the sandboxes that the service holds, and what they use, as it changes; the busiest first."""
    import time

    from actors.top import Top

    if once or as_json or not console().is_terminal:
        views = _operate(config, home, "sandboxes")
        if as_json:
            print_json(views)
        else:
            console().print(Top().draw(views))
        return
    settings = load_settings(config, home)  # before anything imports Ray
    from actors.service import asking

    with asking(settings) as ask, Live(console=console(), auto_refresh=False) as live:
        shown = Top()
        try:
            while True:
                live.update(shown.draw(ask("sandboxes")), refresh=True)
                time.sleep(_TOP_S)
        except KeyboardInterrupt:
            return


def load_settings(config: Path | None, home: Path | None) -> Settings:
    """The settings of a command on a running service, and what Ray is to find."""
    from actors.ray_environment import prepare_ray
    from actors.settings import Settings

    settings = Settings.load(config, home=home)
    prepare_ray(loopback=settings.ray_address is None)
    return settings


def _operate(config: Path | None, home: Path | None, operation: str, *arguments: Any) -> Any:
    settings = load_settings(config, home)
    from actors.service import operate

    return operate(settings, operation, *arguments)


def _show(told: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(told)
    else:
        say(f"{text} ({told['seconds'] * 1000:,.0f} ms)")
