"""Commands of `hourglass replay`, and `hourglass record`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replay import commands

replay = typer.Typer(help="Play recorded sessions.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Recordings = Annotated[
    list[Path] | None,
    typer.Option(
        "--recordings", help="A folder of recordings, beside those that ship; may be repeated.", metavar="DIR"
    ),
]


def register(app: typer.Typer) -> None:
    """Add this package's commands to the root command."""
    app.add_typer(replay, name="replay")
    app.command("record")(record)
    commands.register(app)


@replay.command()
def serve(
    port: Annotated[int, typer.Option(help="0: a free one.")] = 0,
    recordings: _Recordings = None,
    recording: Annotated[str | None, typer.Option(help="What a session plays that names no recording.")] = None,
    api_key: Annotated[str | None, typer.Option(help="The organization's key; default: a random one.")] = None,
    ttl: Annotated[int, typer.Option(min=1, help="A lease's length in seconds.")] = 300,
    pace: Annotated[float, typer.Option(min=0, help="Seconds between two of the agent's events.")] = 0.0,
    environments: Annotated[int, typer.Option(min=1, help="How many environments to set up.")] = 1,
    as_json: _Json = False,
) -> None:
    """Serve recorded sessions over the API on this machine, until interrupted."""
    from replay.server.serving import serve as run
    from replay.server.settings import ServerSettings

    settings = ServerSettings(ttl_seconds=ttl, pace_seconds=pace, default_recording=recording)
    run(settings, recordings or [], port=port, api_key=api_key, environments=environments, as_json=as_json)


@replay.command("recordings")
def list_recordings(recordings: _Recordings = None, as_json: _Json = False) -> None:
    """List what can be played."""
    from replay.server.serving import show_recordings

    show_recordings(recordings or [], as_json=as_json)


def record(
    session: Annotated[str, typer.Argument(help="The session's id, sesn_….")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", metavar="FILE")],
    name: Annotated[str | None, typer.Option(help="The recording's name; default: the session's title.")] = None,
    as_json: _Json = False,
) -> None:
    """Turn a served session into a recording.

    The session is read from the API with ANTHROPIC_ENVIRONMENT_KEY, or else ANTHROPIC_API_KEY.
    """
    from replay.record import client_from_environment
    from replay.record import record as write_recording

    count = write_recording(client_from_environment(), session, output, name)
    if as_json:
        import orjson

        typer.echo(orjson.dumps({"recording": str(output), "events": count}))
    else:
        typer.echo(f"{count} events in {output}")
