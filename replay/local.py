"""A whole Hourglass on this machine, with no key and no network: the recorded-session server and `hourglass up`.

Both run as processes of their own, as a user would start them, with a home of their own. The demo and the benches use
it. Whoever dies takes them along: where the system has `setpriv`, each gets SIGTERM when its parent ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from actors.machines.gvisor import GvisorDriver
from events.errors import HourglassError
from events.home import LOG_NAME
from events.sqlite_log import SqliteLog
from replay.timeline import Source, Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anthropic import Anthropic

    from replay.timeline import Timeline

_SERVER_SECONDS = 30.0
_UP_SECONDS = 90.0
"""Ray alone takes some seconds to start, and many more where the machine is busy."""
_STOP_SECONDS = 60.0
"""Above what `up` needs to drain and to stop its machines."""
_LOOK_SECONDS = 0.02
_ASK_SECONDS = 0.1
_LOG_SECONDS = 15.0
_KEPT_LINES = 8
_SANDBOX = "sandbox-"
_NOT_STORED = """
SELECT count(*) FILTER (WHERE type = 'sandbox.snapshotted') - count(*) FILTER (WHERE type = 'sandbox.snapshot_stored')
FROM events WHERE correlation_id = ? AND stream LIKE 'sandbox-%'
"""
_OURS = ("ANTHROPIC_", "HOURGLASS_")
_KEEP = ("HOURGLASS_STORAGE", "HOURGLASS_VOLUMES", "HOURGLASS_POOL_BYTES")
"""Where templates and file trees lie: shared with the other homes of this machine."""


@dataclass(eq=False)
class NotStarted(HourglassError):
    """`hourglass {what}` did not start: {reason}."""

    what: str
    reason: str
    log: str
    next_step = "Run `hourglass doctor`; all that it said is in {log}."


@dataclass(eq=False)
class NotEnded(HourglassError):
    """The session {session_id} was not over after {seconds:g} s."""

    session_id: str
    seconds: float
    home: str
    next_step = "See `hourglass timeline {session_id} --home {home}`, and up.err there."


class Daemon:
    """One `hourglass` command that runs until it is stopped, with its output in `<home>/<name>.out` and `.err`."""

    def __init__(self, home: Path, name: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.name = name
        self.log = home / f"{name}.err"
        self._out = home / f"{name}.out"
        self._arguments = arguments
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `ready` waits for it."""
        command = [*_tied(), sys.executable, "-c", "from events.cli import main; main()", *self._arguments]
        with self._out.open("wb") as out, self.log.open("wb") as err:
            # A session of its own: Ctrl-C is for us, who then stop it in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environment,
                # Else a settings file that happens to lie where we were started would count.
                cwd=self._out.parent,
                start_new_session=True,
            )

    def ready(self, seconds: float) -> dict[str, Any]:
        """The object that it prints once it serves. Raises NotStarted."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended = self._process is None or self._process.poll() is not None
            said = self._said()
            if said is not None and "error" not in said:
                return said
            if ended:
                raise NotStarted(what=self.name, reason=self._why(said), log=str(self.log))
            time.sleep(_LOOK_SECONDS)
        raise NotStarted(what=self.name, reason=f"it said nothing for {seconds:.0f} s", log=str(self.log))

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to its whole session where it takes too long."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _said(self) -> dict[str, Any] | None:
        """The first JSON object of its output; Ray may print other lines before it."""
        for line in self._out.read_bytes().splitlines():
            try:
                found = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(found, dict):
                return found
        return None

    def _why(self, said: dict[str, Any] | None) -> str:
        if said is not None and "error" in said:
            return str(said["error"])
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-_KEPT_LINES:]) or "it ended without a word"


@dataclass(frozen=True, slots=True)
class Environment:
    """A self-hosted environment of the recorded-session server."""

    id: str
    key: str


class LocalHourglass:
    """Both, on a home. A context manager; `close` may be called twice."""

    def __init__(
        self,
        home: Path,
        *,
        recordings: Sequence[Path] = (),
        pace: float = 0.0,
        max_idle: float = 60.0,
        max_sandboxes: int = 20,
        isolation: str = "host",
        snapshots: str = "turn",
        store: str = "none",
        serve: bool = True,
    ) -> None:
        """Args:
            home: of the log and of what the processes print; made where it is not there.
            recordings: folders of recordings beside those that ship.
            pace: seconds between two of the recorded agent's events.
            max_idle: how long a session is held after its turn, in seconds.
            max_sandboxes: machines at a time.
            isolation: `host` or `process`, see the setting.
            snapshots: when they are taken, see the setting.
            store: where they are kept; by default nowhere, since a home that is thrown away needs none elsewhere.
            serve: also run `hourglass up`; else only the server.
        """  # fmt: skip
        self.home = home
        self.base_url = self.api_key = ""
        self.environments: list[Environment] = []
        self._pace, self._recordings, self._with_up = pace, recordings, serve
        self._up_options = {
            "--max-idle": str(max_idle),
            "--max-sandboxes": str(max_sandboxes),
            "--isolation": isolation,
        }
        self._snapshots = {"HOURGLASS_SNAPSHOTS": snapshots, "HOURGLASS_SNAPSHOT_STORE": store}
        self._daemons: list[Daemon] = []

    def __enter__(self) -> Self:
        try:
            self.start_server()
            if self._with_up:
                self.start_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_server(self) -> None:
        """Serve the recordings. Raises NotStarted."""
        self.home.mkdir(parents=True, exist_ok=True)
        folders = [part for folder in self._recordings for part in ("--recordings", str(folder))]
        arguments = ["replay", "serve", "--json", "--pace", str(self._pace), "--environments", "2", *folders]
        said = self._start("serve", arguments, self.variables({}), _SERVER_SECONDS)
        self.base_url, self.api_key = said["base_url"], said["api_key"]
        self.environments = [Environment(one["id"], one["key"]) for one in said["environments"]]

    def start_up(self) -> None:
        """Serve the first environment; the second is left to whoever wants it. Raises NotStarted."""
        arguments = [
            "up",
            "--json",
            "--home",
            str(self.home),
            *(part for item in self._up_options.items() for part in item),
        ]
        environment = self.variables(
            {
                "ANTHROPIC_BASE_URL": self.base_url,
                "ANTHROPIC_ENVIRONMENT_ID": self.environments[0].id,
                "ANTHROPIC_ENVIRONMENT_KEY": self.environments[0].key,
                **self._snapshots,
                # Ray leaves out lines that look like others, and a line for each session does.
                "RAY_DEDUP_LOGS": "0",
            }
        )
        self._start("up", arguments, environment, _UP_SECONDS)

    def variables(self, more: dict[str, str]) -> dict[str, str]:
        """This process's environment without what would lead ours elsewhere, and with `more`."""
        kept = {name: value for name, value in os.environ.items() if name in _KEEP or not name.startswith(_OURS)}
        return kept | more

    def client(self) -> Anthropic:
        """What an app has: the SDK, with the organization's key."""
        from anthropic import Anthropic

        return Anthropic(base_url=self.base_url, api_key=self.api_key)

    def create_session(self, client: Anthropic, recording: str, *, environment: int = 0) -> str:
        """A session that plays a recording, begun with a first message; returns its id."""
        agent = client.beta.agents.create(
            name=recording,
            model="claude-opus-4-8",
            tools=[{"type": "agent_toolset_20260401"}],
            metadata={"recording": recording},
        )
        session = client.beta.sessions.create(
            agent=agent.id,
            environment_id=self.environments[environment].id,
            title=recording,
            initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}],
        )
        return session.id

    def wait_ended(self, client: Anthropic, session_ids: Sequence[str], seconds: float) -> None:
        """Wait until the turn of each session is over. Raises NotEnded, and NotStarted as `check`."""
        deadline = time.monotonic() + seconds
        for session_id in session_ids:
            while not _has_ended(client, session_id):
                self.check()
                if time.monotonic() > deadline:
                    raise NotEnded(session_id=session_id, seconds=seconds, home=str(self.home))
                time.sleep(_ASK_SECONDS)

    def timeline(self, session_id: str) -> Timeline:
        """A session's timeline, once the log has the end of its turn: it has it a moment after the server.

        Raises NotEnded.
        """
        deadline = time.monotonic() + _LOG_SECONDS
        with SqliteLog(self.home / LOG_NAME, read_only=True) as log:
            source = Source(log, Subject(session_id))
            while not source.builder.timeline.is_at_rest:
                if time.monotonic() > deadline:
                    raise NotEnded(session_id=session_id, seconds=_LOG_SECONDS, home=str(self.home))
                if not source.advance():
                    time.sleep(_LOOK_SECONDS)
            return source.builder.timeline

    def wait_stored(self, session_id: str, seconds: float) -> None:
        """Wait until every snapshot that the log has of a session is in the store. Raises NotEnded, NotStarted."""
        deadline = time.monotonic() + seconds
        with SqliteLog(self.home / LOG_NAME, read_only=True) as log:
            while log.query(_NOT_STORED, (session_id,)) != [(0,)]:
                self.check()
                if time.monotonic() > deadline:
                    raise NotEnded(session_id=session_id, seconds=seconds, home=str(self.home))
                time.sleep(_ASK_SECONDS)

    def remove_sandboxes(self) -> None:
        """Remove the sandboxes' file trees, which lie on the storage that all homes share. The log is kept.

        To be called after `close`. Raises MachineError, LogError.
        """
        if not (self.home / LOG_NAME).exists():
            return
        with SqliteLog(self.home / LOG_NAME, read_only=True) as log:
            streams = log.streams()
        driver = GvisorDriver(storage())

        async def remove() -> None:
            for stream in streams:
                if stream.startswith(_SANDBOX):
                    await driver.remove(stream.removeprefix(_SANDBOX))

        # In a thread of its own: a notebook's has a loop that runs.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, remove()).result()

    def check(self) -> None:
        """Raises NotStarted where one of the processes has ended by itself."""
        for daemon in self._daemons:
            if not daemon.alive:
                daemon.ready(0.1)
                raise NotStarted(what=daemon.name, reason="it ended while it served", log=str(daemon.log))

    def close(self) -> None:
        """Stop what was started, the last first."""
        while self._daemons:
            self._daemons[-1].stop()
            self._daemons.pop()

    def _start(
        self, name: str, arguments: Sequence[str], environment: dict[str, str], seconds: float
    ) -> dict[str, Any]:
        daemon = Daemon(self.home, name, arguments, environment)
        self._daemons.append(daemon)
        daemon.start()
        return daemon.ready(seconds)


def storage() -> Path:
    """Where templates and file trees lie, as `hourglass up` has it if nobody says otherwise."""
    named = os.environ.get("HOURGLASS_STORAGE", "")
    return Path(named).absolute() if named else _state() / "storage"


def _state() -> Path:
    """As `default_home`, whatever HOURGLASS_HOME says."""
    if os.geteuid() == 0:
        return Path("/var/lib/hourglass")
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local/state") / "hourglass"


def _has_ended(client: Anthropic, session_id: str) -> bool:
    """Whether the session rests, and not for want of results."""
    rests = client.beta.sessions.events.list(session_id, limit=1, order="desc", types=["session.status_idle"]).data
    return bool(rests) and rests[0].type == "session.status_idle" and rests[0].stop_reason.type != "requires_action"


def _tied() -> list[str]:
    """What to put before a command that must not outlive us."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []
