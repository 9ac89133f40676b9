"""The guest agent: PID 1 of every machine, at the inner end of its one byte stream.

The stream (frames: `actors.guest.frames`). The host speaks first, and again whenever it is another host::

    host   HELLO {"protocol", "nonce", "limits": {"processes", "memory_bytes"}}
    guest  HELLO {"protocol", "nonce" as it came, "agent_version", "python", "facts"}

All channels are void then; calls go on. The host opens channels with odd numbers, OPEN {"kind", …}:

| kind        | parameters                | host sends, then END | guest sends, then END                          |
|-------------|---------------------------|----------------------|------------------------------------------------|
| `tool`      | call_id, tool, timeout    | the input, JSON      | DATA "o"+output …, DATA "r"+result (JSON) …    |
| `interrupt` | call_id                   |                      |                                                |
| `put`       | path, mode                | the bytes            |                                                |
| `get`       | path, max_bytes           |                      | the bytes                                      |
| `remove`    | path                      |                      |                                                |
| `pack`      | path, recursive           |                      | a tree (`actors.guest.trees`)                  |
| `unpack`    | path, name                | a tree               | JSON: where it went                            |
| `process`   | process_id, argv, cwd, …  | standard input       | DATA "b", "o"+output, "e"+errors, "x"+JSON     |
| `resize`    | process_id, rows, columns |                      |                                                |
| `signal`    | process_id, signal        |                      |                                                |
| `connect`   | port                      | bytes                | DATA "c", then bytes                           |
| `stats`     |                           |                      | JSON                                           |
| `quiesce`   |                           |                      | JSON: everything stands still but the agent    |
| `wake`      |                           |                      | JSON: it goes on                               |
| `restored`  | hostname, machine_id, …   |                      | JSON: the guest is itself, and goes on         |

A `process` is hung up when its channel is void, and a `connect` closed: they belong to the host that asked.

What fails is answered with RESET {"error", "errno"}; an unknown kind too, so that a newer host can tell. Each side may
have `frames.WINDOW` bytes of DATA on the way in a channel until CREDIT gives some back. PING is answered with PONG.

The end of the stream is the end of the machine: nobody could speak to it again.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import threading

from actors.guest import frames, identity
from actors.guest.calls import Calls
from actors.guest.channel import Channel, ChannelVoid, Outbox
from actors.guest.egress import Egress
from actors.guest.guard import Guard, Limits
from actors.guest.processes import Children, offspring, pids
from actors.guest.programs import Programs, session_of
from actors.guest.quiet import Quiet
from actors.guest.toolbox import Toolbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROTOCOL = 1
VERSION = "1"
INPUT_MAX = 32 * 1024 * 1024
"""Bytes of JSON that a tool call's input may have."""
CHANNELS_MAX = 64
_READ_BYTES = 256 * 1024
_AT_ONCE = frozenset(("quiesce", "wake", "restored"))


class StreamEnded(Exception):
    """Raised when the host's end of the stream is closed."""


class Agent:
    """The main loop: reads frames, hands them on, reaps children, minds deadlines."""

    def __init__(self, stream_in: int, stream_out: int, *, workdir: str, env: Mapping[str, str], is_init: bool) -> None:
        """The two descriptors are ours alone, may be the same, and must not be inherited by anybody."""
        os.set_blocking(stream_in, False)
        os.set_blocking(stream_out, False)
        self._in = stream_in
        self._out = stream_out
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._decoder = frames.Decoder()
        self._outbox = Outbox(stream_out, self._wake)
        self._poll = select.poll()
        self._egress = Egress(self._outbox, self._poll)
        self._is_init = is_init
        self._channels: dict[int, Channel] = {}
        self._children = Children()
        self._toolbox = Toolbox(self._children, workdir, env)
        self._guard = Guard(self._toolbox, self._children, self._busy, whole_machine=is_init)
        self._calls = Calls(self._toolbox, self._started)
        self._quiet = Quiet(lambda: pids() - {os.getpid()} if is_init else self._own_offspring())
        self._programs = Programs(self._children, workdir, env, self._quiet, self._guard.watch)
        self._workdir = workdir
        self._kinds: dict[str, Callable[[Channel], None]] = {
            "tool": self._tool,
            "interrupt": self._interrupt,
            "stats": self._stats,
            "quiesce": self._quiesce,
            "wake": self._wake_all,
            "restored": self._restored,
            "put": _transfer,
            "get": _transfer,
            "remove": _transfer,
            "pack": self._tree,
            "unpack": self._tree,
            "process": self._process,
            "resize": self._programs.resize,
            "signal": self._programs.signal,
            "connect": _connect,
        }

    def serve(self) -> None:
        """Until the stream ends: raises `StreamEnded`; `frames.FrameError` where the host is no host of ours."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = self._poll
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._in, select.POLLIN)
        if self._is_init:
            self._egress.set_up()
        else:
            self._egress.error = "not the first process of a machine"
        while True:
            poll.modify(self._in, select.POLLIN)
            if self._outbox.waiting:
                both = self._out == self._in
                poll.register(self._out, select.POLLOUT | (select.POLLIN if both else 0))
            wait = self._calls.next_look()
            ready = dict(poll.poll(None if wait is None else wait * 1000 + 1))
            if self._wake_read in ready:
                self._awake()
            if self._outbox.waiting:
                self._outbox.flush()
            if self._egress.parked and not self._outbox.waiting:
                self._egress.unblocked()
            if not self._outbox.waiting and self._out != self._in and self._out in ready:
                poll.unregister(self._out)
            if ready.get(self._in, 0) & ~select.POLLOUT:
                self._read()
            for fd, events in ready.items():
                if fd not in (self._wake_read, self._in, self._out):
                    self._egress.ready(fd, events)
            self._calls.look_after()

    def close(self) -> None:
        """End what was started: for an agent that is not PID 1."""
        if self._toolbox.shell:
            self._toolbox.shell.kill(set())
        self._programs.close()

    def _busy(self) -> bool:
        """Whether something runs that was asked for, a call or a program."""
        return self._calls.running is not None or self._programs.running

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            # Full: it will wake anyhow.
            return

    def _started(self) -> None:
        """A call begins (in the tools' thread): the deadline is new, the watch is on."""
        self._guard.watch()
        self._wake()

    def _awake(self) -> None:
        os.read(self._wake_read, 4096)
        if self._children.reap():
            # More another time: the stream and the deadlines must not wait for it.
            self._wake()

    def _read(self) -> None:
        try:
            data = os.read(self._in, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise StreamEnded from error
        if not data:
            raise StreamEnded
        for kind, number, payload in self._decoder.feed(data):
            self._frame(kind, number, payload)
        self._egress.settle()

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == frames.PING:
            self._outbox.send(frames.PONG, frames.CONTROL, payload)
        elif kind == frames.HELLO:
            self._hello(json.loads(payload))
        elif kind == frames.OPEN:
            self._open(number, json.loads(payload))
        elif number % 2 == 0:
            self._egress.frame(kind, number, payload)
        elif channel := self._channels.get(number):
            if kind == frames.DATA:
                channel.deliver(payload)
            elif kind == frames.CREDIT:
                channel.grant(frames.CREDIT_PAYLOAD.unpack(payload)[0])
            elif kind == frames.END:
                channel.deliver_end()
            elif kind == frames.RESET:
                channel.void()
            if channel.over:
                del self._channels[number]

    def _hello(self, said: dict[str, object]) -> None:
        for channel in self._channels.values():
            channel.void()
        self._channels.clear()
        self._egress.void()
        limits = said.get("limits")
        if isinstance(limits, dict):
            self._guard.limits = Limits(int(limits.get("processes", 0)), int(limits.get("memory_bytes", 0)))
        answer = {
            "protocol": PROTOCOL,
            "nonce": said.get("nonce"),
            "agent_version": VERSION,
            "python": ".".join(map(str, sys.version_info[:3])),
            "facts": {
                "pid": str(os.getpid()),
                "kernel": os.uname().release,
                "machine": os.uname().machine,
                "egress": self._egress.error or "ready",
            },
        }
        self._outbox.send(frames.HELLO, frames.CONTROL, json.dumps(answer).encode())

    def _open(self, number: int, params: dict[str, object]) -> None:
        channel = Channel(number, params, self._outbox)
        for old in [old for old, known in self._channels.items() if known.over]:
            del self._channels[old]
        kind = params.get("kind")
        serve = self._kinds.get(kind) if isinstance(kind, str) else None
        if serve is None:
            channel.fail(f"this agent (version {VERSION}) knows no channel of kind {kind!r}")
        elif len(self._channels) >= CHANNELS_MAX:
            channel.fail(f"{CHANNELS_MAX} channels are open")
        elif kind in _AT_ONCE:
            # Not worth a thread, which takes longer to start; and nothing else is to happen meanwhile.
            _guarded(serve, channel)
        else:
            self._channels[number] = channel
            threading.Thread(target=_guarded, args=(serve, channel), daemon=True).start()

    def _tool(self, channel: Channel) -> None:
        params = channel.params
        given = json.loads(channel.body(INPUT_MAX))
        if self._quiet.kept:
            channel.fail("the guest is held for a snapshot", errno.EBUSY)
            return
        self._calls.ask(str(params["call_id"]), str(params["tool"]), given, float(str(params["timeout"])), channel)

    def _interrupt(self, channel: Channel) -> None:
        self._calls.interrupt(str(channel.params["call_id"]))
        self._wake()
        channel.send(b"", last=True)

    def _own_offspring(self) -> set[int]:
        """What the shell started, and the shell, and the programs: for an agent that is not PID 1."""
        found = {pid for leader in self._programs.pids for pid in session_of(leader)}
        if shell := self._toolbox.shell:
            found |= {shell.pid} | {process.pid for process in offspring(shell.pid, set())}
        return found

    def _quiesce(self, channel: Channel) -> None:
        try:
            stopped = self._quiet.begin(lambda: self._calls.running is not None)
        except OSError as error:
            channel.fail(error.strerror or "not quiet", error.errno or 0)
            return
        # Until `wake` nothing is sent that was not asked for: no frame may lie in the stream half.
        self._egress.hold(True)
        channel.send(json.dumps({"stopped": stopped}).encode(), last=True)

    def _wake_all(self, channel: Channel) -> None:
        self._egress.hold(False)
        channel.send(json.dumps({"woken": self._quiet.end()}).encode(), last=True)

    def _restored(self, channel: Channel) -> None:
        params = channel.params
        try:
            told = identity.become(
                str(params["hostname"]),
                str(params["machine_id"]),
                bytes.fromhex(str(params["entropy"])),
                int(str(params["time_ns"])),
                fresh=params["fresh"] is True,
            )
            self._egress.restore()
        except OSError as error:
            channel.fail(f"the guest can't be made itself: {error}", error.errno or 0)
            return
        self._egress.hold(False)
        self._quiet.end()
        channel.send(json.dumps(told).encode(), last=True)

    def _process(self, channel: Channel) -> None:
        if self._quiet.kept:
            raise OSError(errno.EBUSY, "the guest is held for a snapshot")
        self._programs.serve(channel)

    def _tree(self, channel: Channel) -> None:
        from actors.guest import trees

        (trees.pack if channel.params["kind"] == "pack" else trees.unpack)(channel, self._workdir)

    def _stats(self, channel: Channel) -> None:
        from actors.guest import census, processes

        running = self._calls.running
        shown = {
            "processes": len(processes.pids()),
            "memory_bytes": census.used_memory(),
            "running": running.call_id if running else None,
        }
        channel.send(json.dumps(shown).encode(), last=True)


def _transfer(channel: Channel) -> None:
    from actors.guest import transfers

    transfers.serve(channel)


def _connect(channel: Channel) -> None:
    from actors.guest import ports

    ports.connect(channel)


def _guarded(serve: Callable[[Channel], None], channel: Channel) -> None:
    """Serve a channel in a thread; a request that can't be understood is told, not fatal."""
    try:
        serve(channel)
    except ChannelVoid:
        return
    except OSError as error:
        channel.fail(error.strerror or "i/o error", error.errno)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        channel.fail(f"bad request: {error!r}")
