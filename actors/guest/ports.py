"""Connections from the host to a port of the guest's loopback: bytes both ways, each end closed on its own."""

from __future__ import annotations

import threading

from actors.guest.channel import ChannelVoid

try:
    import _socket  # the `socket` module around it costs ten times the memory of this
except ImportError:
    import socket as _socket  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from actors.guest.channel import Channel

CONNECTED = b"c"
"""The first byte to the host; all others are the connection's."""
_READ_BYTES = 64 * 1024


def connect(channel: Channel) -> None:
    """`{port}`: connect, then carry bytes until both ends are closed. Raises `OSError` where nothing listens."""
    port = int(str(channel.params["port"]))
    if not 0 < port < 65536:
        raise ValueError("no port")
    connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        connection.connect(("127.0.0.1", port))
        channel.watch(lambda: _cut(connection))
        channel.send(CONNECTED)
        back = threading.Thread(target=_carry_back, args=(connection, channel), name="port", daemon=True)
        back.start()
        try:
            _carry_in(connection, channel)
        except ChannelVoid:
            _cut(connection)
        back.join()
    finally:
        connection.close()


def _carry_in(connection: _socket.socket, channel: Channel) -> None:
    while data := channel.take():
        try:
            connection.sendall(data)
        except OSError as error:
            channel.fail(error.strerror or "closed", error.errno)
            _cut(connection)
            return
    _cut(connection, _socket.SHUT_WR)


def _carry_back(connection: _socket.socket, channel: Channel) -> None:
    try:
        while data := connection.recv(_READ_BYTES):
            channel.wait_room()
            channel.send(data)
        channel.send(b"", last=True)
    except OSError as error:
        channel.fail(error.strerror or "closed", error.errno)
    except ChannelVoid:
        _cut(connection)


def _cut(connection: _socket.socket, how: int = _socket.SHUT_RDWR) -> None:
    """Close one direction, or both: whoever waits in it returns. No error where the other end did it first."""
    try:
        connection.shutdown(how)
    except OSError:
        return
