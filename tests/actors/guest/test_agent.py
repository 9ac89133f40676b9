"""The agent and its connection: calls that outlive their host, live output, files, flow control."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.guest import calls, frames
from actors.guest.channel import Channel, Outbox
from actors.machines.guest import GuestConnection
from actors.machines.protocol import Guest, GuestProtocolError, MachineGone
from tests.actors.guest.conftest import Bash, alive, begun, greeted, running_agent, text

# --- what a tool is given --------------------------------------------------------------------------------------------


async def test_a_guest_is_what_the_protocol_asks_for(guest: GuestConnection) -> None:
    as_guest: Guest = guest
    assert as_guest.info.agent_version == "1"
    assert await as_guest.ping() < 20


async def test_no_tool_holds_the_stream(bash: Bash) -> None:
    """Not the shell, not what it starts: only pipes of their own."""
    listing = text(await bash("ls -l /proc/$$/fd /proc/self/fd"))
    assert "socket:" not in listing


async def test_the_environment_of_a_tool_is_made_from_nothing(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    with running_agent(workdir) as stream:
        async with greeted(stream) as guest:
            names = text(await Bash(guest)("compgen -e | sort | tr '\\n' ' '"))
    assert names.split() == ["HOME", "LANG", "PATH", "PWD", "SHLVL", "TERM"]


async def test_programs_do_not_inherit_the_agent_s_ignored_signals(bash: Bash) -> None:
    result = await bash("yes | head -1; echo ${PIPESTATUS[0]}")
    assert text(result) == "y\n141"


async def test_an_unknown_tool_is_an_error_result(guest: GuestConnection) -> None:
    result = await guest.run_tool("x", "web_search", {}, timeout=5)
    assert result.is_error
    assert text(result) == "there is no tool 'web_search' here; there are bash, edit, glob, grep, read, write"


# --- live output -----------------------------------------------------------------------------------------------------


async def test_output_is_seen_while_the_command_runs(bash: Bash, workdir: Path) -> None:
    heard = bytearray()
    seen = asyncio.Event()

    def on_output(data: bytes) -> None:
        heard.extend(data)
        # The newline after it may be the beginning of what ends the output: it comes with what follows.
        if b"first" in heard:
            seen.set()

    task = asyncio.create_task(
        bash("echo first; while [ ! -e go ]; do sleep 0.01; done; echo second", on_output=on_output)
    )
    await seen.wait()
    assert not task.done()
    (workdir / "go").touch()
    result = await task
    assert text(result) == "first\nsecond"
    assert bytes(heard) == b"first\nsecond\n"
    assert result.output_bytes == len(heard)


async def test_the_exit_code_of_a_command_is_told_where_there_is_one(bash: Bash) -> None:
    assert (await bash("true")).exit_code == 0
    assert (await bash("(exit 7)")).exit_code == 7
    # The shell itself ends before it could tell.
    assert (await bash("exit 3")).exit_code is None


async def test_a_flood_is_counted_and_bounded(bash: Bash, stream: socket.socket) -> None:
    """300 MB of output: the result has the last 100 KiB, the agent does not grow."""
    heard = bytearray()
    pid = int(text(await bash("echo $PPID")))
    result = await bash("head -c 300000000 /dev/zero | tr '\\0' x; echo; echo end", on_output=heard.extend)
    assert result.output_bytes == 300_000_005
    assert text(result).startswith("[output truncated]\nxxx")
    assert text(result).endswith("x\nend")
    assert len(heard) < 1_200_000
    peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 40_000


# --- calls outlive their hosts ---------------------------------------------------------------------------------------


async def test_a_call_goes_on_when_the_host_goes_away(stream: socket.socket, workdir: Path) -> None:
    command = {"command": "echo ran >> count; touch on; while [ ! -e go ]; do sleep 0.01; done; echo done"}
    async with greeted(stream) as first:
        task = asyncio.create_task(first.run_tool("call", "bash", command, timeout=30))
        await begun(workdir / "on")
        task.cancel()
        await asyncio.wait([task])
    async with greeted(stream) as second:
        task = asyncio.create_task(second.run_tool("call", "bash", command, timeout=30))
        await second.ping()
        (workdir / "go").touch()
        assert text(await task) == "done"
    async with greeted(stream) as third:
        again = await third.run_tool("call", "bash", command, timeout=30)
    assert text(again) == "done"
    assert (workdir / "count").read_text() == "ran\n"


async def test_a_host_that_vanishes_in_the_middle_of_a_frame(workdir: Path) -> None:
    """The supervisor passes whole frames only; a new greeting makes everything before it void."""
    with running_agent(workdir) as stream:
        async with greeted(stream) as guest:
            channel = guest._mux.open("put", path=str(workdir / "half"), mode=0o644)
            await channel.send(b"x" * 1000)
        async with greeted(stream) as guest:
            # Whoever wrote the file is a thread of its own, and hears of it when it gets to run.
            while os.listdir(workdir):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.01)
            assert await guest.ping() < 20


async def test_results_are_kept_within_bounds(guest: GuestConnection) -> None:
    for number in range(calls.KEPT_CALLS + 3):
        await guest.run_tool(f"{number}", "bash", {"command": f"echo {number} >> ran"}, timeout=30)
    assert text(await guest.run_tool("30", "bash", {"command": "false"}, timeout=30)) == "(no output)"
    with pytest.raises(GuestProtocolError, match="no longer kept"):
        await guest.run_tool("0", "bash", {"command": "echo again >> ran"}, timeout=30)
    assert "again" not in text(await guest.run_tool("end", "bash", {"command": "cat ran"}, timeout=30))


async def test_the_agent_ends_with_its_stream_and_takes_the_shell_along(workdir: Path) -> None:
    with running_agent(workdir) as stream:
        async with greeted(stream) as guest:
            shell = int(text(await Bash(guest)("echo $$")))
            assert alive(shell)
    assert not alive(shell)


async def test_a_closed_connection_says_so(stream: socket.socket) -> None:
    async with greeted(stream) as guest:
        await guest.close()
        with pytest.raises(MachineGone, match="closed"):
            await guest.ping()
        with pytest.raises(MachineGone, match="closed"):
            await guest.run_tool("x", "bash", {}, timeout=1)


# --- files -----------------------------------------------------------------------------------------------------------


async def test_files_go_in_and_out(guest: GuestConnection, workdir: Path) -> None:
    data = os.urandom(3_000_001)
    path = workdir / "some" / "where" / "file"
    await guest.write_file(str(path), data, mode=0o750)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert await guest.read_file(str(path), max_bytes=len(data)) == data
    await guest.write_file(str(path), b"")
    assert await guest.read_file(str(path), max_bytes=0) == b""
    assert os.listdir(path.parent) == ["file"]


async def test_what_the_kernel_refuses_is_an_os_error(guest: GuestConnection, workdir: Path) -> None:
    (workdir / "file").write_bytes(b"12345")
    (workdir / "fifo").touch()
    os.unlink(workdir / "fifo")
    os.mkfifo(workdir / "fifo")
    cases = {
        "nothing": errno.ENOENT,
        "": errno.EISDIR,
        "file/below": errno.ENOTDIR,
        "file": errno.EFBIG,
        "fifo": errno.EINVAL,
    }
    for name, number in cases.items():
        with pytest.raises(OSError, match=r".") as caught:
            await guest.read_file(str(workdir / name), max_bytes=4)
        assert caught.value.errno == number, name
    with pytest.raises(FileExistsError):
        await guest.write_file(str(workdir / "file" / "x"), b"")


async def test_a_link_is_replaced_and_removed_never_followed(
    guest: GuestConnection, workdir: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    (workdir / "file").symlink_to(outside / "kept")
    (workdir / "folder").mkdir()
    (workdir / "folder" / "link").symlink_to(outside)
    (workdir / "link").symlink_to(outside)
    await guest.write_file(str(workdir / "file"), b"new")
    await guest.remove_tree(str(workdir / "folder"))
    await guest.remove_tree(str(workdir / "link"))
    await guest.remove_tree(str(workdir / "nothing"))
    assert os.listdir(workdir) == ["file"]
    assert (outside / "kept").read_bytes() == b"kept"


async def test_an_unknown_kind_is_refused_clearly(guest: GuestConnection) -> None:
    with pytest.raises(GuestProtocolError, match="knows no channel of kind 'egress'"):
        await guest._request("egress")


async def test_a_slow_reader_of_one_channel_holds_up_no_other(
    guest: GuestConnection, workdir: Path, bash: Bash
) -> None:
    (workdir / "large").write_bytes(bytes(2_000_000))
    slow = guest._mux.open("get", path=str(workdir / "large"), max_bytes=2_000_000)
    await slow.send(b"", last=True)
    assert text(await bash("echo meanwhile")) == "meanwhile"
    taken = 0
    while data := await slow.receive():
        taken += len(data)
    assert taken == 2_000_000


# --- flow control, as a property -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from("sgx"), st.integers(1, 200_000)), max_size=20))
def test_no_more_is_sent_than_was_allowed_and_nothing_is_lost(steps: list[tuple[str, int]]) -> None:
    """Sends of any size, credit in any pieces, a pipe that takes what it likes: in order, and within credit."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    outbox = Outbox(write_fd, lambda: None)
    channel = Channel(1, {}, outbox)
    decoder = frames.Decoder()
    allowed, sent, got = frames.WINDOW, bytearray(), bytearray()
    used: list[int] = []

    def take() -> None:
        while True:
            outbox.flush()
            try:
                data = os.read(read_fd, 1 << 20)
            except BlockingIOError:
                return
            for frame in decoder.feed(data):
                assert frame.kind == frames.DATA
                assert frame.payload[:1] == b"o"
                used.append(len(frame.payload))
                got.extend(frame.payload[1:])

    try:
        for step, size in steps:
            if step == "s":
                piece = bytes([len(sent) % 251]) * size
                sent += piece
                channel.send(piece, b"o")
            elif step == "g":
                allowed += size
                channel.grant(size)
            else:
                take()
                assert sum(used) <= allowed
        channel.grant(1 << 30)
        take()
        assert got == sent
    finally:
        os.close(read_fd)
        os.close(write_fd)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(sizes=st.lists(st.integers(0, 700_000), min_size=1, max_size=6))
def test_many_channels_at_once(sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Puts, gets and commands in any mixture, each with the right bytes."""
    workdir = tmp_path_factory.mktemp("many")

    async def one(guest: GuestConnection, number: int, size: int) -> None:
        path, payload = str(workdir / f"{number}"), bytes([number]) * size
        await guest.write_file(path, payload)
        assert await guest.read_file(path, max_bytes=size) == payload
        result = await guest.run_tool(f"{number}", "bash", {"command": f"wc -c < {number}"}, timeout=30)
        assert text(result) == str(size)

    async def everything(stream: socket.socket) -> None:
        async with greeted(stream) as guest:
            await asyncio.gather(*(one(guest, number, size) for number, size in enumerate(sizes)))

    with running_agent(workdir) as stream:
        asyncio.run(everything(stream))
