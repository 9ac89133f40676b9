"""The supervisor: a small process for each machine, which holds the machine's stdio and outlives its host.

Standard library alone; a fork of the nursery (`actors.machines.nursery`), in the machine's folder. It reads
`orders.json` (`Orders` in `actors.machines.container`), creates the container, and says `created` or `error …` on its
line to the host. Then it waits for one JSON object on a line, `{"image": folder or null}`, brings the container to life
by it, and from then on the line is the first host's end of the guest's stream. Later hosts connect to the unix socket
`sock`.

- Only whole frames pass, in both directions, so a host may come and go at any byte.
- One host at a time: a new one takes the place of the old.
- With no host there, what the guest says is dropped, so the guest never blocks on an absent reader. The guest agent
  knows what to keep (see `actors.guest.agent`).
- While it lives it holds a lock on the file `lock`, from which anybody can learn its process id, and that it lives.
- A container whose host is gone before the order is removed, folders and all.
- SIGTERM ends the machine at once, also one that is still being started.
- When the machine ends, it clears up and writes `exit.json`, then lets go of the host and of the lock. A child of its
  own removes the control groups, which takes longer than anybody should wait.

The container's processes are those of its cradle (`actors.machines.cradle`), a child that the kernel ends with it.

It dies with nobody: own session, and a parent that has ended already.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import socket
import time

from actors.machines import cgroups, container
from actors.machines.container import Orders, clear_up, remove_groups
from actors.machines.relay import Client, Relay

_ORDER_BYTES = 65536


def write_exit(code: int, fault: str, *, oom: bool, cleared: bool) -> None:
    """Say how the machine ended, and whether all that it left is gone; all at once or not at all."""
    reason = "exited"
    if os.path.exists("killed"):
        reason = "killed"
    elif oom:
        reason = "out_of_memory"
    told = {"reason": reason, "exit_code": code, "detail": fault, "ended_at": time.time(), "cleared": cleared}
    with open("exit.json.new", "w", encoding="utf-8") as file:
        json.dump(told, file)
    os.replace("exit.json.new", "exit.json")


def supervise(orders: Orders, line: socket.socket) -> None:
    """The life of one container, and of the machine that it may become."""
    # Who finds us by the lock may end us by a signal; it is to find a machine that we can end.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # A record lock: others can ask the kernel who holds it, and it goes when we do.
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("sock")
    listener.listen(8)
    listener.setblocking(False)
    try:
        pid, stdin, stdout, stderr = container.create(orders)
    except (OSError, ValueError) as error:
        clear_up(orders)
        cgroups.remove(str(orders["group"]))
        line.sendall(f"error {error}\n".encode())
        return
    order, rest = _wait_for_order(pid, line)
    if order is None:
        clear_up(orders)
        cgroups.remove(str(orders["group"]))
        container.discard(orders)
        return
    line.setblocking(False)
    relay = Relay(str(orders["group"]), listener, pid, stdin, stdout, stderr, Client(line))
    relay.animate(orders, order["image"], rest)
    code = relay.run()
    oom = cgroups.oom_kills(str(orders["group"])) > 0
    cleared = False
    try:
        clear_up(orders)
        cleared = True
    except OSError as error:
        relay.fault = relay.fault or f"could not clear up: {error}"
    write_exit(code, relay.fault, oom=oom, cleared=cleared)
    relay.close()
    remove_groups(orders)


def _wait_for_order(pid: int, line: socket.socket) -> tuple[dict[str, str | None] | None, bytes]:
    """The order, and what came after it; None where it will not come, or the container is gone before."""
    said = b""
    try:
        line.sendall(b"created\n")
    except OSError:
        return None, b""
    waiting = selectors.DefaultSelector()
    sandbox = os.pidfd_open(pid)
    waiting.register(line, selectors.EVENT_READ)
    waiting.register(sandbox, selectors.EVENT_READ)
    while b"\n" not in said:
        if any(key.fd == sandbox for key, _ in waiting.select()):
            return None, b""
        data = line.recv(_ORDER_BYTES)
        if not data:
            return None, b""
        said += data
    os.close(sandbox)
    order, _, rest = said.partition(b"\n")
    told: dict[str, str | None] = json.loads(order)
    return told, rest


def main(line: socket.socket) -> None:
    """Supervise the machine of the working directory."""
    try:
        orders = container.load_orders()
    except (OSError, ValueError) as error:
        line.sendall(f"error {error}\n".encode())
        return
    supervise(orders, line)
