"""How long ten sessions of the demo's recording take, all created at once, the agent thinking as long as in the demo.

Yardstick: the SDK's `EnvironmentWorker` on the same server, with `max_idle=1`; it serves one session at a time, in a
plain process without a sandbox. It runs in a process namespace of its own, so that what the recorded agent leaves
running in the background ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from replay.bench.frame import BenchImpossible, Result, in_turns, ratio, scratch
from replay.demo.show import PACE_SECONDS
from replay.local import LocalHourglass

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anthropic import Anthropic

    from replay.bench.frame import Progress

_TURNS = 1
_SESSIONS = 10
_RECORDING = "fix-the-bug"
_SECONDS = 300.0
_OURS, _THEIRS = 0, 1
"""Which of the server's environments each serves."""


def run(progress: Progress) -> Result:
    """With the demo's pace, which the promise is about; and with a model that answers at once, for the CPU alone."""
    result = Result("worker")
    with scratch("worker") as folder:
        ours, theirs = _measure(folder / "paced", progress, PACE_SECONDS, _TURNS)
        result.figure("ten_sessions", statistics.median(ours), "s")
        result.figure("ten_sessions_sdk_worker", statistics.median(theirs), "s")
        result.at_least("times as fast as the SDK's EnvironmentWorker", ratio(theirs, ours), 3.0)
        ours, theirs = _measure(folder / "unpaced", progress, 0.0, _TURNS)
        result.figure("ten_sessions_without_thinking", statistics.median(ours), "s")
        result.figure("ten_sessions_without_thinking_sdk_worker", statistics.median(theirs), "s")
    return result


def _measure(folder: Path, progress: Progress, pace: float, turns: int) -> tuple[list[float], list[float]]:
    """Seconds of each turn, ours and the yardstick's, with `pace` seconds between two of the agent's events."""
    progress("starting the service")
    folder.mkdir()
    local = LocalHourglass(folder / "home", pace=pace, max_idle=1.0, max_sandboxes=_SESSIONS)

    def sdk(turn: int) -> float:
        with _sdk_worker(local, folder / f"sdk-{turn}"):
            return _serve(local, client, progress, turn, _THEIRS)

    try:
        with local, local.client() as client:
            ours, theirs = in_turns(turns, lambda turn: _serve(local, client, progress, turn, _OURS), sdk)
            return ours, theirs
    finally:
        local.close()
        local.remove_sandboxes()


def _serve(local: LocalHourglass, client: Anthropic, progress: Progress, turn: int, environment: int) -> float:
    """Seconds from the first session's creation to the end of the last one's turn."""
    who = "Hourglass" if environment == _OURS else "the SDK's worker"
    progress(f"turn {turn + 1} of {_TURNS}, {who}")
    began = time.perf_counter()
    ids = [local.create_session(client, _RECORDING, environment=environment) for _ in range(_SESSIONS)]
    local.wait_ended(client, ids, _SECONDS)
    return time.perf_counter() - began


@contextlib.contextmanager
def _sdk_worker(local: LocalHourglass, folder: Path) -> Iterator[None]:
    """The worker in a process, polling."""
    unshare = shutil.which("unshare")
    if unshare is None:
        raise BenchImpossible(
            bench="worker", reason="there is no unshare to run the SDK's worker in", remedy="apt install util-linux"
        )
    folder.mkdir()
    environment = local.environments[_THEIRS]
    variables = local.variables(
        {
            "ANTHROPIC_BASE_URL": local.base_url,
            "ANTHROPIC_ENVIRONMENT_ID": environment.id,
            "ANTHROPIC_ENVIRONMENT_KEY": environment.key,
        }
    )
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [unshare, "--pid", "--fork", "--kill-child", sys.executable, "-m", "replay.bench.sdk_worker", str(folder)],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            said = (folder / "worker.log").read_text(errors="replace").strip()[-500:]
            raise BenchImpossible(
                bench="worker", reason=f"the SDK's worker did not start: {said}", remedy="run it as root"
            )
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
