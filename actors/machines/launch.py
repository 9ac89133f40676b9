"""The host's side of a supervisor: starting one, finding it, ending its machine. All of it blocks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
from typing import IO

from actors.machines import cgroups, supervisor
from actors.machines.container import Orders, clear_up
from actors.machines.folder import MachineFolder

_log = logging.getLogger(__name__)

_KILL_SECONDS = 15.0


def spawn_supervisor(folder: MachineFolder) -> subprocess.Popen[bytes]:
    """Let the supervisor's Python boot while there is other work; it waits for its orders."""
    with (folder.path / "supervisor.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-E", os.path.abspath(supervisor.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder.path,
            # Nothing of the host's environment: a key may be in it, and a process shows its own to all of its user.
            env={},
            start_new_session=True,
        )


def command_supervisor(process: subprocess.Popen[bytes], folder: MachineFolder, orders: Orders) -> None:
    """Tell it what to start. Returns once the machine is started; raises `OSError` where it can't be."""
    folder.write(supervisor.ORDERS, orders)
    stdin, stdout = _pipes(process)
    with contextlib.suppress(BrokenPipeError):
        stdin.write(b"go")
        stdin.close()
    answer = stdout.read().decode("utf-8", "replace").strip()
    stdout.close()
    process.wait()
    if answer != "ok":
        raise OSError(answer.removeprefix("error ") or "its supervisor ended without a word")


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise AssertionError("Popen was asked for both pipes")
    return process.stdin, process.stdout


def dismiss(process: subprocess.Popen[bytes]) -> None:
    """Without orders it ends by itself."""
    for pipe in _pipes(process):
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    process.wait()


def open_supervisor(folder: MachineFolder) -> int | None:
    """A pidfd of the machine's supervisor; None where there is none."""
    pid = folder.supervisor()
    if pid is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if folder.supervisor() != pid:  # It ended in between, and the number may be another's by now.
        os.close(pidfd)
        return None
    return pidfd


def end_machine(folder: MachineFolder, machine_id: str) -> None:
    """End a machine whatever state it is in, and wait until it is gone. Raises `OSError`."""
    pidfd = open_supervisor(folder)
    if pidfd is not None:
        (folder.path / "killed").touch()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not _wait_readable(pidfd, _KILL_SECONDS):
            _log.warning("supervisor does not end sandbox=%s machine=%s", folder.sandbox_id, machine_id)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    # For a supervisor that died before its machine: what it would have done.
    try:
        orders = json.loads((folder.path / supervisor.ORDERS).read_bytes())
    except (FileNotFoundError, ValueError):
        cgroups.kill(machine_id)
        cgroups.remove(machine_id)
    else:
        clear_up(orders)


def _wait_readable(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
