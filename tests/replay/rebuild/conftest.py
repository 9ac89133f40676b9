"""Real machines: run as root, after `make setup`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from actors.machines.gvisor import GvisorDriver
from actors.template.build import ensure_agent
from events.sqlite_log import SqliteLog
from replay.rebuild.throwaway import Place
from tests.conformance import drivers
from tests.replay.rebuild.live import Live

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from events.snapshots import SnapshotStore

    NewLive = Callable[..., Awaitable[Live]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver() -> AsyncIterator[GvisorDriver]:
    volumes = drivers.node_volumes()
    volumes.prepare()
    ensure_agent(volumes, "base")
    made = GvisorDriver(volumes.storage, volumes=volumes)
    before = {one.sandbox_id for one in Place(made.storage).kept()}
    yield made
    left = [one for one in volumes.sandboxes() if one.startswith("rebuild-") and one not in before]
    assert not left, "a rebuild left its files"
    assert not [one for one in await made.running() if one.startswith("rebuild-")]
    assert not [
        one for one in await made.snapshots() if one.snapshot_id.startswith("kept-") and one.sandbox_id not in before
    ]
    await made.close()


@pytest.fixture
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path_factory.mktemp("home") / "log.db", durability="normal") as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def new_live(driver: GvisorDriver, log: SqliteLog) -> AsyncIterator[NewLive]:
    """Makes sandboxes of which nothing is left."""
    made: list[Live] = []

    async def new(store: SnapshotStore | None = None, driver: GvisorDriver = driver) -> Live:
        made.append(await Live.begin(log, driver, store))
        return made[-1]

    yield new
    for one in made:
        await one.end()
