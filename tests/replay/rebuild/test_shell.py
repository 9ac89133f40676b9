"""`hourglass rebuild --shell`: a person in a throw-away machine, at a real terminal."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from replay.rebuild.throwaway import USED, Place, remove_kept
from tests.replay.rebuild.test_commands import HOURGLASS, environment, hourglass
from tests.terminal import in_terminal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.replay.rebuild.conftest import NewLive
    from tests.replay.rebuild.live import Live
    from tests.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def in_shell(live: Live, *options: str, visit: object = None) -> int:
    """Run it as a person would, and `visit` once the shell asks; its exit code."""

    def person() -> int:
        command: list[str | Path] = [HOURGLASS, "rebuild", live.stream, "--yes", "--shell", *options]
        variables = {**environment(live), "TERM": "xterm-256color"}
        with in_terminal(command, variables, rows=33, columns=101) as terminal:
            before = terminal.modes
            terminal.until("every result is as it was")
            terminal.until("# ")
            assert terminal.modes != before
            assert callable(visit)
            visit(terminal)
            code = terminal.wait()
            assert terminal.modes == before
            return code

    return await asyncio.to_thread(person)


def rebuilds(live: Live) -> list[str]:
    """The throw-away machines of this sandbox that have files."""
    token = live.sandbox_id.removeprefix("sbx-")
    return [one for one in live.driver.volumes.sandboxes() if one.startswith(f"rebuild-{token}")]


async def test_a_shell_in_the_version_that_goes_with_it_or_stays(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("(while :; do sleep 0.1; done) & echo $! > pid")
    await live.snapshot()
    await live.bash("echo then > file")

    def look(terminal: Terminal) -> None:
        terminal.type("stty size; echo $TERM; kill -0 $(cat pid) && cat file; hostname\r")
        terminal.until(f"33 101\r\nxterm-256color\r\nthen\r\n{live.sandbox_id}")
        terminal.until("# ")
        terminal.resize(44, 144)
        terminal.type("until [ \"$(stty size)\" = '44 144' ]; do sleep 0.05; done; echo changed > file; echo fi''t\r")
        terminal.until("fit")
        terminal.until("# ")
        terminal.type("exit 3\r")

    # What the shell says is no news of the rebuild.
    assert await in_shell(live, visit=look) == 0
    assert rebuilds(live) == []
    assert await in_shell(live, "--keep", visit=look) == 0
    place = Place(live.driver.storage)
    [kept] = [one for one in place.kept() if one.stream == live.stream]
    assert (kept.version, kept.verdict) == (live.version, USED)
    tree = live.driver.tree(kept.sandbox_id)
    assert tree is not None
    assert (tree / "workspace/file").read_text() == "changed\n"
    await remove_kept(live.driver, place, kept.sandbox_id)
    # The sandbox itself is as it was.
    assert await live.bash("grep -c then file") == live.version


async def test_one_that_is_left_or_whose_terminal_goes_leaves_nothing(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    await live.bash("echo one")

    def leave(terminal: Terminal) -> None:
        terminal.type("trap '' HUP; sleep 600\r")
        terminal.until("600")
        terminal.type("\r~.")

    assert await in_shell(live, visit=leave) == 0
    assert rebuilds(live) == []
    for number, code in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 0)):

        def end(terminal: Terminal, number: int = number) -> None:
            os.kill(terminal.process.pid, number)

        assert await in_shell(live, visit=end) == code
        assert rebuilds(live) == []


async def test_no_terminal_no_machine(new_live: NewLive) -> None:
    live = await new_live()
    await live.bash("echo one")
    code, out, err = await hourglass(live, "rebuild", live.stream, "--yes", "--shell")
    assert (code, out) == (1, "")
    assert f"There is no terminal here for a shell in the rebuild of {live.stream}@{live.version}." in err
    assert "without --shell it needs none" in err
    assert not list(Place(live.driver.storage).folder.glob(f"rebuild-{live.sandbox_id.removeprefix('sbx-')}*"))
    assert (await hourglass(live, "rebuild", live.stream, "--yes", "--shell", "--json"))[0] == 2
