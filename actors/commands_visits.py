"""The commands that go into a sandbox of a running service: `exec`, `shell`, `forward`, `cp`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from actors.commands_sandboxes import load_settings
from events.console import clean, complain, console, print_json, report, say
from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.settings import Settings
    from actors.visits.copying import Copied
    from actors.visits.forwarding import Forwarding

_Target = Annotated[str, typer.Argument(help="A session's or a sandbox's id, or a beginning of it.")]
_Config = Annotated[Path | None, typer.Option(help="A TOML file of settings; default: ./hourglass.toml.")]
_Home = Annotated[Path | None, typer.Option(help="The home that is served; also HOURGLASS_HOME.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Cwd = Annotated[str, typer.Option("--cwd", help="Where it begins; default: the work folder.")]
_Env = Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE, beside the sandbox's own.")]

_FAILED = 125


def register(app: typer.Typer) -> None:
    """Add these commands to the root command."""
    app.command("exec")(exec_)
    for command in (shell, forward, cp):
        app.command()(command)


def exec_(
    target: _Target,
    command: Annotated[list[str], typer.Argument(help="The program and its arguments, after --.")],
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Give it this command's input.")] = False,
    terminal: Annotated[bool, typer.Option("-t", "--tty", help="Give it a terminal.")] = False,
    cwd: _Cwd = "",
    env: _Env = None,
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Run a program in a sandbox; exit as it does, or with 125 where it could not be run for us.

    126 and 127 are of a program that can't be run, or is not there, as in a shell. A sandbox that rests is resumed for
    it. Ctrl-C goes to the program.
    """
    given = _variables(env)
    if as_json and (interactive or terminal):
        raise typer.BadParameter("--json collects the output, and goes with neither -i nor -t", param_hint="--json")
    try:
        settings = load_settings(config, home)
        code = _collect(settings, target, command, cwd, given) if as_json else None
        if code is None:
            code = _run(settings, target, command, cwd, given, interactive=interactive, terminal=terminal, by="exec")
    except HourglassError as error:
        report(error, as_json=as_json)
        raise typer.Exit(getattr(error, "exit_code", _FAILED)) from None
    raise typer.Exit(code)


def _collect(settings: Settings, target: str, command: list[str], cwd: str, env: dict[str, str]) -> int:
    from actors.visits.programs import execute

    ran = execute(settings, target, command, cwd=cwd, env=env)
    print_json(
        {
            "sandbox_id": ran.sandbox_id,
            "session_id": ran.session_id,
            "process_id": ran.process_id,
            "exit_code": ran.exit_code,
            "stdout": ran.stdout.decode(errors="replace"),
            "stderr": ran.stderr.decode(errors="replace"),
            "seconds": ran.seconds,
        }
    )
    return ran.exit_code


def _run(
    settings: Settings,
    target: str,
    command: list[str],
    cwd: str,
    env: dict[str, str],
    *,
    interactive: bool,
    terminal: bool,
    by: str,
) -> int:
    from actors.visits.client import find
    from actors.visits.programs import run_attached
    from actors.visits.terminal import check_terminal, run_in_terminal, size, variables
    from actors.visits.wire import Exec, checked

    if terminal:
        check_terminal()
        env = {**variables(), **env}
    place = find(settings, target)
    request = checked(
        Exec,
        sandbox_id=place.sandbox_id,
        argv=command,
        cwd=cwd,
        env=env,
        terminal=size(sys.stdout.fileno()) if terminal else None,
        by=by,
    )
    if terminal:
        return run_in_terminal(place, request, interactive=interactive)
    return run_attached(place, request, stdin=sys.stdin.fileno() if interactive else None)


def _variables(env: list[str] | None) -> dict[str, str]:
    given = {}
    for one in env or []:
        name, equals, value = one.partition("=")
        if not equals or not name.isidentifier() or not name.isascii():
            raise typer.BadParameter(f"say NAME=VALUE, not {clean(one, 80)}", param_hint="--env")
        given[name] = value
    return given


def shell(
    target: _Target,
    cwd: _Cwd = "",
    env: _Env = None,
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Open a login shell in a sandbox, in this terminal. Enter, then ~. leaves it where nothing else does."""
    settings = load_settings(config, home)
    given = _variables(env)
    code = _run(settings, target, ["/bin/bash", "-l"], cwd, given, interactive=True, terminal=True, by="shell")
    if as_json:
        print_json({"exit_code": code})
    raise typer.Exit(code)


def forward(
    target: _Target,
    ports: Annotated[str, typer.Argument(help="[LOCAL:]PORT; LOCAL 0 is any that is free.", metavar="[LOCAL:]PORT")],
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Reach a port of a sandbox at 127.0.0.1 of this machine, until Ctrl-C."""
    local, _, port = ports.rpartition(":")
    if not (port.isdecimal() and (local.isdecimal() or not local) and len(ports) < 12):
        raise typer.BadParameter("say PORT or LOCAL:PORT, as in 8080:80", param_hint="[LOCAL:]PORT")
    settings = load_settings(config, home)
    asyncio.run(_forward(settings, target, int(port), int(local) if local else None, as_json=as_json))


async def _forward(settings: Settings, target: str, port: int, local: int | None, *, as_json: bool) -> None:
    from actors.visits.forwarding import forwarded

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with forwarded(settings, target, port, local_port=local) as forwarding:
        _say_forwarded(forwarding, as_json=as_json)
        stopping = asyncio.create_task(stop.wait())
        telling = asyncio.create_task(_tell_trouble(forwarding))
        over: list[asyncio.Future[Any]] = [stopping, forwarding.ended]
        await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        telling.cancel()
        if not stop.is_set():
            forwarding.ended.result()
    if as_json:
        print_json({"connections": forwarding.connections, **_bytes(forwarding)})
    else:
        say(f"closed after {forwarding.connections:,} connections, {forwarding.bytes_out:,} bytes out of the sandbox")


def _bytes(forwarding: Forwarding) -> dict[str, int]:
    return {"bytes_in": forwarding.bytes_in, "bytes_out": forwarding.bytes_out}


def _say_forwarded(forwarding: Forwarding, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "sandbox_id": forwarding.sandbox_id,
                "forward_id": forwarding.forward_id,
                "address": forwarding.address,
                "port": forwarding.port,
            }
        )
    else:
        say(f"{forwarding.address} reaches port {forwarding.port} of {forwarding.sandbox_id}; Ctrl-C ends it")
    sys.stdout.flush()


async def _tell_trouble(forwarding: Forwarding) -> None:
    told = ""
    while True:
        if forwarding.trouble and forwarding.trouble != told:
            complain(forwarding.trouble)
        told = forwarding.trouble
        await asyncio.sleep(0.2)


def cp(
    source: Annotated[str, typer.Argument(help="What to copy; TARGET:PATH is in a sandbox.", metavar="SOURCE")],
    destination: Annotated[str, typer.Argument(help="Where to; - is standard output.", metavar="DESTINATION")],
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="A folder, with all below it.")] = False,
    max_bytes: Annotated[int | None, typer.Option(help="What may come out of a sandbox; default: 4 GiB.")] = None,
    config: _Config = None,
    home: _Home = None,
    as_json: _Json = False,
) -> None:
    """Copy files into a sandbox or out of it, as `cp` does; one of the two is TARGET:PATH.

    A relative PATH begins in the work folder of the sandbox. Links and devices are left out, and named.
    """
    from actors.visits.copying import MAX_BYTES, copy_in, copy_out

    here, there = _place(source), _place(destination)
    if (here is None) == (there is None):
        raise typer.BadParameter("one of the two must be TARGET:PATH, as in sesn_01AB:/workspace/report.md")
    settings = load_settings(config, home)
    limit = MAX_BYTES if max_bytes is None else max_bytes
    with Progress(
        TextColumn("{task.description}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=as_json or not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("copied", total=None)

        def on_bytes(count: int) -> None:
            bar.advance(task, count)

        if there is not None:
            copied = copy_in(settings, there[0], Path(source), there[1], recursive=recursive, on_bytes=on_bytes)
        else:
            assert here is not None
            copied = _copy_out(settings, here, destination, recursive, limit, on_bytes, copy_out)
    _say_copied(copied, source, destination, as_json=as_json)


def _copy_out(
    settings: Settings,
    place: tuple[str, str],
    destination: str,
    recursive: bool,
    max_bytes: int,
    on_bytes: Callable[[int], None],
    copy_out: Callable[..., Copied],
) -> Copied:
    to = sys.stdout.buffer if destination == "-" else Path(destination)
    return copy_out(settings, *place, to, recursive=recursive, max_bytes=max_bytes, on_bytes=on_bytes)


def _place(text: str) -> tuple[str, str] | None:
    """(target, path) where it is in a sandbox: as with scp, a colon that no slash comes before."""
    target, colon, path = text.partition(":")
    if not colon or "/" in target or not target:
        return None
    return target, path or "."


def _say_copied(copied: Copied, source: str, destination: str, *, as_json: bool) -> None:
    if as_json and destination != "-":
        print_json(
            {
                "sandbox_id": copied.sandbox_id,
                "source": source,
                "destination": destination,
                "bytes": copied.size,
                "files": copied.files,
                "left_out": copied.left_out,
            }
        )
        return
    if destination != "-":
        say(f"{copied.size:,} bytes in {copied.files:,} files from {source} to {destination}")
    for name in copied.named[:5]:
        console(sys.stderr).print(f"left out, since it is no file and no folder: {clean(name)}", markup=False)
    if copied.left_out > 5:
        console(sys.stderr).print(f"and {copied.left_out - 5:,} more", markup=False)
