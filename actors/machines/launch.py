"""The host's side of the nursery and of supervisors: starting them, finding them, ending machines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from actors.machines import cgroups, nursery
from actors.machines.container import clear_up
from actors.machines.folder import EXIT
from actors.machines.mounts import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actors.machines.folder import MachineFolder

_log = logging.getLogger(__name__)

ORDERS = "orders.json"
_KILL_SECONDS = 15.0
_LINE_BYTES = 65536


class Nursery:
    """The nursery of this process; begun when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    async def supervise(self, folder: Path) -> socket.socket:
        """Have a supervisor create the container of `folder`; the line to it.

        Raises `OSError` with what `runsc` said where it can't.
        """
        line = self._request({"supervise": str(folder)})
        try:
            said = await _read_line(line)
        except BaseException:
            line.close()
            raise
        if said != "created":
            line.close()
            raise OSError(said.removeprefix("error ") or "its supervisor ended without a word")
        return line

    async def run(self, command: Sequence[str], *, timeout: float) -> None:
        """Run a program of the system to its end. Raises `CommandFailed`. `timeout` in seconds."""
        name = os.path.basename(command[0])
        with self._request({"run": list(command)}) as line:
            try:
                async with asyncio.timeout(timeout):
                    said = await _read_line(line)
            except TimeoutError:
                raise CommandFailed(f"{name} did not end within {timeout:g} s") from None
        if not said:
            raise CommandFailed(f"{name} was not run, its starter ended")
        told = json.loads(said)
        if told["code"] != 0:
            words = told["said"].strip().splitlines()
            raise CommandFailed(f"{name} failed with exit code {told['code']}: {words[-1] if words else 'no word'}")

    def close(self) -> None:
        """End it, and with it the supervisors whose container waits for a sandbox."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _request(self, message: dict[str, object]) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        data = json.dumps(message).encode()
        with theirs:
            try:
                socket.send_fds(self._connected(), [data], [theirs.fileno()])
            except (BrokenPipeError, ConnectionResetError):
                # It was killed; another one will do.
                self.close()
                socket.send_fds(self._connected(), [data], [theirs.fileno()])
        ours.setblocking(False)
        return ours

    def _connected(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-E", os.path.abspath(nursery.__file__)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    # Nothing of the host's environment: a key may be in it, and a process shows its own to all of its
                    # user.
                    env={},
                    start_new_session=True,
                )
            self._socket = ours
        return self._socket


async def _read_line(line: socket.socket) -> str:
    """What is said up to the end of a line, or of the stream."""
    loop = asyncio.get_running_loop()
    said = b""
    while not said.endswith(b"\n"):
        try:
            data = await loop.sock_recv(line, _LINE_BYTES)
        except ConnectionResetError:
            break
        if not data:
            break
        said += data
    return said.decode("utf-8", "replace").strip()


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
        # A frozen process does not die.
        cgroups.thaw(machine_id)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        # What the supervisor is about to do: the kernel takes a while to end them, and it is begun sooner.
        for pid in cgroups.processes(machine_id):
            cgroups.end_process(pid)
        if not _wait_readable(pidfd, _KILL_SECONDS):
            _log.warning("supervisor does not end sandbox=%s machine=%s", folder.sandbox_id, machine_id)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    ended = _read(folder.path / EXIT)
    if ended is not None and ended.get("cleared") is True:
        return
    # For a supervisor that died before its machine: what it would have done.
    cgroups.thaw(machine_id)
    orders = _read(folder.path / ORDERS)
    if orders is not None:
        clear_up(orders)
    else:
        cgroups.kill(machine_id)
    # One that said how it ended sees to the control groups, too.
    if ended is None:
        cgroups.remove(machine_id)


def _read(path: Path) -> dict[str, Any] | None:
    """What a supervisor wrote, or was told; None where it is not there, or half there."""
    try:
        told = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _wait_readable(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
