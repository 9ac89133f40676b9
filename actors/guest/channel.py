"""The guest's end of the stream: frames out without waiting, and channels with credit.

Any thread may send. What the pipe does not take waits in the `Outbox`, which the main loop empties; what the host gave
no credit for waits in its `Channel`.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque

from actors.guest.frames import CREDIT, CREDIT_PAYLOAD, DATA, END, MAX_PAYLOAD, RESET, WINDOW, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Bytes = bytes | bytearray | memoryview

ROOM_BYTES = 256 * 1024
"""How much may wait in a channel before whoever fills it has to wait too."""


class ChannelVoid(Exception):
    """Raised when a channel was reset, or its host is gone."""


class Outbox:
    """Frames on their way to the host, in order."""

    def __init__(self, fd: int, wake: Callable[[], None]) -> None:
        """`fd` must not block; `wake` makes the main loop ask `waiting` again."""
        self.lock = threading.RLock()
        self._fd = fd
        self._wake = wake
        self._waiting: deque[memoryview] = deque()

    @property
    def waiting(self) -> bool:
        """Whether the stream took less than there is."""
        return bool(self._waiting)

    def send(self, kind: int, channel: int, payload: bytes = b"") -> None:
        """Send a frame now, or as soon as the stream takes it."""
        data = memoryview(encode(kind, channel, payload))
        with self.lock:
            if not self._waiting:
                data = data[self._try(data) :]
            if data:
                self._waiting.append(data)
                self._wake()

    def flush(self) -> None:
        """Send what the stream takes now."""
        with self.lock:
            while self._waiting:
                first = self._waiting[0]
                rest = first[self._try(first) :]
                if rest:
                    self._waiting[0] = rest
                    return
                self._waiting.popleft()

    def _try(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0


class Channel:
    """One conversation. The host opened it."""

    def __init__(self, number: int, params: dict[str, object], outbox: Outbox) -> None:
        self.number = number
        self.params = params
        self._outbox = outbox
        # One lock with the outbox: frames of a channel that was voided can't slip out after it.
        self._changed = threading.Condition(outbox.lock)
        self._credit = WINDOW
        self._pending: deque[tuple[bytes, memoryview]] = deque()
        self._pending_bytes = 0
        self._ending = False
        self._ended = False
        self._void = False
        self._inbox: deque[bytes] = deque()
        self._peer_ended = False
        self._consumed = 0
        self.on_void: Callable[[], None] | None = None
        """Called once when the channel becomes void, by whichever thread finds out: it must not wait for anything."""

    # --- to the host ---

    def send(self, data: Bytes, tag: bytes = b"", *, last: bool = False) -> None:
        """Queue bytes, each frame of them beginning with `tag`; with `last`, nothing follows. Never waits."""
        with self._changed:
            if self._void or self._ending:
                return
            if data:
                view = memoryview(data)
                self._pending.append((tag, view))
                self._pending_bytes += len(view)
            self._ending = last
            self._pump()

    def room(self) -> int:
        """How many bytes more may wait here."""
        return ROOM_BYTES - self._pending_bytes

    def wait_room(self) -> None:
        """Wait until something may be sent; raises `ChannelVoid`."""
        with self._changed:
            self._changed.wait_for(lambda: self._void or self.room() > 0)
            if self._void:
                raise ChannelVoid

    def fail(self, message: str, number: int | None = None) -> None:
        """End the channel with an error, and an errno where it comes from the kernel."""
        with self._changed:
            if not self._void:
                self._outbox.send(RESET, self.number, json.dumps({"error": message[:2000], "errno": number}).encode())
                self.void()

    def grant(self, count: int) -> None:
        """The host allows so many bytes more."""
        with self._changed:
            self._credit += count
            self._pump()

    def void(self) -> None:
        """Forget everything: the host reset it, or is another one now."""
        with self._changed:
            self._void = True
            self._pending.clear()
            self._inbox.clear()
            self._pending_bytes = 0
            self._changed.notify_all()
            told, self.on_void = self.on_void, None
        if told:
            told()

    def watch(self, on_void: Callable[[], None]) -> None:
        """Have `on_void` called; at once, raising `ChannelVoid`, where it is too late."""
        with self._changed:
            if not self._void:
                self.on_void = on_void
                return
        on_void()
        raise ChannelVoid

    @property
    def over(self) -> bool:
        """Whether both sides are done."""
        return self._void or (self._ended and self._peer_ended)

    def _pump(self) -> None:
        while self._pending:
            tag, view = self._pending[0]
            size = min(len(view), self._credit - len(tag), MAX_PAYLOAD - len(tag))
            if size <= 0:
                return
            self._outbox.send(DATA, self.number, tag + view[:size])
            self._credit -= len(tag) + size
            self._pending_bytes -= size
            if size < len(view):
                self._pending[0] = (tag, view[size:])
            else:
                self._pending.popleft()
            self._changed.notify_all()
        if self._ending and not self._ended:
            self._ended = True
            self._outbox.send(END, self.number)

    # --- from the host ---

    def deliver(self, data: bytes) -> None:
        """Bytes came."""
        with self._changed:
            if not self._void:
                self._inbox.append(data)
                self._changed.notify_all()

    def deliver_end(self) -> None:
        """No more will come."""
        with self._changed:
            self._peer_ended = True
            self._changed.notify_all()

    def take(self) -> bytes:
        """The next bytes, empty at the end; waits for them. Raises `ChannelVoid`."""
        with self._changed:
            self._changed.wait_for(lambda: self._void or self._inbox or self._peer_ended)
            if self._void:
                raise ChannelVoid
            if not self._inbox:
                return b""
            data = self._inbox.popleft()
            self._consumed += len(data)
            # In large pieces, so that credit is not half of the traffic.
            if self._consumed >= WINDOW // 4:
                self._outbox.send(CREDIT, self.number, CREDIT_PAYLOAD.pack(self._consumed))
                self._consumed = 0
            return data

    def body(self, limit: int) -> bytes:
        """Everything that the host sends; raises `ValueError` above `limit` bytes, `ChannelVoid`."""
        parts = bytearray()
        while piece := self.take():
            parts += piece
            if len(parts) > limit:
                raise ValueError(f"more than {limit} bytes")
        return bytes(parts)
