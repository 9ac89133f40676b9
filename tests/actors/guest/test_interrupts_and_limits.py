"""Ending a call early, and what keeps one sandbox from taking its whole machine."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from actors.guest.shell import _COMPOUND
from actors.machines.guest import GuestConnection, connect
from actors.machines.protocol import ToolResult
from events.types import Limits
from tests.actors.guest.conftest import Bash, alive, begun, greeted, running_agent, text


async def interrupted(guest: GuestConnection, bash: Bash, workdir: Path, command: str) -> ToolResult:
    task = asyncio.create_task(bash(command))
    await begun(workdir / "on")
    await guest.interrupt(bash.last)
    return await task


async def test_the_shell_survives_where_nothing_follows(guest: GuestConnection, bash: Bash, workdir: Path) -> None:
    await bash("A=kept; cd /; f() { touch $HOME/on; exec sleep 100; }; export -f f")
    result = await interrupted(guest, bash, workdir, "bash -c 'f'")
    assert result.is_error
    assert text(result) == "[interrupted]"
    assert text(await bash("echo $A $PWD")) == "kept /"


async def test_what_follows_an_interrupted_command_is_not_run(
    guest: GuestConnection, bash: Bash, workdir: Path
) -> None:
    result = await interrupted(guest, bash, workdir, "echo said; touch on; sleep 100; touch never")
    assert text(result) == "said\n[interrupted]"
    assert not (workdir / "never").exists()
    assert text(await bash("true")) == "bash: bash session terminated; restart required"


async def test_a_command_that_ignores_sigint_is_killed(guest: GuestConnection, bash: Bash, workdir: Path) -> None:
    command = "bash -c 'trap \"\" INT\necho $BASHPID > pid\ntouch on\nwhile true\ndo sleep 0.1\ndone'"
    result = await interrupted(guest, bash, workdir, command)
    assert text(result) == "[interrupted]"
    assert not alive(int((workdir / "pid").read_text()))


async def test_jobs_of_earlier_commands_survive_an_interrupt(guest: GuestConnection, bash: Bash, workdir: Path) -> None:
    pid = int(text(await bash("sleep 300 & echo $!")))
    await interrupted(guest, bash, workdir, "touch on; sleep 100; true")
    assert alive(pid)
    os.kill(pid, 9)


async def test_interrupting_what_is_over_or_unknown_is_no_error(guest: GuestConnection, bash: Bash) -> None:
    await bash("true")
    await guest.interrupt(bash.last)
    await guest.interrupt("never heard of")


async def test_a_queued_call_is_interrupted_without_having_run(guest: GuestConnection, workdir: Path) -> None:
    first = asyncio.create_task(
        guest.run_tool("1", "bash", {"command": "touch on; while [ ! -e go ]; do sleep 0.01; done"}, timeout=30)
    )
    await begun(workdir / "on")
    second = asyncio.create_task(guest.run_tool("2", "bash", {"command": "touch never"}, timeout=30))
    await guest.ping()
    await guest.interrupt("2")
    (workdir / "go").touch()
    assert not (await first).is_error
    if (await second).is_error:
        assert not (workdir / "never").exists()


async def test_a_search_is_interrupted(guest: GuestConnection, workdir: Path) -> None:
    (workdir / "evil.txt").write_text("a" * 60 + "b\n")
    task = asyncio.create_task(guest.run_tool("1", "grep", {"pattern": "(a+)+$"}, timeout=30))
    while (await guest.stats())["running"] != "1":  # noqa: ASYNC110 (the agent tells when asked)
        await asyncio.sleep(0.01)
    await guest.interrupt("1")
    assert text(await task) == "tool 'grep' interrupted"


async def test_a_search_times_out_and_the_next_call_works(guest: GuestConnection, workdir: Path, bash: Bash) -> None:
    (workdir / "evil.txt").write_text("a" * 60 + "b\n")
    result = await guest.run_tool("1", "grep", {"pattern": "(a+)+$"}, timeout=0.2)
    assert (text(result), result.is_error) == ("tool 'grep' timed out", True)
    assert text(await bash("echo fine")) == "fine"


async def test_the_call_s_own_timeout_ends_a_command(guest: GuestConnection, bash: Bash) -> None:
    result = await guest.run_tool("1", "bash", {"command": "sleep 100"}, timeout=0.2)
    assert (text(result), result.is_error) == ("tool 'bash' timed out", True)
    assert text(await bash("true")) == "bash: bash session terminated; restart required"


@pytest.mark.parametrize(
    "command", ["make -j4 all", "a && b", "sleep 5 2>&1", "a | b &> out", "python x.py <in >&2", "a\\ b"]
)
def test_commands_after_which_nothing_can_follow(command: str) -> None:
    assert _COMPOUND.search(command) is None


@pytest.mark.parametrize(
    "command", ["a; b", "a\nb", "a || b", "a & b", "a&", "$(a) b", "`a` b", "(a)", "{ a;}", "a <(b)"]
)
def test_commands_after_which_something_may_follow(command: str) -> None:
    assert _COMPOUND.search(command)


async def test_a_fork_bomb_ends_in_a_clear_result_and_the_next_command_works(workdir: Path) -> None:
    """Bounded by its own depth too, should the guard fail: this runs on the machine of whoever tests."""
    bomb = "bomb() { [ $1 -gt 0 ] && for i in 1 2 3; do bomb $(($1-1)) & done; sleep 60; }; bomb 5; wait"
    with running_agent(workdir) as stream:
        async with greeted(stream, Limits(processes=40)) as guest:
            bash = Bash(guest)
            result = await bash(bomb)
            assert result.is_error
            assert "bash: process limit (40) reached" in text(result)
            assert text(await bash("echo works")) == "works"


async def test_a_bomb_left_behind_is_ended_and_the_next_command_tells(workdir: Path) -> None:
    with running_agent(workdir) as stream:
        async with greeted(stream, Limits(processes=40)) as guest:
            bash = Bash(guest)
            await bash("echo $$ > shell")
            await bash("(sleep 0.3; for i in $(seq 80); do sleep 60 & done; wait) > /dev/null 2>&1 &")
            shell = int((workdir / "shell").read_text())
            async with asyncio.timeout(20):
                while alive(shell):  # noqa: ASYNC110 (another process ends it)
                    await asyncio.sleep(0.02)
            result = await bash("echo works")
    assert text(result).startswith("bash: process limit (40) reached")
    assert text(result).endswith("\nworks")
    assert not result.is_error


async def test_an_agent_needs_no_limits(stream: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=stream.dup())
    guest = await connect(reader, writer, limits=Limits(processes=0, memory_bytes=0))
    assert text(await Bash(guest)("echo fine")) == "fine"
    await guest.close()
