"""Real machines: run as root, after `make setup`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest_asyncio

from events.sqlite_log import SqliteLog
from events.types import SandboxBranched
from replay.rebuild.throwaway import Place
from tests.replay.rebuild.conftest import driver, log, new_live

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.machines.gvisor import GvisorDriver

__all__ = ["driver", "log", "new_live"]


@pytest_asyncio.fixture(loop_scope="module")
async def ended(driver: GvisorDriver, log: SqliteLog) -> AsyncIterator[None]:
    """No branch is left afterwards, nor the name of one."""
    yield
    with SqliteLog(log.path, read_only=True) as opened:  # the test may have closed its own
        made = [
            stream.removeprefix("sandbox-")
            for stream in opened.streams()
            for data in opened.read_data(stream)
            if isinstance(data, SandboxBranched)
        ]
    for one in made:
        await driver.remove(one)
    left = await asyncio.to_thread(lambda: [path.stem for path in Place(driver.storage).folder.glob("sbx-*.lock")])
    assert not set(left) & set(made)
