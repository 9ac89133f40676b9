"""A hundred sandboxes at once on this machine: whether all answer, how soon, and what memory each takes.

A served session for each, all held in memory; then each agent is sent a message at the same moment and makes one tool
call, a few rounds of it. Measured is what its app sees, from the message until the call's result is posted: on the way
lie the recorded-session server, the session, the log, and a thaw of the sandbox, which had no CPU between the rounds.
Yardstick: the same hundred, one after the other; a crowd is to be through no later. What a call of one alone takes,
before the others come, is printed beside it: its memory was in use a moment ago, and that of the others was not.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from events.home import LOG_NAME
from events.log import CaughtUp
from events.sqlite_log import SqliteLog
from events.types import ToolCallCompleted
from replay.bench.frame import BenchImpossible, Result, percentile, scratch
from replay.local import LocalHourglass
from replay.recording import FORMAT, SUFFIX, Header, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anthropic import Anthropic

    from events.payload import JsonObject
    from replay.bench.frame import Progress

_SANDBOXES = 100
_ROUNDS = 3
_ALONE = 10
"""Rounds of the yardstick."""
_RECORDING = "bench-dense"
_SECONDS = 300.0
_HELD_SECONDS = 900.0
_SENDERS = 16
_US = 1_000_000
_TIMES = 1.0


def run(progress: Progress) -> Result:
    """One alone, then the crowd."""
    with scratch("dense") as folder:
        write(folder / f"{_RECORDING}{SUFFIX}", _header(), list(_recording()))
        progress("starting the service")
        local = LocalHourglass(folder / "home", recordings=[folder], max_idle=_HELD_SECONDS, max_sandboxes=_SANDBOXES)
        try:
            with local, local.client() as client, _Crowd(local, client) as crowd:
                crowd.add(1, progress)
                alone = [wait for turn in range(_ALONE) for wait in crowd.call(progress, f"one alone, {turn + 1}")]
                before = _available()
                began = time.perf_counter()
                crowd.add(_SANDBOXES - 1, progress)
                begun = time.perf_counter() - began
                in_turn = crowd.call_in_turn(progress)
                waits = [crowd.call(progress, f"round {turn + 1} of {_ROUNDS}") for turn in range(_ROUNDS)]
                memory = _machines(local)
                taken = before - _available()
        finally:
            local.close()
            local.remove_sandboxes()
    result = Result("dense")
    every = [wait for one in waits for wait in one]
    result.figure("sandboxes_in_memory", len(memory), "")
    result.figure("all_begun", begun, "s")
    result.figure("call_p50", statistics.median(every), "ms")
    result.figure("call_p99", percentile(every, 0.99), "ms")
    result.figure("call_alone_p50", statistics.median(alone), "ms")
    result.figure("all_answered_after", statistics.median(max(one) for one in waits), "ms")
    result.figure("memory_of_a_sandbox_p50", statistics.median(memory) / 1024**2, "MiB")
    result.figure("memory_of_a_sandbox_max", max(memory) / 1024**2, "MiB")
    result.figure("memory_of_the_node_for_each", taken / (_SANDBOXES - 1) / 1024**2, "MiB")
    result.figure("call_in_turn_p50", statistics.median(in_turn), "ms")
    result.figure("all_answered_in_turn_after", sum(in_turn), "ms")
    result.at_most(
        "until all have answered, in times of the same calls one after the other",
        statistics.median(max(one) for one in waits) / sum(in_turn),
        _TIMES,
    )
    result.at_least("sandboxes that answer, in each round", min(len(one) for one in waits), _SANDBOXES)
    return result


class _Crowd:
    """Sessions that wait for their next message, and the log that tells what becomes of it."""

    def __init__(self, local: LocalHourglass, client: Anthropic) -> None:
        self._local = local
        self._client = client
        self._ids: list[str] = []
        self._log = SqliteLog(local.home / LOG_NAME, read_only=True)
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def add(self, count: int, progress: Progress) -> None:
        """More sessions; returns once each has made its first call."""
        new = [self._local.create_session(self._client, _RECORDING) for _ in range(count)]
        self._ids += new
        self._until_posted(set(new), progress, "begin")

    def call(self, progress: Progress, what: str) -> list[float]:
        """Send each a message, all at once; from then until each result was posted, in milliseconds."""
        return self._call(self._ids, progress, what)

    def call_in_turn(self, progress: Progress) -> list[float]:
        """Send each a message once the one before has answered; milliseconds as in `call`."""
        found = []
        for number, one in enumerate(self._ids, start=1):
            found += self._call([one], progress, f"in turn, {number}")
        return found

    def _call(self, ids: Sequence[str], progress: Progress, what: str) -> list[float]:
        sent: dict[str, float] = {}

        def send(session_id: str) -> None:
            sent[session_id] = time.time()
            text: Any = {"type": "user.message", "content": [{"type": "text", "text": "Again."}]}
            self._client.beta.sessions.events.send(session_id, events=[text])

        with ThreadPoolExecutor(_SENDERS) as senders:
            list(senders.map(send, ids))
        posted = self._until_posted(set(ids), progress, what)
        return [(at - sent[session_id]) * 1000 for session_id, at in posted.items()]

    def _until_posted(self, awaited: set[str], progress: Progress, what: str) -> dict[str, float]:
        """When each session's next result was posted and its turn over, by the log; without those whose call failed."""
        posted: dict[str, float] = {}
        deadline = time.monotonic() + _SECONDS
        over: set[str] = set()
        failed: set[str] = set()
        for event in self._log.subscribe(self._position, timeout=_SECONDS):
            if isinstance(event, CaughtUp):
                self._local.check()
                if over >= awaited or time.monotonic() > deadline:
                    break
                continue
            self._position = event.position
            session_id = event.stream.removeprefix("session-")
            if isinstance(event.data, ToolCallCompleted) and event.data.is_error:
                failed.add(event.correlation_id)
            elif event.type == "session.result_posted" and session_id not in failed:
                posted[session_id] = event.recorded_at_us / _US
                progress(f"{what}: {len(posted)} of {len(awaited)} answered")
            elif event.type in ("session.idled", "session.failed", "session.terminated"):
                over.add(session_id)
        return posted


def _machines(local: LocalHourglass) -> Sequence[int]:
    """Bytes of memory of each machine, as `hourglass top` has them."""
    done = subprocess.run(
        [sys.executable, "-c", "from events.cli import main; main()", "top", "--json", "--home", str(local.home)],
        env=local.variables({}),
        cwd=local.home,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = f"{done.stdout}{done.stderr}".strip()[-500:]
        raise BenchImpossible(bench="dense", reason=f"hourglass top: {said}", remedy="Run `hourglass doctor`.")
    views: list[dict[str, Any]] = orjson.loads(done.stdout)
    return [view["memory_bytes"] for view in views if view["memory_bytes"] is not None]


def _available() -> int:
    """`MemAvailable` of this node, in bytes."""
    (line,) = [one for one in Path("/proc/meminfo").read_text().splitlines() if one.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024


def _header() -> Header:
    agent = {"name": "Bench", "model": {"id": "claude-opus-4-8"}, "tools": [{"type": "agent_toolset_20260401"}]}
    return Header(recording=FORMAT, name=_RECORDING, agent=agent)


def _recording() -> list[JsonObject]:
    """One turn for the start, one in turn with the others and one for each round, each with a call."""
    events: list[JsonObject] = []
    for turn in range(2 + _ALONE + _ROUNDS):
        call = f"call-{turn}"
        waits = {"type": "requires_action", "event_ids": [call]}
        given = {"command": f"count=$((count + 1)); test $count = {turn + 1}"}
        answer = [{"type": "text", "text": "(not compared)"}]
        events += [
            {"type": "user.message", "content": [{"type": "text", "text": "Go."}]},
            {"type": "agent.tool_use", "id": call, "name": "bash", "input": given, "evaluated_permission": "allow"},
            {"type": "session.status_idle", "stop_reason": waits},
            {"type": "user.tool_result", "tool_use_id": call, "content": answer},
            {"type": "session.status_idle", "stop_reason": {"type": "end_turn"}},
        ]
    return [{"id": f"event-{number}"} | event for number, event in enumerate(events)]
