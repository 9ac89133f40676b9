"""What `hourglass demo` does, step by step."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text

from events.console import console, print_json
from events.errors import HourglassError
from events.home import LOG_NAME
from events.sqlite_log import SqliteLog
from events.types import BisectFound, ToolCallCompleted, ToolCallStarted
from replay.demo.app import Errand, start
from replay.demo.screen import Story
from replay.library import Library
from replay.local import LocalHourglass
from replay.timeline.text import clean
from replay.timeline.view import View
from replay.user import first_message

if TYPE_CHECKING:
    from collections.abc import Iterator

_ERRANDS = ("fix-the-bug", "break-the-tests")
_FILES = {"fix-the-bug": "/workspace/durations.py", "break-the-tests": "/workspace/README.md"}
_UNITTEST = ("python3", "-B", "-m", "unittest")
PACE_SECONDS = 0.4
"""Between two events of a recorded agent: it would be over before anybody has read a line."""
_LONGEST_SECONDS = 110.0
_FORKS = 3
_LOOK_SECONDS = 0.1
_INTERRUPTED = 130
_SHOWN_LINES = 30
_INDENT = 2
_WIDTH = 100
_FEWEST_ROWS, _MOST_ROWS = 4, 14
_AROUND_PANELS = 12
"""Lines of a screen that two panels need beside their rows."""

_CODE = """\
client = anthropic.Anthropic(base_url=…, api_key=…)
session = client.beta.sessions.create(
    agent=agent.id, environment_id=environment.id,
    initial_events=[{"type": "user.message", "content": […]}],
)
for event in client.beta.sessions.events.stream(session.id): …"""


@dataclass(eq=False)
class DemoFailed(HourglassError):
    """The demo failed: {cause}."""

    cause: str
    home: str
    remedy: str = ""
    next_step = "{remedy}"

    def __post_init__(self) -> None:
        self.remedy = self.remedy or f"What the service said is in {self.home}/up.err and {self.home}/serve.err."


@dataclass
class Demo:
    """One run."""

    home: Path
    screen: Console
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each step took."""

    @contextmanager
    def step(self, what: str, said: str) -> Iterator[None]:
        """A step of the set-up, with a spinner while it lasts."""
        began = time.monotonic()
        with self.screen.status(Text(f"{what} …"), spinner="dots"):
            yield
        self.seconds[what] = round(time.monotonic() - began, 2)
        self.screen.print(Text("✓ ", "green").append(what, "default").append(f"  {said}", "dim"), soft_wrap=True)

    def title(self, text: str) -> None:
        """A heading."""
        self.screen.print()
        self.screen.print(Rule(Text(text, "bold"), align="left", style="dim"))


def demo(home: Path | None, *, as_json: bool) -> None:
    """Run it; what it started is stopped in any case.

    Raises:
        DemoFailed: something of it did not work.
    """
    place = home or Path(tempfile.mkdtemp(prefix="hourglass-demo-"))
    screen = Console(quiet=True) if as_json else console()
    screen.width = min(screen.width, _WIDTH)
    run = Demo(place.absolute(), screen)
    local = LocalHourglass(run.home, pace=PACE_SECONDS, max_idle=30.0, max_sandboxes=len(_ERRANDS) + _FORKS)
    began = time.monotonic()
    try:
        found = _run(run, local)
    except KeyboardInterrupt:
        screen.print(Text("\nstopping what was started …", "dim"))
        _stop(local)
        screen.print(Text(f"stopped; the log so far is in {run.home}", "dim"), soft_wrap=True)
        raise typer.Exit(_INTERRUPTED) from None
    except DemoFailed:
        _stop(local)
        raise
    except Exception as error:
        _stop(local)
        advice = error.advice if isinstance(error, HourglassError) else ""
        raise DemoFailed(
            cause=str(error).rstrip(".") or type(error).__name__,
            home=str(run.home),
            remedy=advice,
        ) from error
    seconds = time.monotonic() - began
    if as_json:
        print_json(found | {"home": str(run.home), "seconds": round(seconds, 2), "steps": run.seconds})
    else:
        _what_next(run, found, seconds)


def _stop(local: LocalHourglass) -> None:
    local.close()
    local.remove_sandboxes()


def _run(run: Demo, local: LocalHourglass) -> dict[str, Any]:
    run.title("Hourglass: sessions of Claude Managed Agents, served in sandboxes of this machine")
    with run.step("recorded-session server", "stands in for Anthropic's API and plays the agent; no key, no network"):
        local.start_server()
    with run.step("hourglass up", "Ray, a host and a controller, polling the work queue"):
        local.start_up()
    errands = _errands(run, local)
    with SqliteLog(run.home / LOG_NAME, read_only=True) as log:
        stories = [Story(errand, log, run.home) for errand in errands]
        _watch(run, local, stories)
        found = {"sessions": [_as_json(story) for story in stories]}
        _totals(run, stories)
    kept = _pause_and_fork(run, local, errands[0])
    files = _fetch(run, local, errands)
    _verify(run, local)
    regression = _bisect_and_branch(run, local, found["sessions"][1]["sandboxes"][0])
    with run.step("all stopped", "leases handed back, machines ended, sandboxes removed; the log is kept"):
        _stop(local)
    return found | {"kept": kept, "files": files, "verified": True, "regression": regression}


def _errands(run: Demo, local: LocalHourglass) -> list[Errand]:
    run.title("An app, with the unmodified anthropic SDK, creates two sessions at once")
    run.screen.print(Padding(Syntax(_CODE, "python", theme="ansi_dark", background_color="default"), (0, 2)))
    library = Library()
    errands = [Errand(name) for name in _ERRANDS]
    for errand in errands:
        first = first_message(library.get(errand.name))
        start(errand, local.base_url, local.api_key, local.environments[0].id, first)
    return errands


def _watch(run: Demo, local: LocalHourglass, stories: list[Story]) -> None:
    """Draw the timelines until both turns are over and in the log."""
    run.title("What happens in the sandboxes, from the log as it grows   (↑: Anthropic has the result)")
    deadline = time.monotonic() + _LONGEST_SECONDS
    rows = max(_FEWEST_ROWS, min(_MOST_ROWS, (run.screen.height - _AROUND_PANELS) // len(stories)))

    def picture() -> Group:
        return Group(*(story.panel(run.screen.width, rows) for story in stories))

    with Live(console=run.screen, auto_refresh=False) as live:
        while True:
            for story in stories:
                story.advance()
                if story.errand.error is not None:
                    raise story.errand.error
                if story.failure:
                    raise DemoFailed(cause=f"the session {story.errand.name} {story.failure}", home=str(run.home))
                if not run.screen.is_terminal:
                    for text in story.news(run.screen.width):
                        run.screen.print(text)
            if run.screen.is_terminal:
                live.update(picture(), refresh=True)
            if all(story.complete for story in stories):
                return
            local.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the sessions were not over after {_LONGEST_SECONDS:.0f} s")
            time.sleep(_LOOK_SECONDS)


def _totals(run: Demo, stories: list[Story]) -> None:
    view = View(run.screen.width)
    for story in stories:
        if story.source is not None:
            totals = view.totals(story.source.builder.timeline.totals)
            run.screen.print(Text(f"{story.errand.name}: ", "bold").append_text(totals))


def _as_json(story: Story) -> dict[str, Any]:
    timeline = story.source.builder.timeline if story.source is not None else None
    return {
        "recording": story.errand.name,
        "session_id": story.errand.session_id,
        "sandboxes": timeline.sandboxes if timeline is not None else [],
        "calls": timeline.totals.calls if timeline is not None else 0,
    }


def _pause_and_fork(run: Demo, local: LocalHourglass, errand: Errand) -> str:
    """To disk and back, then forks of it, one of which is kept; the id of that one."""
    run.title("To disk with its memory and processes, and back; then three forks of it, one of them kept")
    session_id = str(errand.session_id)
    # What the agent serves in the background is another process of the sandbox: it was on disk as well.
    page = ("exec", session_id, "--", "curl", "-s", "http://127.0.0.1:8000/")
    fork = ("fork", session_id, "-n", str(_FORKS))
    for command in (("pause", session_id), ("resume", session_id), page, fork):
        said = _command(run, local, *command)
        _shown(run, said)
    kept = said.split()[0]
    for command in (("top", "--once"), ("keep", kept)):
        run.screen.print(Text(_command(run, local, *command).rstrip()), soft_wrap=True)
    return kept


def _fetch(run: Demo, local: LocalHourglass, errands: list[Errand]) -> dict[str, str]:
    """The files that the agents leave, copied out by the command that a user has for it."""
    run.title("The files, fetched out of the sandboxes")
    fetched = {}
    for errand in errands:
        source = _FILES[errand.name]
        target = run.home / Path(source).name
        _command(run, local, "cp", f"{errand.session_id}:{source}", target.name)
        content = target.read_text(errors="replace")
        shown = "\n".join(clean(one) for one in content.splitlines()[:_SHOWN_LINES])
        language = "python" if target.suffix == ".py" else "markdown"
        run.screen.print(Padding(Syntax(shown, language, theme="ansi_dark", background_color="default"), (0, 2)))
        fetched[source] = str(target)
    return fetched


def _verify(run: Demo, local: LocalHourglass) -> None:
    run.title("Is the log whole? Each row is hashed over the one before it")
    _shown(run, _command(run, local, "log", "verify"))


def _bisect_and_branch(run: Demo, local: LocalHourglass, sandbox: str) -> dict[str, Any]:
    """Which edit of a session broke its tests, and a sandbox that goes on from right before it."""
    run.title("The other session ended with a test that fails. Which of its calls broke it?")
    with SqliteLog(run.home / LOG_NAME, read_only=True) as log:
        good, bad = _tested(log, sandbox)
        versions = ("--good", str(good), "--bad", str(bad))
        _shown(run, _command(run, local, "bisect", sandbox, *versions, "--jobs", "2", "--", *_UNITTEST))
        [evidence] = [name for name in log.streams() if name.startswith("bisect-")]
        [found] = [data for data in log.read_data(evidence) if isinstance(data, BisectFound)]
        run.title("A sandbox that goes on from right before that, with its files, its processes and its memory")
        before = set(log.streams())
        _shown(run, _command(run, local, "branch", f"{sandbox}@{found.good}", "--yes"))
        [branch] = [name for name in log.streams() if name.startswith("sandbox-") and name not in before]
    _shown(run, _command(run, local, "branches", sandbox))
    return {"sandbox": sandbox, "good": found.good, "bad": found.bad, "branch": branch.removeprefix("sandbox-")}


def _tested(log: SqliteLog, sandbox: str) -> tuple[int, int]:
    """The versions after the first and the last call that ran the tests."""
    tests: set[str] = set()
    versions = []
    for version, data in enumerate(log.read_data(f"sandbox-{sandbox}"), start=1):
        if isinstance(data, ToolCallStarted) and "unittest" in str(data.input.get("command")):
            tests.add(data.tool_use_id)
        elif isinstance(data, ToolCallCompleted) and data.tool_use_id in tests:
            versions.append(version)
    return versions[0], versions[-1]


def _shown(run: Demo, said: str) -> None:
    run.screen.print(Padding(Text("\n".join(map(clean, said.rstrip().splitlines()))), (0, _INDENT)))


def _command(run: Demo, local: LocalHourglass, *arguments: str) -> str:
    """Run a `hourglass` command in the home, as a user would, and show it; what it printed. Raises DemoFailed."""
    shown = " ".join(arguments)
    run.screen.print(Text("$ ", "dim").append(f"hourglass {shown}", "bold"), soft_wrap=True)
    command = [sys.executable, "-c", "from events.cli import main; main()", *arguments]
    # Told to it, since what it prints is caught.
    variables = local.variables({"HOURGLASS_HOME": str(run.home), "COLUMNS": str(run.screen.width - 2 * _INDENT)})
    done = subprocess.run(command, env=variables, cwd=run.home, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = done.stderr.strip() or done.stdout.strip()
        raise DemoFailed(cause=f"`hourglass {shown}`: {why}", home=str(run.home))
    return done.stdout


def _as_typed() -> str:
    """How this shell reaches the command: by its name, or by its path from here."""
    here = Path(sys.argv[0]).absolute()
    found = shutil.which("hourglass")
    if found is not None and Path(found).samefile(here):
        return "hourglass"
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)


def _what_next(run: Demo, found: dict[str, Any], seconds: float) -> None:
    run.title(f"That was all of it, in {seconds:.0f} s. What to type next")
    first, broken = found["sessions"][0], found["regression"]
    home = f"--home {run.home}"
    hourglass = _as_typed()
    rows = [
        (f"{hourglass} timeline {first['session_id']} {home}", "the whole story of a session"),
        (f"{hourglass} sessions {home}", "what there is"),
        (f"{hourglass} log show sandbox-{first['sandboxes'][0]} {home}", "a sandbox, event by event"),
        (f"{hourglass} rebuild {broken['sandbox']}@{broken['good']} {home}", "what it was before the test broke"),
        (f"sqlite3 {run.home / LOG_NAME} 'SELECT * FROM tool_calls'", "the log is an SQLite file"),
        (f"{hourglass} init", "an environment and an agent of your own, with an API key"),
        (f"{hourglass} up", "serve it"),
        (f"rm -r {run.home}", "remove what the demo left"),
    ]
    for command, what in rows:
        run.screen.print(Text(f"  # {what}", "dim"))
        run.screen.print(Text(f"  {command}", "bold"), soft_wrap=True)
