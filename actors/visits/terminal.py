"""This process's terminal, lent to a program in a sandbox: raw while it runs, and given back whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import termios
import tty
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from actors.guest import frames
from actors.visits.client import visit
from actors.visits.programs import Conversation, write_out
from actors.visits.wire import VisitRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actors.visits.client import Place, Wire
    from actors.visits.wire import Exec

ESCAPE = b"~."
"""At the beginning of a line it ends the visit, as with ssh: also where nothing inside answers any more."""
AFTERWARDS = b"\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m\r\n"
"""What a program that was cut off has left undone: other screen, mouse, pasting, hidden cursor, colours."""
_PASSED_ON = ("TERM", "COLORTERM")


class Left(Exception):
    """Raised when the person at the terminal asks to leave."""


def size(fd: int) -> tuple[int, int]:
    """(rows, columns) of a terminal; 24 and 80 where it does not know."""
    columns, rows = os.get_terminal_size(fd)
    return rows or 24, columns or 80


def variables() -> dict[str, str]:
    """What the program is to know of the terminal."""
    return {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}


def check_terminal() -> None:
    """Raises `VisitRefused` where this process has none to lend."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise VisitRefused(
            "this process has no terminal to lend to the sandbox",
            "Run it in a terminal, or use `hourglass exec` without -t.",
        )


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Every key goes through as it is. At the end the terminal is as it was."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class Escape:
    """Looks for `ESCAPE` in what is typed; the tilde is held back until the next key."""

    def __init__(self) -> None:
        self._begins = True
        self._held = False

    def __call__(self, data: bytes) -> bytes:
        """What goes on to the program. Raises `Left`."""
        kept = bytearray()
        for byte in data:
            key = bytes([byte])
            if self._held:
                self._held = False
                if key == b".":
                    raise Left
                kept += b"~" if key != b"~" else b""
            elif self._begins and key == b"~":
                self._held = True
                continue
            kept += key
            self._begins = key in b"\r\n"
        return bytes(kept)


def run_in_terminal(place: Place, request: Exec, *, interactive: bool) -> int:
    """Run a program in a terminal of its own, shown in this one; its exit code. `request.terminal` must be set.

    Raises `VisitRefused`; the terminal is given back first.
    """
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    with ExitStack() as stack:
        wire = stack.enter_context(visit(place))
        wire.ask(request)
        told, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, told)
        stack.callback(os.close, wake)

        def resized(*_: object) -> None:
            # Full: it will look anyhow.
            with contextlib.suppress(BlockingIOError):
                os.write(wake, b"\0")

        def ended(number: int, _: object) -> None:
            raise SystemExit(128 + number)

        for number, handler in ((signal.SIGWINCH, resized), (signal.SIGTERM, ended), (signal.SIGHUP, ended)):
            stack.callback(signal.signal, number, signal.signal(number, handler))

        def tell_size(to: Wire) -> None:
            os.read(told, 4096)
            to.send(frames.OPEN, frames.CONTROL, json.dumps({"resize": size(stdout)}).encode())

        stack.enter_context(raw(stdin))
        # It may have changed before anybody listened.
        resized()
        talk = Conversation(
            wire,
            lambda _, data: write_out(stdout, data),
            stdin=stdin if interactive else None,
            told=told,
            on_told=tell_size,
            edit=Escape(),
        )
        try:
            return talk.hold()
        except Left:
            write_out(stdout, AFTERWARDS)
            return 128 + signal.SIGHUP
        except BaseException:
            with contextlib.suppress(OSError):
                write_out(stdout, AFTERWARDS)
            raise
