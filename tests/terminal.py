"""A person at a terminal: a program in a pseudo-terminal of its own, what it shows, and what is typed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_WAIT_S = 30.0


class Terminal:
    """The terminal, and the program in it."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self._shown = bytearray()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """As a window does; the kernel tells the program."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def modes(self) -> list[Any]:
        """What `tcgetattr` says of it."""
        return termios.tcgetattr(self._master)

    def until(self, text: str) -> str:
        """Wait until it shows this; what it showed up to there, which is then forgotten."""
        deadline = time.monotonic() + _WAIT_S
        while text.encode() not in self._shown:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {bytes(self._shown)!r}"
            if select.select([self._master], [], [], min(left, 1.0))[0]:
                try:
                    self._shown += os.read(self._master, 65536)
                except OSError:
                    raise AssertionError(f"ended without {text!r}: {bytes(self._shown)!r}") from None
        end = self._shown.index(text.encode()) + len(text.encode())
        shown, self._shown = self._shown[:end], self._shown[end:]
        return shown.decode(errors="replace")

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(_WAIT_S)


@contextmanager
def in_terminal(command: Sequence[str | Path], env: dict[str, str], *, rows: int, columns: int) -> Iterator[Terminal]:
    """Run a program as a person would; killed at the end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        # In the foreground of the terminal: it gets SIGWINCH.
        ["setsid", "--ctty", *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=env,
    )
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        # Until here, so that its modes can be asked for after its end.
        os.close(slave)
        os.close(master)
