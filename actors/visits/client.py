"""A visitor's end: finding the door of a running service, and what goes through it."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from actors.guest import frames
from actors.visits.wire import FOLDER, HOST_DOOR, Find, Request, VisitRefused, address, encode_request, refused

if TYPE_CHECKING:
    from actors.settings import Settings

_READ_BYTES = 256 * 1024
_ANSWER_S = 300.0
"""How long an answer may take: a machine that is resumed with much memory, on a busy node."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sandbox is visited."""

    sandbox_id: str
    session_id: str
    door: Path


class Wire:
    """A connection to a door. A context manager: closed at the end, which ends the visit."""

    def __init__(self, door: Path) -> None:
        """Raises `OSError` where nobody is behind it."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._decoder = frames.Decoder()
        self._waiting: list[frames.Frame] = []
        self.deaf = False
        """Whether the other end takes nothing any more."""
        try:
            with address(door) as place:
                self.socket.connect(place)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, request: Request) -> dict[str, Any]:
        """Begin a visit; what is answered. Raises `VisitRefused`."""
        self.send_raw(encode_request(request))
        self.socket.settimeout(_ANSWER_S)
        try:
            kind, _, payload = self.receive()
        except TimeoutError:
            raise lost(f"the service did not answer for {_ANSWER_S:.0f} s") from None
        self.socket.settimeout(None)
        if kind != frames.OPEN:
            raise lost()
        answer: dict[str, Any] = json.loads(payload)
        return answer

    def send(self, kind: int, channel: int, payload: bytes = b"") -> None:
        """Send a frame; see `send_raw`."""
        self.send_raw(frames.encode(kind, channel, payload))

    def send_raw(self, data: bytes) -> None:
        """Send frames. Where the other end has closed, `deaf` is set: what it said last is still to be received."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.deaf = True

    def receive(self) -> frames.Frame:
        """The next frame; waits for it. Raises `VisitRefused` for a RESET, and where there is none."""
        while not (found := self.arrived()):
            pass
        self._waiting[:0] = found[1:]
        return found[0]

    def arrived(self) -> list[frames.Frame]:
        """The frames that the next bytes complete, perhaps none; waits for some. Raises as `receive` does."""
        found, self._waiting = self._waiting, []
        if not found:
            try:
                data = self.socket.recv(_READ_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                raise lost()
            found = self._decoder.feed(data)
        for index, frame in enumerate(found):
            if frame.kind == frames.RESET:
                if index == 0:
                    raise refused(frame.payload)
                # First what was said before.
                self._waiting = found[index:]
                return found[:index]
        return found

    @property
    def pending(self) -> bool:
        """Whether `arrived` has something without waiting for bytes."""
        return bool(self._waiting)


def lost(cause: str = "the service ended the visit without a word") -> VisitRefused:
    """The error of a connection that ends too early."""
    return VisitRefused(cause, "See whether `hourglass up` runs, and what it said; then try again.")


def find(settings: Settings, target: str) -> Place:
    """Where the sandbox of a session or a sandbox's id, or a beginning of one, is visited.

    Raises `CannotServe` where no service runs on the home, `VisitRefused`.
    """
    with _host_door(settings) as wire:
        told = wire.ask(Find(target=target))
    return Place(str(told["sandbox_id"]), str(told["session_id"]), Path(told["door"]))


def _host_door(settings: Settings) -> Wire:
    door = settings.home / FOLDER / HOST_DOOR
    try:
        return Wire(door)
    except PermissionError:
        raise VisitRefused(f"the service's door {door} is for its own user", "Run this as that user.") from None
    except OSError:
        # Nobody opened it yet, or whoever did is gone: Ray knows where its successor is.
        from actors.service import operate

        told = operate(settings, "door")
    try:
        return Wire(Path(told["door"]))
    except OSError as error:
        raise VisitRefused(
            f"the service runs on {told['node']}, and its door {told['door']} can't be reached from here: {error}",
            f"Run this command on {told['node']}.",
        ) from error


def visit(place: Place) -> Wire:
    """A connection to where a sandbox is. Raises `VisitRefused`."""
    try:
        return Wire(place.door)
    except OSError as error:
        raise VisitRefused(
            f"the door of {place.sandbox_id} can't be reached: {error}",
            "Try again; its process may have ended just now.",
        ) from error
