"""Tool calls by their ids: each runs once, whoever asks how often.

A call goes on when the host goes away. Its result is kept, so that a host that comes back and asks again gets it; a
call that still runs is attached to. The newest result is always kept, older ones within `KEPT_CALLS` and
`KEPT_BYTES`; of those that were dropped the ids stay known, and asking for one is an error, never a second run.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

from actors.guest.errors import Stopped
from actors.guest.shell import Control
from actors.guest.toolbox import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.guest.channel import Channel
    from actors.guest.toolbox import Toolbox

LIVE_BYTES = 1024 * 1024
"""How much of a call's output is shown while it runs; the result has its own limit."""
KEPT_CALLS = 32
KEPT_BYTES = 4 * 1024 * 1024
KNOWN_CALLS = 4096
BACKSTOP_S = 2.0
"""How long after its time a call that does not end by itself is given up."""

OUTPUT = b"o"
RESULT = b"r"
"""First byte of every DATA frame of a tool channel: what the rest is."""


class Call:
    """One tool call."""

    def __init__(self, call_id: str, tool: str, given: object, timeout: float, channel: Channel) -> None:
        self.call_id = call_id
        self.tool = tool
        self.given = given
        self.timeout = timeout
        self.channel = channel
        self.control = Control(float("inf"))
        self.result: list[bytes | bytearray] | None = None
        self.result_bytes = 0
        self._shown = 0
        self._left_out = 0

    def show(self, data: bytes) -> None:
        """Send output as it is printed, never waiting for the host: what it is too slow for is left out."""
        if self._shown >= LIVE_BYTES:
            return
        if len(data) > self.channel.room():
            self._left_out += len(data)
            return
        if self._left_out:
            data = b"\n[%d bytes are not shown here]\n" % self._left_out + data
            self._left_out = 0
        data = data[: LIVE_BYTES - self._shown]
        self._shown += len(data)
        if self._shown >= LIVE_BYTES:
            data += b"\n[live output ends here; the result has the last part]\n"
        self.channel.send(data, OUTPUT)

    def finish(self, outcome: Outcome) -> None:
        """The result is there; the first one counts."""
        if self.result is None:
            self.result = outcome.encoded()
            self.result_bytes = sum(map(len, self.result))

    def answer(self) -> None:
        """Send the result to whoever asked last."""
        for part in self.result or ():
            self.channel.send(part, RESULT)
        self.channel.send(b"", last=True)


class Calls:
    """All calls that this agent knows, and the thread that runs them one after the other."""

    def __init__(self, toolbox: Toolbox, on_start: Callable[[], None]) -> None:
        self._toolbox = toolbox
        self._on_start = on_start
        self._lock = threading.Lock()
        self._queued = threading.Condition(self._lock)
        self._queue: deque[Call] = deque()
        self._known: OrderedDict[str, Call | None] = OrderedDict()
        self.running: Call | None = None
        self._worker: threading.Thread | None = None

    def ask(self, call_id: str, tool: str, given: object, timeout: float, channel: Channel) -> None:
        """Run a call, or attach to it, or answer with the result that was kept."""
        with self._lock:
            if call_id in self._known:
                call = self._known[call_id]
                if call is None:
                    channel.fail(f"the result of call {call_id} is no longer kept")
                    return
                call.channel = channel
                if call.result is not None:
                    call.answer()
                return
            call = self._known[call_id] = Call(call_id, tool, given, timeout, channel)
            self._queue.append(call)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="tools", daemon=True)
                self._worker.start()
            self._queued.notify()

    def interrupt(self, call_id: str) -> None:
        """End a call early; one that is over or unknown is no error."""
        with self._lock:
            call = self._known.get(call_id)
            if call is None or call.result is not None:
                return
            call.control.interrupted = True
            if call is not self.running:
                self._queue.remove(call)
                self._conclude(call, Outcome(self._toolbox.stopped_text(call.tool, call.control), is_error=True))
                return
            if call.tool != "bash":
                # These look at the flag from time to time; where one does not, it is given up.
                call.control.deadline = time.monotonic()
        if self._toolbox.shell:
            self._toolbox.shell.poke()

    def next_look(self) -> float | None:
        """Seconds until `look_after` should be called; None where nothing runs."""
        call = self.running
        return None if call is None else max(0.0, call.control.deadline + BACKSTOP_S - time.monotonic())

    def look_after(self) -> None:
        """Give up a call that does not end by itself: a search that is stuck, or a file system that does not answer."""
        with self._lock:
            call = self.running
            if call is None or time.monotonic() < call.control.deadline + BACKSTOP_S:
                return
            stuck, self._worker = self._worker, None
            self.running = None
            self._conclude(call, Outcome(self._toolbox.stopped_text(call.tool, call.control), is_error=True))
            self._worker = threading.Thread(target=self._work, name="tools", daemon=True)
            self._worker.start()
        if stuck:
            _raise_in(stuck)

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._lock:
                self._queued.wait_for(lambda: self._queue or self._worker is not me)
                if self._worker is not me:
                    return
                call = self.running = self._queue.popleft()
            call.control.deadline = time.monotonic() + call.timeout
            self._on_start()
            try:
                outcome = self._toolbox.run(call.call_id, call.tool, call.given, call.control, call.show)
            except Stopped:
                # Raised into this thread when it was given up already.
                return
            with self._lock:
                if self._worker is not me:
                    return
                self.running = None
                self._conclude(call, outcome)

    def _conclude(self, call: Call, outcome: Outcome) -> None:
        call.given = None
        call.finish(outcome)
        call.answer()
        self._forget(call)

    def _forget(self, newest: Call) -> None:
        kept = [call for call in self._known.values() if call and call.result is not None and call is not newest]
        size = sum(call.result_bytes for call in kept)
        while kept and (len(kept) >= KEPT_CALLS or size > KEPT_BYTES):
            oldest = kept.pop(0)
            size -= oldest.result_bytes
            self._known[oldest.call_id] = None
        while len(self._known) > KNOWN_CALLS:
            self._known.popitem(last=False)


def _raise_in(thread: threading.Thread) -> None:
    """Make a thread that runs Python code raise `Stopped`; one that waits in the kernel does so when it returns."""
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stopped))
