"""The guest's way out: no network card, but a channel to the host for each connection.

Every IPv4 address is the loopback device's (`actors.guest.addresses`), and whatever is not for 127.0.0.0/8 comes to the
agent (`actors.guest.netfilter`). Names are resolved to addresses that stand for them (`actors.guest.names`), so a
program connects with no proxy setting, on any port. The agent opens, with even numbers::

| kind       | parameters | host answers                              | both send                              |
|------------|------------|-------------------------------------------|----------------------------------------|
| `resolve`  | name       | END: it may be reached; RESET: it may not |                                        |
| `egress`   | host, port | DATA "c": connected; RESET: refused       | the connection's bytes, END, RESET     |
| `datagram` | host       | RESET, always                             |                                        |

`host` is a name, or the address that was meant. The host decides: nothing here is more than a convenience to programs.

All of it is done by the agent's main loop, with sockets that do not block; nothing but what a channel has credit for is
taken from a program, and nothing while the stream is full, so that tool calls are not held up. While the guest is quiet
it stands still. Connections end where the host is another one.
"""

from __future__ import annotations

import errno
import json
import os
import select
import time
from collections import deque
from itertools import islice
from struct import pack

from actors.guest import addresses, names, netfilter, segments
from actors.guest.frames import CREDIT, CREDIT_PAYLOAD, DATA, END, MAX_PAYLOAD, OPEN, RESET, WINDOW

try:
    import _socket  # the `socket` module around it costs ten times the memory of this
except ImportError:
    import socket as _socket  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from actors.guest.channel import Outbox

CONNECTIONS_MAX = 256
"""Connections at once; more wait to be accepted."""
QUESTIONS_MAX = 64
"""Names that the host is being asked for; more are not heard, and asked again by whoever asks."""
RESOLVER = "nameserver 127.0.0.1\n"
_RESOLVER_FILE = "/etc/resolv.conf"
_CONNECTED = b"c"
_ORIGINAL_DESTINATION = 80
_DATAGRAM_BYTES = 4096
_TOLD_AGAIN_S = 5.0
_TOLD_MAX = 256
_BACKLOG = 128
_PIECES = 16
_KNOWN_S = 2.0
"""How long a name counts as allowed once the host has said so. What is connected to is asked for each time."""
_LINGER_NOT = pack("ii", 1, 0)
_LOCALHOST = b"\x7f\0\0\1"


class Connection:
    """A program's connection, and the channel that carries it."""

    def __init__(
        self, egress: Egress, number: int, line: _socket.socket, ends: tuple[segments.End, segments.End]
    ) -> None:
        self._egress = egress
        self._number = number
        self._line = line
        self.ends = ends
        """What the program connected to, and its own end."""
        self.fd = line.fileno()
        self._credit = WINDOW
        self._inbox: deque[memoryview] = deque()
        self._taken = 0
        self._connected = False
        self._parked = False
        self._program_ended = self._host_ended = self._shut = False
        self._mask = 0

    def frame(self, kind: int, payload: bytes) -> None:
        """The host says something."""
        if kind == DATA:
            if not self._connected:
                payload = payload.removeprefix(_CONNECTED)
                self._connected = True
            if payload:
                self._inbox.append(memoryview(payload))
        elif kind == CREDIT:
            self._credit += CREDIT_PAYLOAD.unpack(payload)[0]
        elif kind == END:
            self._host_ended = True
        else:
            self.abort()

    def settle(self) -> None:
        """Do what the frames that came at once lead to: in one go, since each call of the kernel costs the same."""
        if self.fd >= 0 and (self._inbox or self._host_ended):
            self._write()
        self.watch()

    def ready(self, events: int) -> None:
        """The program's end has something, or takes something, or is gone."""
        if self._egress.held:
            return  # what is heard of it was there before the guest was made quiet
        if events & select.POLLOUT:
            self._write()
        if events & ~select.POLLOUT and self.fd >= 0:
            if self._program_ended:
                # It said its end before: this is a reset.
                self._fail(OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            else:
                self._read()
        self.watch()

    def unpark(self) -> None:
        """The stream takes more again."""
        self._parked = False
        self.watch()

    def watch(self) -> None:
        """Have the kernel say what matters now, and nothing else."""
        if self.fd < 0:
            return
        if self._program_ended and self._shut:
            self.close()
            return
        mask = 0
        if not self._egress.held:
            if not self._program_ended and self._credit > 0 and not self._parked:
                mask |= select.POLLIN
            if self._inbox:
                mask |= select.POLLOUT
        if mask != self._mask:
            if not mask:
                self._egress.poll.unregister(self.fd)  # one that is hung up would be told for ever
            else:
                self._egress.poll.register(self.fd, mask)
            self._mask = mask

    def abort(self) -> None:
        """End it as a connection ends that is reset."""
        if self.fd >= 0:
            self._line.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _LINGER_NOT)
            self.close()

    def close(self) -> None:
        """Let go of it."""
        if self.fd < 0:
            return
        if self._mask:
            self._egress.poll.unregister(self.fd)
        self._egress.forget(self._number, self.fd)
        self.fd = -1
        self._inbox.clear()
        self._line.close()

    def _read(self) -> None:
        if self._credit <= 0:
            return  # to read nothing would look like the end
        outbox = self._egress.outbox
        if outbox.waiting:
            self._parked = True
            self._egress.parked.append(self)
            return
        try:
            data = self._line.recv(min(MAX_PAYLOAD, self._credit))
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if data:
            self._credit -= len(data)
            outbox.send(DATA, self._number, data)
        else:
            self._program_ended = True
            outbox.send(END, self._number)

    def _write(self) -> None:
        if self._egress.held:
            return
        try:
            while self._inbox:
                sent = self._line.sendmsg(list(islice(self._inbox, _PIECES)))
                self._taken += sent
                while sent and sent >= len(self._inbox[0]):
                    sent -= len(self._inbox.popleft())
                if sent:
                    self._inbox[0] = self._inbox[0][sent:]
                    break
            if self._host_ended and not self._inbox and not self._shut:
                self._shut = True
                self._line.shutdown(_socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
            return
        # In large pieces, so that credit is not half of the traffic.
        if self._taken >= WINDOW // 2:
            self._egress.outbox.send(CREDIT, self._number, CREDIT_PAYLOAD.pack(self._taken))
            self._taken = 0

    def _fail(self, error: OSError) -> None:
        if self._program_ended and self._shut:
            self.close()
            return
        said = json.dumps({"error": (error.strerror or "closed")[:200], "errno": error.errno})
        self._egress.outbox.send(RESET, self._number, said.encode())
        self.abort()


class Egress:
    """All connections of a guest, and its resolver. Of the main loop alone."""

    def __init__(self, outbox: Outbox, poll: select.poll) -> None:
        self.outbox = outbox
        self.poll = poll
        self.held = False
        """Whether all of it stands still, for a snapshot."""
        self.parked: list[Connection] = []
        """Those that wait until the stream takes more."""
        self.error = ""
        """Why there is no way out, where there is none."""
        self._names = names.Names()
        self._next = 2
        self._connections: dict[int, Connection] = {}
        self._by_fd: dict[int, Connection] = {}
        self._asking: dict[str, int] = {}
        self._questions: dict[int, list[tuple[names.Question, tuple[str, int]]]] = {}
        """Those that wait for the host's word, which is the same for all of a name."""
        self._known: dict[str, float] = {}
        self._touched: set[Connection] = set()
        self._lost: list[tuple[segments.End, segments.End]] = []
        """Of the connections that ended with the last host: what programs have of those does not know it, where this
        memory was brought back."""
        self._told: dict[str, float] = {}
        self._watched: set[int] = set()

    def set_up(self) -> None:
        """Become the way out of this machine. What can't be done is kept in `error`: the machine runs all the same."""
        try:
            self._listener = self._bound(_socket.SOCK_STREAM)
            self._listener.listen(_BACKLOG)
            self._datagrams = self._bound(_socket.SOCK_DGRAM)
            self._resolver = self._bound(_socket.SOCK_DGRAM, 53)
            self.restore()
            _write_resolver_file()
        except OSError as error:
            self.error = f"{error.strerror or error}"[:200]
            return
        self.watch()

    def restore(self) -> None:
        """What the kernel loses when its memory is brought back; everything else in the guest stands still meanwhile.

        Raises `OSError`.
        """
        lost, self._lost = self._lost, []
        if self.error:
            return
        addresses.add()
        segments.provoke(lost)
        netfilter.redirect(tcp=_port(self._listener), udp=_port(self._datagrams), names=_port(self._resolver))

    # --- the stream -------------------------------------------------------------------------------------------------

    def frame(self, kind: int, number: int, payload: bytes) -> None:
        """A frame of one of our channels. What is over already is passed over."""
        if questions := self._questions.pop(number, None):
            name = questions[0][0].name
            self._asking.pop(name, None)
            if kind == END:
                if len(self._known) >= names.NAMES_MAX:
                    self._known.clear()
                self._known[name] = time.monotonic() + _KNOWN_S
            for question, asker in questions:
                self._answer(question, asker, allowed=kind == END)
        elif connection := self._connections.get(number):
            connection.frame(kind, payload)
            self._touched.add(connection)

    def settle(self) -> None:
        """All frames that there are were handed over."""
        touched, self._touched = self._touched, set()
        for connection in touched:
            connection.settle()

    def void(self) -> None:
        """The host is another one: whoever asks for a name asks again, and connections are reset."""
        self._questions.clear()
        self._asking.clear()
        self._known.clear()
        self._lost = [connection.ends for connection in self._connections.values()]
        for connection in list(self._connections.values()):
            connection.abort()

    def hold(self, held: bool) -> None:
        """Stand still, or go on."""
        self.held = held
        self.watch()
        for connection in list(self._connections.values()):
            connection.watch()

    def unblocked(self) -> None:
        """The stream takes more again."""
        parked, self.parked = self.parked, []
        for connection in parked:
            connection.unpark()

    def forget(self, number: int, fd: int) -> None:
        """A connection is over."""
        self._connections.pop(number, None)
        self._by_fd.pop(fd, None)
        self.watch()

    # --- the guest --------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Hear programs where there is room for what they ask."""
        if self.error:
            return
        wanted = set()
        if not self.held:
            wanted = {self._datagrams.fileno(), self._resolver.fileno()}
            if len(self._connections) < CONNECTIONS_MAX:
                wanted.add(self._listener.fileno())
        for fd in wanted - self._watched:
            self.poll.register(fd, select.POLLIN)
        for fd in self._watched - wanted:
            self.poll.unregister(fd)
        self._watched = wanted

    def ready(self, fd: int, events: int) -> None:
        """A descriptor that the loop knows nothing of has something."""
        if connection := self._by_fd.get(fd):
            connection.ready(events)
        elif fd in self._watched:
            try:
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._resolver.fileno():
                    self._resolve()
                else:
                    self._refuse_datagram()
            except OSError:
                # Nothing there after all, or a connection that was given up while it waited.
                return

    def _open(self, **params: object) -> int:
        number = self._next
        self._next += 2
        self.outbox.send(OPEN, number, json.dumps(params).encode())
        return number

    def _accept(self) -> None:
        # The C half of it, which is all that there is here.
        fd, program = self._listener._accept()  # type: ignore[attr-defined]
        line = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, fileno=fd)
        line.setblocking(False)
        try:
            meant = line.getsockopt(_socket.SOL_IP, _ORIGINAL_DESTINATION, 16)
            line.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        except OSError:
            # Not redirected: it was meant for this very port, which serves nobody.
            line.close()
            return
        port, address = int.from_bytes(meant[2:4], "big"), meant[4:8]
        literal = ".".join(map(str, address))
        number = self._open(kind="egress", host=self._names.name(address) or literal, port=port)
        connection = Connection(self, number, line, ((literal, port), program))
        self._connections[number] = self._by_fd[connection.fd] = connection
        connection.watch()
        self.watch()

    def _resolve(self) -> None:
        data, asker = self._resolver.recvfrom(_DATAGRAM_BYTES)
        question = names.parse(data)
        if question is None:
            return
        if question.name in ("localhost", os.uname().nodename.lower()):
            self._reply(question.answer(names.NOTHING_WRONG, _LOCALHOST if _asks_address(question) else b""), asker)
        elif (meant := self._names.reverse(question.name)) is not None:
            self._reply(question.answer(names.NOTHING_WRONG, target=meant), asker)
        elif "." not in question.name:
            # A single label is somebody's search for a suffix, and never a name of the outside.
            self._reply(question.answer(names.NO_NAME), asker)
        elif self._known.get(question.name, 0.0) > time.monotonic():
            self._answer(question, asker, allowed=True)
        elif (number := self._asking.get(question.name)) is not None:
            if len(self._questions[number]) < QUESTIONS_MAX:
                self._questions[number].append((question, asker))
        elif len(self._questions) < QUESTIONS_MAX:
            number = self._open(kind="resolve", name=question.name)
            self._asking[question.name] = number
            self._questions[number] = [(question, asker)]

    def _answer(self, question: names.Question, asker: tuple[str, int], *, allowed: bool) -> None:
        if not allowed:
            self._reply(question.answer(names.NO_NAME), asker)
        elif _asks_address(question):
            self._reply(question.answer(names.NOTHING_WRONG, self._names.address(question.name)), asker)
        else:
            self._reply(question.answer(names.NOTHING_WRONG), asker)

    def _reply(self, data: bytes, asker: tuple[str, int]) -> None:
        try:
            self._resolver.sendto(data, asker)
        except OSError:
            # Whoever asked is gone, or asks again.
            return

    def _refuse_datagram(self) -> None:
        """Tell the host of it; on this loopback a datagram comes from the address that it was meant for."""
        _, (host, _) = self._datagrams.recvfrom(_DATAGRAM_BYTES)
        now = time.monotonic()
        if host == "127.0.0.1" or now - self._told.get(host, -_TOLD_AGAIN_S) < _TOLD_AGAIN_S:
            return
        if len(self._told) >= _TOLD_MAX:
            self._told.clear()
        self._told[host] = now
        self._open(kind="datagram", host=host)

    @staticmethod
    def _bound(kind: int, port: int = 0) -> _socket.socket:
        line = _socket.socket(_socket.AF_INET, kind | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        line.bind(("127.0.0.1", port))
        return line


def _port(line: _socket.socket) -> int:
    return int(line.getsockname()[1])


def _asks_address(question: names.Question) -> bool:
    return question.type in (names.TYPE_A, names.TYPE_ANY)


def _write_resolver_file() -> None:
    """Have programs ask us. A file that does so already stays, whatever else it says."""
    try:
        with open(_RESOLVER_FILE, encoding="utf-8", errors="replace") as file:
            if RESOLVER.strip() in file.read(4096).splitlines():
                return
    except OSError:
        pass  # none, or one that can't be read: it is replaced
    fresh = f"{_RESOLVER_FILE}.new"
    with open(fresh, "w", encoding="ascii") as file:
        file.write(RESOLVER)
    os.replace(fresh, _RESOLVER_FILE)
