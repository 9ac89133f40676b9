"""Programs beside the tool calls, where no machine is needed to see it."""

from __future__ import annotations

import os
import socket
import threading
import time

from actors.guest.channel import Channel, Outbox
from actors.guest.processes import Children
from actors.guest.programs import Programs
from actors.guest.quiet import Quiet


def test_the_watch_over_a_program_begins_when_there_is_one() -> None:
    seen: list[bool] = []
    children = Children()

    def watch() -> None:
        seen.append(programs.running)

    programs = Programs(children, "/", {"PATH": os.environ["PATH"]}, Quiet(tuple), watch)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        asked: dict[str, object] = {"process_id": "prc-1", "argv": ["true"], "cwd": "", "env": {}, "terminal": None}
        channel = Channel(1, asked, Outbox(ours.fileno(), lambda: None))
        channel.deliver_end()
        serving = threading.Thread(target=programs.serve, args=(channel,))
        serving.start()
        while serving.is_alive():
            children.reap()
            time.sleep(0.01)
    assert seen == [True]
    assert not programs.running
