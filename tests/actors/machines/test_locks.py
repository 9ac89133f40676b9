from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

from actors.machines.locks import holder, locked

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_the_holder_of_a_record_lock_is_known_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert holder(path) == process.pid
        process.kill()
        process.wait()
        assert holder(path) is None


def test_a_lock_may_be_removed_by_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside = threading.Event()
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with locked(path):
            inside.set()
            # What it holds is the file that others find.
            fd = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                raise AssertionError("two hold the lock")
            except BlockingIOError:
                pass
            finally:
                os.close(fd)

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait()
        assert not inside.is_set()
        path.unlink()
    thread.join()
    assert inside.is_set()
