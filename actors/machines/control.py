"""A checkpoint asked of a running sandbox itself, on the control socket that `runsc` would ask it on.

The command is a program of its own that starts, reads its state and asks: half the time of a checkpoint. What is asked
is bound to the release, so it is asked of known ones alone (`KNOWN`); for the others there is the command.

One request and one answer, both JSON; the files to write go with the request, as descriptors (`pkg/urpc` and
`pkg/sentry/control` of gVisor, release 20240729).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING

from actors.machines.protocol import MachineError

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = frozenset({20240729})
"""Releases whose answer to this question was compared with what the command does."""
_FILES = ("checkpoint.img", "pages_meta.img", "pages.img")
"""In the order in which they are handed over."""
_ANSWER_BYTES = 65536


def control_socket(state: Path, machine_id: str) -> Path:
    """Where a sandbox listens."""
    return state / f"runsc-{machine_id}.sock"


async def checkpoint(address: Path, image: Path, *, timeout: float) -> None:
    """Write memory and processes into the folder `image`, which has no such files yet; the sandbox goes on.

    Raises `MachineError` where it can't, with the sandbox's own reason, or says nothing for `timeout` seconds.
    """
    call = {
        "method": "containerManager.Checkpoint",
        # Compressed in the store, where it pays; here it would cost more time than it saves.
        "arg": {"metadata": {"compression": "none"}, "have_pages_file": True, "Resume": True},
    }
    with contextlib.ExitStack() as opened:
        line = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        line.setblocking(False)
        try:
            files = [_create(image / name, opened) for name in _FILES]
            async with asyncio.timeout(timeout):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(line, str(address))
                socket.send_fds(line, [json.dumps(call).encode()], files)
                answer = await _answer(line)
        except TimeoutError:
            raise MachineError(f"no checkpoint within {timeout:.0f} s") from None
        except OSError as error:
            raise MachineError(f"no checkpoint: {error}") from error
    if answer.get("success") is not True:
        raise MachineError(f"no checkpoint: {str(answer.get('err'))[:500]}")


def _create(path: Path, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    opened.callback(os.close, fd)
    return fd


async def _answer(line: socket.socket) -> dict[str, object]:
    """One JSON object, bounded; the kernel that sends it has run hostile code."""
    said = b""
    while len(said) < _ANSWER_BYTES:
        piece = await asyncio.get_running_loop().sock_recv(line, _ANSWER_BYTES)
        if not piece:
            raise MachineError("no checkpoint: the machine ended")
        said += piece
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(said)
            if isinstance(answer, dict):
                return answer
    raise MachineError("no checkpoint: the machine's answer makes no sense")
