"""A login shell in a throw-away machine, in this process's terminal.

As `hourglass shell` does it for a sandbox of a running service, without a door and without a record: no service and no
history has anything to do with this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from typing import TYPE_CHECKING, Any

from actors.machines.visiting import Program
from actors.visits.programs import write_out
from actors.visits.terminal import AFTERWARDS, Escape, Left, raw, size, variables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from actors.machines.protocol import Machine
    from actors.machines.visiting import RunningProcess

_SHELL = ("/bin/bash", "-l")
_READ_BYTES = 32 * 1024


async def in_terminal(machine: Machine) -> int:
    """Lend the terminal to a shell in the machine until it ends, or is left by `~.`; its exit code.

    The process must have a terminal. Raises `MachineError`, and `OSError` where the guest has no shell; the terminal is
    given back first.
    """
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    program = Program(f"prc-{secrets.token_hex(8)}", _SHELL, env=variables(), terminal=size(stdout))
    async with machine.guest.process(program) as process:
        with raw(stdin), _signals() as (resized, hung_up):
            # It may have changed before anybody listened.
            resized.set()
            try:
                return await _first(
                    _print(process, stdout),
                    _feed(process, stdin),
                    _fit(machine, program.process_id, stdout, resized),
                    _leave(hung_up),
                )
            except BaseException as error:
                with contextlib.suppress(OSError):
                    write_out(stdout, AFTERWARDS)
                if isinstance(error, Left):
                    return 128 + signal.SIGHUP
                raise


@contextlib.contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Set when the terminal has another size, and when it is gone."""
    loop = asyncio.get_running_loop()
    heard = {signal.SIGWINCH: asyncio.Event(), signal.SIGHUP: asyncio.Event()}
    for number, event in heard.items():
        loop.add_signal_handler(number, event.set)
    try:
        yield heard[signal.SIGWINCH], heard[signal.SIGHUP]
    finally:
        for number in heard:
            loop.remove_signal_handler(number)


async def _first(*jobs: Coroutine[Any, Any, int]) -> int:
    """Run jobs until the first of them is done, or failed; the others are cut off."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        # In their order: where the program has ended, what else fails for that reason does not matter.
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _print(process: RunningProcess, stdout: int) -> int:
    while piece := await process.read():
        # In a thread: a terminal far away may take its time.
        await asyncio.to_thread(_show, stdout, piece[1])
    return process.exit_code


def _show(stdout: int, data: bytes) -> None:
    try:
        write_out(stdout, data)
    except OSError:
        raise Left from None


async def _feed(process: RunningProcess, stdin: int) -> int:
    """What is typed, read only as fast as the program takes it."""
    edit = Escape()
    async for data in _typed(stdin):
        if kept := edit(data):
            await process.write(kept)
    raise Left


async def _typed(stdin: int) -> AsyncIterator[bytes]:
    """Until the terminal is taken away."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    while True:
        ready.clear()
        loop.add_reader(stdin, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(stdin)
        try:
            data = os.read(stdin, _READ_BYTES)
        except OSError:
            return
        if not data:
            return
        yield data


async def _fit(machine: Machine, process_id: str, stdout: int, resized: asyncio.Event) -> int:
    while True:
        await resized.wait()
        resized.clear()
        await machine.guest.resize(process_id, *size(stdout))


async def _leave(hung_up: asyncio.Event) -> int:
    await hung_up.wait()
    raise Left
