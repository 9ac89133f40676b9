"""`hourglass up` as a user starts it: a process of its own, with Ray, on a recorded-session server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anthropic import Anthropic

from actors.machines.drivers import make_driver
from actors.settings import Settings
from events.errors import NotALog
from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.envelope import Event
    from replay.recording import Recording
    from replay.server.recorded import EnvironmentAccess, RecordedServer

HOURGLASS = Path(sys.executable).with_name("hourglass")
_WAIT_S = 60.0


@dataclass
class Installed:
    """A home, the environment that it serves, and the app's side."""

    server: RecordedServer
    environment: EnvironmentAccess
    home: Path
    options: list[str] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)
    """What the last `up` printed when it served."""

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the process."""
        return {
            **os.environ,
            "HOURGLASS_HOME": str(self.home),
            "HOURGLASS_MAX_IDLE": "0.5",
            "ANTHROPIC_ENVIRONMENT_ID": self.environment.id,
            "ANTHROPIC_ENVIRONMENT_KEY": self.environment.key,
            "ANTHROPIC_BASE_URL": self.server.base_url,
        }

    def start(self) -> subprocess.Popen[str]:
        """Start `hourglass up`, and return once it serves."""
        with (self.home.parent / "up.log").open("a") as log:
            process = subprocess.Popen(
                [HOURGLASS, "up", "--json", *self.options],
                env=self.variables,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"serving"'):
                self.said = json.loads(line)
                return process
        raise AssertionError(f"up ended with {process.wait()}: {(self.home.parent / 'up.log').read_text()[-3000:]}")

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[str]]:
        """Serve; stopped with SIGTERM at the end."""
        process = self.start()
        try:
            yield process
        finally:
            stop(process)

    def command(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Another `hourglass` command on the same home."""
        env = self.variables | variables
        return subprocess.run([HOURGLASS, *arguments], env=env, capture_output=True, text=True, check=False)

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json."""
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def session(self, recording: str | Recording) -> str:
        """A new session that plays a recording."""
        with Anthropic(api_key=self.server.api_key, base_url=self.server.base_url) as app:
            session = app.beta.sessions.create(
                agent=self.server.create_agent(recording),
                environment_id=self.environment.id,
                initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}],
            )
        return session.id

    def history(self, stream: str) -> list[Event]:
        """A stream, read from the file."""
        if not (self.home / "log.db").exists():
            return []
        log = SqliteLog(self.home / "log.db", read_only=True)
        try:
            return list(log.read(stream))
        finally:
            log.close()

    def kinds(self, stream: str) -> list[str]:
        """The types of a stream's events."""
        return [event.type for event in self.history(stream)]

    def wait_for(self, stream: str, kind: str, *, count: int = 1) -> list[Event]:
        """Wait until the log holds so many events of a type in a stream."""
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            found = [event for event in self.history(stream) if event.type == kind]
            if len(found) >= count:
                return found
            time.sleep(0.05)
        raise AssertionError(
            f"no {kind} in {stream}: {self.kinds(stream)}; {(self.home.parent / 'up.log').read_text()[-3000:]}"
        )

    def sandbox_of(self, session_id: str) -> str:
        """The stream of a session's sandbox."""
        attached = self.wait_for(f"session-{session_id}", "session.attached")[0].data
        return f"sandbox-{attached.sandbox_id}"  # type: ignore[union-attr]

    def results(self, session_id: str) -> list[Any]:
        """What was posted to a session."""
        return [one for one in self.server.events(session_id) if one["type"] == "user.tool_result"]


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and wait."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait(_WAIT_S)
    assert process.stdout is not None
    process.stdout.close()


async def remove_sandboxes(home: Path) -> None:
    """Leave nothing on the storage that all tests share."""
    if not (home / "log.db").exists():
        return
    try:
        log = SqliteLog(home / "log.db", read_only=True)
    except NotALog:
        return  # a test's doing
    streams = log.streams()
    log.close()
    driver = make_driver(Settings(home=home))
    for stream in streams:
        if stream.startswith("sandbox-"):
            await driver.remove(stream.removeprefix("sandbox-"))
