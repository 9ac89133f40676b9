"""Calls that begin take turns, and a long one holds up nobody."""

from __future__ import annotations

import asyncio

import pytest

from actors.pace import Pace

NEVER_S = 3600.0


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_few_begin_at_once_in_the_order_they_came() -> None:
    pace = Pace(2, NEVER_S)
    begun: list[int] = []
    ends = [asyncio.Event() for _ in range(5)]

    async def call(number: int) -> None:
        async with pace.begin():
            begun.append(number)
            await ends[number].wait()

    calls = [asyncio.create_task(call(number)) for number in range(5)]
    await settle()
    assert begun == [0, 1]
    ends[1].set()
    await settle()
    assert begun == [0, 1, 2]
    # One that is cancelled while it waits takes nobody's place, one that runs gives its place up.
    calls[3].cancel()
    calls[0].cancel()
    await settle()
    assert begun == [0, 1, 2, 4]
    for end in ends:
        end.set()
    await asyncio.wait(calls)


async def test_a_long_call_gives_its_place_up_and_goes_on() -> None:
    pace = Pace(1, 0.01)
    over = asyncio.Event()

    async def long() -> None:
        async with pace.begin():
            await over.wait()

    running = asyncio.create_task(long())
    await settle()
    async with pace.begin():
        assert not running.done()
    over.set()
    await running
    # Its place was given up once, not twice.
    assert pace._places._value == 1


async def test_a_call_that_fails_gives_its_place_up() -> None:
    pace = Pace(1, NEVER_S)
    with pytest.raises(ValueError, match="broken"):
        async with pace.begin():
            raise ValueError("broken")
    async with pace.begin():
        assert pace._places.locked()
