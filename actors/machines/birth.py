"""How a container that waits comes to life: by a command of `runsc`, or by what that command would ask of its sandbox.

The command is a program of its own that starts, reads its state and asks: 15 to 20 ms of a core. Of a sandbox whose
release is known (`actors.machines.control.KNOWN`) it is asked on the control socket instead: first for the loopback
interface, which no image has, then for the restore, with the image's files as descriptors. Requests and answers are
JSON (`pkg/urpc` and `runsc/boot/controller.go` of gVisor, release 20240729).

Standard library alone, as for all that a supervisor imports.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat

from actors.machines import cgroups, idmap

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
SHOWING = ("unshare", "--mount-proc", "--")
"""What a command is begun by, for `/proc` to show the processes of the namespace that it is in."""
LOG = "runsc.log"
_SAID_BYTES = 4000
_ANSWER_BYTES = 65536

_LOOPBACK = (
    ("127.0.0.1", 8, "127.0.0.0", "/wAAAA=="),
    ("0.0.0.1", 1, "0.0.0.0", "gAAAAA=="),
    ("128.0.0.1", 1, "128.0.0.0", "gAAAAA=="),
    ("::1", 128, "::1", "/////////////////////w=="),
)
"""Address, length of its prefix, and what is routed to it: network and mask, the mask in base64.

Those that the guest agent adds are among them (`actors.guest.addresses`): a restore fails where the address of a
connection is not there.
"""
_NO_GATEWAY = {"Route": {"Destination": {"IP": "", "Mask": None}, "Gateway": ""}, "Name": ""}
_REQUESTS = (
    {
        "method": "Network.CreateLinksAndRoutes",
        "arg": {
            "LoopbackLinks": [
                {
                    "Name": "lo",
                    "Addresses": [{"Address": address, "PrefixLen": length} for address, length, _, _ in _LOOPBACK],
                    "Routes": [
                        {"Destination": {"IP": network, "Mask": mask}, "Gateway": ""}
                        for _, _, network, mask in _LOOPBACK
                    ],
                }
            ],
            "Defaultv4Gateway": _NO_GATEWAY,
            "Defaultv6Gateway": _NO_GATEWAY,
        },
    },
    {"method": "containerManager.Restore", "arg": {"HavePagesFile": True, "HaveDeviceFile": False}},
)
_FILES = ("checkpoint.img", "pages_meta.img", "pages.img")
"""Of an image, in the order in which they are handed over with the last request."""


class Command:
    """A command of `runsc` about the container of a cradle. Raises `OSError` where it can't be run."""

    def __init__(self, command: list[str], cradle: int) -> None:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._pid = spawn(command, cradle, null, log)
        finally:
            os.close(null)
            os.close(log)
        self.fd = os.pidfd_open(self._pid)
        """Readable when there is something to hear."""

    def hear(self) -> str | None:
        """After `fd` was readable, or the machine's end: what went wrong, "" for nothing, None while it goes on."""
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return f"runsc failed with exit code {code}: {_last_words()}" if code != 0 else ""

    def cut_short(self) -> None:
        """Have it end soon; `hear` is still to be called."""
        cgroups.end_process(self._pid)

    def close(self) -> None:
        """Let go of it, once there is nothing more to hear."""
        os.close(self.fd)


class Restore:
    """A restore asked of the sandbox itself. Raises `OSError` where it can't be asked."""

    def __init__(self, address: str, image: str) -> None:
        self._files: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._files = [os.open(f"{image}/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in _FILES]
            self._socket.connect(address)
            self._socket.setblocking(False)
            self._asked = 0
            self._answer = b""
            self._ask()
        except BaseException:
            self.close()
            raise
        self.fd = self._socket.fileno()

    def hear(self) -> str | None:
        """See `Command.hear`."""
        try:
            said = self._socket.recv(_ANSWER_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            return f"the restore failed: {error}"
        self._answer += said
        try:
            answer = json.loads(self._answer)
        except (ValueError, RecursionError):
            if said and len(self._answer) < _ANSWER_BYTES:
                return None
            return f"the restore failed: its sandbox {'makes no sense' if said else 'ended'}"
        if not isinstance(answer, dict) or answer.get("success") is not True:
            reason = answer.get("err") if isinstance(answer, dict) else answer
            return f"the restore failed: {printable(str(reason)[:_SAID_BYTES])}"
        if self._asked == len(_REQUESTS):
            return ""
        try:
            self._ask()
        except OSError as error:
            return f"the restore failed: {error}"
        return None

    def cut_short(self) -> None:
        """See `Command.cut_short`: it ends with its sandbox."""

    def close(self) -> None:
        """See `Command.close`."""
        self._socket.close()
        while self._files:
            os.close(self._files.pop())

    def _ask(self) -> None:
        request = _REQUESTS[self._asked]
        self._asked += 1
        self._answer = b""
        files = self._files if self._asked == len(_REQUESTS) else []
        socket.send_fds(self._socket, [json.dumps(request).encode()], files)


Birth = Command | Restore


def restorer(address: str, image: str, command: list[str], cradle: int) -> Birth:
    """A restore, asked of the sandbox that listens at `address`, or by the command where nothing listens there."""
    return Restore(address, image) if _is_socket(address) else Command(command, cradle)


def spawn(command: list[str], cradle: int, stdin: int, said: int) -> int:
    """Begin a command of `runsc` among the processes of a cradle, as a child of ours; its process id.

    The command knows the sandbox by the process id that it has there, and looks for it in `/proc`.
    """
    command = [*SHOWING, *command]
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, said, said))]
    here = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{cradle}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            idmap.join_pid_namespace(there)
            return os.posix_spawnp(
                command[0], command, ENVIRONMENT, file_actions=actions, setsigdef=[signal.SIGPIPE], setsigmask=[]
            )
        finally:
            os.close(there)
            idmap.join_pid_namespace(here)
    finally:
        os.close(here)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def printable(said: str) -> str:
    """The text, with nothing in it that steers a terminal."""
    return "".join(char if char.isprintable() else " " for char in said).strip()


def _last_words() -> str:
    """The end of what the command said."""
    with open(LOG, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _SAID_BYTES, 0))
        return printable(file.read().decode("utf-8", "replace"))
