"""What a verification found, appended to the log: by us where nobody writes it, else by the service that does.

A stream of its own for each sandbox, `replay-<sandbox id>`: the sandbox's one writer goes on undisturbed.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from events.envelope import new_events
from events.errors import HourglassError, LogLocked
from events.home import LOG_NAME
from events.log import Append, Expect
from events.sqlite_log import SqliteLog
from replay.rebuild.errors import NotRecorded

if TYPE_CHECKING:
    from pathlib import Path

    from events.types import EventData

_WAIT_S = 10.0
"""Another verification holds the log for an append, or a service is just starting or stopping."""
_AGAIN_S = 0.2


def stream_of(sandbox_stream: str) -> str:
    """The stream of what was found of a sandbox."""
    return f"replay-{sandbox_stream.removeprefix('sandbox-')}"


def record(path: Path, sandbox_stream: str, found: EventData, correlation_id: str) -> None:
    """Append to the log at `path`. Durable when it returns. Raises `NotRecorded`."""
    events = new_events(f"verify-{secrets.token_hex(8)}", [found], correlation_id=correlation_id)
    try:
        append(path, Append(stream_of(sandbox_stream), events, Expect.ANY))
    except HourglassError as error:
        raise NotRecorded(stream=sandbox_stream, detail=str(error)) from error


def append(path: Path, write: Append) -> bool:
    """Append to the log at `path`, durable when it returns; whether the service did that writes it.

    Raises `LogError`. After `LogLocked`, the service that was asked may have appended it all the same, or may yet.
    """
    waiting = Retrying(
        retry=retry_if_exception_type(LogLocked),
        wait=wait_fixed(_AGAIN_S),
        stop=stop_after_delay(_WAIT_S),
        reraise=True,
    )
    # The same events, with the same ids, each time: what was appended and not heard of is not appended again.
    return waiting(_append, path, write)


def _append(path: Path, write: Append) -> bool:
    try:
        with SqliteLog(path) as log:
            log.append_many([write])
    except LogLocked:
        if not _by_service(path, write):
            raise
        return True
    return False


def _by_service(path: Path, write: Append) -> bool:
    """Let the service that writes the log append; False where none can be reached.

    The only place where looking back speaks to what runs.
    """
    if path.name != LOG_NAME:
        return False
    from actors.ray_environment import prepare_ray
    from actors.settings import Settings, SettingsError

    try:
        settings = Settings.load(home=path.parent)
        prepare_ray(loopback=settings.ray_address is None)
        from ray import get
        from ray.exceptions import RayError

        from actors.service import connected
        from actors.up import CannotServe
    except (ImportError, SettingsError):
        return False
    try:
        with connected(settings) as host:
            get(host.append.remote([write]), timeout=_WAIT_S)
    except (CannotServe, RayError):
        return False
    return True
