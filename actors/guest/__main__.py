"""Start the agent: `python3 -I -S -B .../actors/guest/__main__.py [--workdir DIR]`.

The stream is standard input and output. Both are moved away at once: no program of a tool may ever hold them.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WORKDIR = "/workspace"
PR_CAPBSET_DROP = 24
AGENT_ONLY = (12, 13, 21, 24, 25)
"""CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_SYS_RESOURCE, CAP_SYS_TIME: for a machine's first process alone, and
not for its programs."""


def take_stream() -> tuple[int, int]:
    """Move the stream to descriptors that no child inherits, and put nothing in its place."""
    import fcntl

    # Above those of any program, and close-on-exec.
    stream_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    stream_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return stream_in, stream_out


def set_up_machine() -> None:
    """What the first process of a machine owes the others."""
    import resource
    import signal

    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    drop_from_bounding_set(AGENT_ONLY)


def usable_folder(*wanted: str) -> str:
    """The first of them that is there or can be made: a tree that has a file in its place starts all the same."""
    for folder in wanted:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            continue
        return folder
    return "/"


def drop_from_bounding_set(capabilities: tuple[int, ...]) -> None:
    """No program that is started from here on has these, root or not. Those that we don't have are no matter."""
    import ctypes

    libc = ctypes.CDLL(None)
    for number in capabilities:
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)


def main(argv: list[str]) -> int:
    """Serve the stream until it ends; 0 then."""
    workdir = argv[argv.index("--workdir") + 1] if "--workdir" in argv else WORKDIR
    is_init = os.getpid() == 1
    stream_in, stream_out = take_stream()
    if is_init:
        set_up_machine()
    if ROOT not in sys.path:
        sys.path.insert(0, ROOT)
    from actors.guest.agent import Agent, StreamEnded

    env = {"PATH": os.environ.get("PATH", PATH) if not is_init else PATH, "LANG": "C.UTF-8", "TERM": "dumb"}
    env["HOME"] = "/root" if is_init else os.environ.get("HOME", "/")
    if is_init:
        from actors.guest.defaults import read_defaults

        said, folder = read_defaults()
        env.update(said)
        workdir = usable_folder(*filter(None, (folder, workdir)))
    agent = Agent(stream_in, stream_out, workdir=workdir, env=env, is_init=is_init)
    try:
        agent.serve()
    except StreamEnded:
        agent.close()
    return 0


if __name__ == "__main__":
    # Threads may be waiting for a host that will not come back.
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
