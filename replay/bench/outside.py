"""A server outside of this machine, as far as its kernel is concerned: in a network namespace of its own.

Joined to this one by a pair of veths, at an address that looks public, since a sandbox reaches no other. Needs root and
`ip` of iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from replay.bench.frame import BenchImpossible

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "outside.example.com"
PORT = 9000
_SERVER = f"""
import os, socket
listener = socket.create_server(("0.0.0.0", {PORT}), backlog=512)
print("ready", flush=True)
piece = bytes(1 << 20)
while True:
    line, _ = listener.accept()
    if os.fork():
        line.close()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]: pass
        except ChildProcessError: pass
        continue
    # Eight bytes: how many the client wants.
    left = int.from_bytes(line.recv(8, socket.MSG_WAITALL), "big")
    while left > 0:
        left -= line.send(piece[:left])
    line.shutdown(socket.SHUT_WR)
    try:
        line.recv(1)
    except ConnectionResetError:
        pass
    os._exit(0)
"""


@contextmanager
def outside() -> Iterator[str]:
    """Its address, while the server runs. Raises `BenchImpossible`."""
    if shutil.which("ip") is None:
        raise BenchImpossible("egress", "there is no `ip`, which makes its network", "apt-get install iproute2")
    number = os.getpid() % 2**14
    name, network = f"hgbench{os.getpid()}", f"44.129.{number >> 6}.{(number & 63) * 4}"
    first, last = network.rsplit(".", 1)
    host, there = f"{first}.{int(last) + 1}", f"{first}.{int(last) + 2}"
    with ExitStack() as stack:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "outside", "netns", name)
        stack.callback(_ip, "link", "del", name)
        _ip("address", "add", f"{host}/30", "dev", name)
        _ip("-n", name, "address", "add", f"{there}/30", "dev", "outside")
        _ip("link", "set", name, "up")
        _ip("-n", name, "link", "set", "outside", "up")
        command = ["ip", "netns", "exec", name, sys.executable, "-I", "-c", _SERVER]
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(server.kill)
        assert server.stdout is not None
        server.stdout.readline()
        yield there


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
