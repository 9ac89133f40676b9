"""What looking back found, appended to the log: by us where nobody writes it, else by the service that does.

A verification's in a stream for each sandbox, `replay-<sandbox id>`, a bisect's in its own (`replay.bisect.evidence`):
the sandbox's one writer goes on undisturbed.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from events.envelope import new_events
from events.errors import HourglassError, LogLocked
from events.home import LOG_NAME
from events.log import Append, Expect
from events.sqlite_log import SqliteLog
from replay.rebuild.errors import NotRecorded

if TYPE_CHECKING:
    from pathlib import Path

    from events.envelope import Event
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
    with Recorder(path) as recorder:
        recorder.append(Append(stream_of(sandbox_stream), events, Expect.ANY), sandbox_stream)


def append(path: Path, write: Append) -> bool:
    """Append to the log at `path`, durable when it returns; whether the service did that writes it.

    Raises `LogError`. After `LogLocked`, the service that was asked may have appended it all the same, or may yet.
    """
    with Recorder(path) as recorder:
        recorder.put(write)
        return recorder.by_service


class Recorder:
    """Appends to a log that others may write, time and again; use it in a `with`, from one thread at a time.

    The log is held for an append alone, so that a service may start meanwhile. A service is connected to once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = ExitStack()
        self._host: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._disconnect()

    @property
    def by_service(self) -> bool:
        """Whether a service appends, and not we."""
        return self._host is not None

    def append(self, write: Append, of: str) -> list[Event]:
        """As `put`, for what was found of a stream. Raises `NotRecorded`, which names it."""
        try:
            return self.put(write)
        except HourglassError as error:
            raise NotRecorded(stream=of, detail=str(error)) from error

    def put(self, write: Append) -> list[Event]:
        """Append; durable when it returns. Raises `LogError`, as `append` of this module does."""
        waiting = Retrying(
            retry=retry_if_exception_type(LogLocked),
            wait=wait_fixed(_AGAIN_S),
            stop=stop_after_delay(_WAIT_S),
            reraise=True,
        )
        # The same events, with the same ids, each time: what was appended and not heard of is not appended again.
        found: list[Event] = waiting(self._append, write)
        return found

    def _append(self, write: Append) -> list[Event]:
        found = self._by_service(write) if self._host is not None else None
        if found is not None:
            return found
        try:
            with SqliteLog(self._path) as log:
                return log.append_many([write])[0]
        except LogLocked:
            self._connect()
            found = self._by_service(write)
            if found is None:
                raise
            return found

    def _connect(self) -> None:
        """To the service that writes the log, where there is one: here alone, looking back speaks to what runs."""
        if self._path.name != LOG_NAME:
            return
        from actors.ray_environment import prepare_ray
        from actors.settings import Settings, SettingsError

        try:
            settings = Settings.load(home=self._path.parent)
            prepare_ray(loopback=settings.ray_address is None)
            from actors.service import connected
            from actors.up import CannotServe
        except (ImportError, SettingsError):
            return
        try:
            self._host = self._connection.enter_context(connected(settings))
        except CannotServe:
            return

    def _by_service(self, write: Append) -> list[Event] | None:
        """Let the service append; None where it can't be reached."""
        if self._host is None:
            return None
        from ray import get
        from ray.exceptions import RayError

        try:
            found: list[list[Event]] = get(self._host.append.remote([write]), timeout=_WAIT_S)
        except RayError as error:
            self._disconnect()
            cause = getattr(error, "cause", None)
            if isinstance(cause, HourglassError):
                raise cause from error  # it was reached, and refused
            return None
        return found[0]

    def _disconnect(self) -> None:
        self._host = None
        self._connection.close()
