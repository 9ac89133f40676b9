"""Files in and out of the guest, asked for by the host, each in a thread of its own."""

from __future__ import annotations

import errno
import os
import shutil
from stat import S_ISREG

from actors.guest.channel import ChannelVoid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from actors.guest.channel import Channel

_CHUNK_BYTES = 64 * 1024


def put(channel: Channel) -> None:
    """`{path, mode}`, then the bytes: the file is there whole, or as it was."""
    path, mode = str(channel.params["path"]), int(str(channel.params["mode"]))
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    part = os.path.join(folder, f".hourglass-{channel.number}-{os.urandom(4).hex()}")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            while data := channel.take():
                file.write(data)
            os.fchmod(file.fileno(), mode & 0o7777)
        os.replace(part, path)
    except BaseException:
        if os.path.lexists(part):
            os.unlink(part)
        raise
    channel.send(b"", last=True)


def get(channel: Channel) -> None:
    """`{path, max_bytes}`: the bytes of a regular file."""
    path, limit = str(channel.params["path"]), int(str(channel.params["max_bytes"]))
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        left = limit
        while data := file.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(data)
            if left < 0:
                raise OSError(errno.EFBIG, f"file is larger than {limit} bytes")
            channel.wait_room()
            channel.send(data)
    channel.send(b"", last=True)


def remove(channel: Channel) -> None:
    """`{path}`: a folder and all below it, no link followed; a link there is itself removed."""
    path = str(channel.params["path"])
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.lexists(path):
        shutil.rmtree(path)
    channel.send(b"", last=True)


KINDS = {"put": put, "get": get, "remove": remove}


def serve(channel: Channel) -> None:
    """Do what the channel was opened for; errors are told on it."""
    try:
        KINDS[str(channel.params["kind"])](channel)
    except ChannelVoid:
        return
    except OSError as error:
        channel.fail(error.strerror or "i/o error", error.errno)
    except (KeyError, ValueError) as error:
        channel.fail(f"bad request: {error!r}")
