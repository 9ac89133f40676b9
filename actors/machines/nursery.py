"""The nursery: a small process that starts others for its host, so that the host itself never has to fork.

To fork a process as large as a host stops all of it, event loop included, until the child has got a CPU: 20 to 80 ms
on a busy node, which is what a heartbeat would wait. The nursery is a few MiB, knows the supervisor's code already, and
makes each supervisor (`actors.machines.supervisor`) by a mere fork of itself.

A program by itself, standard library alone: `python3 -I -S -E nursery.py`, with one end of a `SOCK_SEQPACKET` pair as
standard input. Each message is a request, JSON, with the file descriptor on which it is answered:

| request | what is done |
| --- | --- |
| `{"supervise": folder}` | a supervisor begins in that folder; the descriptor is its line to the host |
| `{"run": [command …]}` | the command is run; answered with `{"code", "said"}`, its last words bounded |

It ends when its host does. Supervisors in whose machine a sandbox runs go on; the others see their line end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import traceback

if __name__ == "__main__":
    # `-I -S` leaves only the standard library; our own packages come last, so that they can't shadow it.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from actors.machines import cgroups, supervisor
from actors.machines.birth import ENVIRONMENT

REQUEST_BYTES = 65536
SAID_BYTES = 4000


def run(command: list[str]) -> dict[str, object]:
    """Run a command to its end; its exit code, and the end of what it printed."""
    with tempfile.TemporaryFile() as said:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, said.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, said.fileno(), 2),
        ]
        try:
            pid = os.posix_spawnp(command[0], command, ENVIRONMENT, file_actions=actions)
        except OSError as error:
            return {"code": 127, "said": str(error)}
        finally:
            os.close(null)
        _, status = os.waitpid(pid, 0)
        said.seek(max(said.seek(0, os.SEEK_END) - SAID_BYTES, 0))
        return {"code": os.waitstatus_to_exitcode(status), "said": said.read().decode("utf-8", "replace")}


def child(request: dict[str, object], line: socket.socket) -> None:
    """What a fork of the nursery does for one request."""
    if "run" in request:
        command = request["run"]
        assert isinstance(command, list)
        line.sendall(json.dumps(run([str(part) for part in command])).encode() + b"\n")
    else:
        os.chdir(str(request["supervise"]))
        try:
            supervisor.main(line)
        except BaseException:
            # The machine's folder is where somebody will look for the reason.
            with open("supervisor.log", "w", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            raise


def serve(host: socket.socket) -> None:
    """Until the host is gone."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(host, REQUEST_BYTES, 1)
        if not data:
            return
        line = socket.socket(fileno=descriptors[0])
        # Twice: what it does is a child of nobody that a host, or Ray, could end.
        pid = os.fork()
        if pid:
            line.close()
            os.waitpid(pid, 0)
            continue
        if os.fork():
            os._exit(0)
        status = 1
        try:
            host.close()
            os.setsid()
            child(json.loads(data), line)
            status = 0
        finally:
            # Never back into the loop above, whatever went wrong.
            os._exit(status)


def main() -> int:
    """Serve the host on standard input."""
    host = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    # A host goes before its machines, and what it starts would go with it.
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), 0))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        cgroups.leave_own_group()
    except OSError as error:
        # Without it a service manager that ends our host's group ends the machines too, which costs their memory alone.
        os.write(2, f"stays in the control group of its host: {error}\n".encode())
    serve(host)
    return 0


if __name__ == "__main__":
    sys.exit(main())
