"""What sessions cost that are idle, their sandboxes suspended: processes, and memory of the host.

A host of its own, in a process of its own (`replay.bench.idle_host`), is given a thousand sessions, twice: each is
claimed, makes ten tool calls, has its sandbox suspended, and is given back. Every event goes through the host's log,
and the host folds each stream and lets go of it by itself, as in service; the machines of these are rows alone.
Measured is what the host's resident memory grows by with the second thousand: the first is for what any host needs
once. Then the host starts some real machines, leaves them to themselves, and the processes that belong to them are
counted before and after they went to disk. Nothing here is a yardstick: the bound is absolute.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from replay.bench.frame import BenchImpossible, Result, scratch
from replay.local import LocalHourglass

if TYPE_CHECKING:
    from pathlib import Path

    from replay.bench.frame import Progress

_SESSIONS = 1000
_REAL = 5
_SECONDS = 600
_BYTES = 2048


def run(progress: Progress) -> Result:
    """Once; it takes some twenty seconds."""
    progress(f"{_SESSIONS} sessions come and go, twice, and {_REAL} machines go to disk")
    with scratch("idle") as folder:
        found = _host(folder)
    result = Result("idle")
    result.figure("idle_sessions", found["sessions"], "")
    result.figure("handles_held", found["handles"], "")
    result.figure("host_resident", found["host_bytes"] / 1024**2, "MiB")
    result.figure("host_growth_for_each", found["bytes_each"], "B")
    result.figure("processes_of_a_running_machine", found["processes_running"] / found["machines"], "")
    result.figure("processes_of_all_suspended", found["processes_suspended"], "")
    result.at_most("bytes of the host for each idle session", found["bytes_each"], _BYTES)
    result.at_most("processes of suspended sandboxes", found["processes_suspended"], 0)
    return result


def _host(folder: Path) -> dict[str, Any]:
    home, numbers = folder / "home", (_SESSIONS, _SESSIONS, _REAL)
    command = [sys.executable, "-m", "replay.bench.idle_host", str(home), *map(str, numbers)]
    try:
        done = subprocess.run(
            command,
            env=LocalHourglass(home, serve=False).variables({}),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or "").strip()[-500:]
        raise BenchImpossible(
            bench="idle", reason=f"its host failed: {said or error}", remedy="Run `hourglass doctor`."
        ) from error
    found: dict[str, Any] = json.loads(done.stdout)
    return found
