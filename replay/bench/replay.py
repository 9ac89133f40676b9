"""How many events a second are read, validated and folded into a sandbox's state.

Yardstick: the `eventsourcing` package with the same events in its own SQLite recorder, read and folded its own way.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Any

from events import sandbox
from events.envelope import new_events
from events.sqlite_log import SqliteLog
from events.types import Limits, SandboxCreated, SandboxStarted, ToolCallCompleted, ToolCallStarted
from replay.bench.frame import BenchImpossible, Result, in_turns, ratio, scratch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from events.types import EventData
    from replay.bench.frame import Progress

_ROUNDS = 7
_SANDBOXES = 40
_CALLS = 100
_EVENTS = _SANDBOXES * (2 + 2 * _CALLS)
_COMMAND = {"command": "python3 -m pytest -q tests/test_parser.py && echo done " + "x" * 60}
_CONTENT = [{"type": "text", "text": "1 passed in 0.02s " + "y" * 60}]


def run(progress: Progress) -> Result:
    """In turns with the yardstick."""
    result = Result("replay")
    with scratch("replay") as folder:
        progress("writing the same events twice")
        with _log(folder) as log:
            theirs = _eventsourcing(folder)
            progress("reading and folding")
            ours, yardstick = in_turns(_ROUNDS, lambda _: _fold(log), lambda _: theirs())
    result.figure("events_read_and_folded", statistics.median(ours), "1/s")
    result.figure("eventsourcing_package", statistics.median(yardstick), "1/s")
    result.at_least("times as fast as the eventsourcing package", ratio(ours, yardstick), 8.0)
    return result


def history(calls: int) -> list[EventData]:
    """A sandbox that made so many calls: two events, and two for each call."""
    events: list[EventData] = [
        SandboxCreated(session_id="sesn_bench", driver="gvisor", template="base", limits=Limits()),
        SandboxStarted(machine_id="hg-0", node="node", seconds=0.2, agent_version="1"),
    ]
    for number in range(calls):
        id_ = f"toolu_{number:024d}"
        events += [
            ToolCallStarted(tool_use_id=id_, tool="bash", input=_COMMAND),
            ToolCallCompleted(tool_use_id=id_, content=_CONTENT, is_error=False, seconds=0.2, output_bytes=78),
        ]
    return events


def _log(folder: Path) -> SqliteLog:
    log = SqliteLog(folder / "log.db")
    for number in range(_SANDBOXES):
        events = new_events(f"bench-{number}", history(_CALLS), correlation_id="sesn_bench")
        log.append(f"sandbox-{number}", events, expected=0)
    return log


def _fold(log: SqliteLog) -> float:
    began = time.perf_counter()
    calls = sum(len(sandbox.load(log, str(number)).calls) for number in range(_SANDBOXES))
    seconds = time.perf_counter() - began
    assert calls == _SANDBOXES * _CALLS
    return _EVENTS / seconds


def _eventsourcing(folder: Path) -> Callable[[], float]:
    """The same sandboxes as aggregates of the package; returns what reads and folds them all."""
    try:
        from eventsourcing.application import Application
        from eventsourcing.domain import Aggregate, event
    except ImportError as error:
        raise BenchImpossible(
            bench="replay",
            reason="the package eventsourcing, its yardstick, is not installed",
            remedy="pip install 'hourglass-agents[bench]'",
        ) from error

    class Box(Aggregate):  # type: ignore[misc]
        @event("Created")  # type: ignore[untyped-decorator]
        def __init__(
            self,
            session_id: str,
            driver: str,
            template: str,
            limits: dict[str, Any],
            parent: str,
            parent_version: int,
        ) -> None:
            self.origin = (session_id, driver, template, limits)
            self.parent = parent
            self.machine = ""
            self.calls: dict[str, Any] = {}

        @event("Started")  # type: ignore[untyped-decorator]
        def start(self, machine_id: str, node: str, seconds: float, agent_version: str) -> None:
            self.machine = machine_id

        @event("CallStarted")  # type: ignore[untyped-decorator]
        def start_call(self, tool_use_id: str, tool: str, input: dict[str, Any]) -> None:  # noqa: A002
            self.calls[tool_use_id] = (tool, input, None)

        @event("CallCompleted")  # type: ignore[untyped-decorator]
        def complete_call(
            self, tool_use_id: str, content: list[Any], is_error: bool, seconds: float, output_bytes: int
        ) -> None:
            self.calls[tool_use_id] = (*self.calls[tool_use_id][:2], content, is_error)

    Box.__module__, Box.__qualname__ = __name__, "Box"
    app = Application(
        env={
            **os.environ,
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": str(folder / "eventsourcing.db"),
        }
    )
    told = [data.model_dump(exclude={"type"}) for data in history(_CALLS)]
    ids = []
    for _ in range(_SANDBOXES):
        box = Box(**told[0])
        box.start(**told[1])
        for started, completed in zip(told[2::2], told[3::2], strict=True):
            box.start_call(**started)
            box.complete_call(**completed)
        app.save(box)
        ids.append(box.id)

    def measure() -> float:
        began = time.perf_counter()
        calls = sum(len(app.repository.get(id_).calls) for id_ in ids)
        seconds = time.perf_counter() - began
        assert calls == _SANDBOXES * _CALLS
        return _EVENTS / seconds

    return measure
