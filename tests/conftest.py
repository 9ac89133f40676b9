"""What tests of several packages share."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from replay.local import storage
from replay.server.recorded import RecordedServer
from replay.server.settings import ServerSettings
from tests.internet import made
from tests.service import Installed, remove_sandboxes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.internet import Internet


def pytest_configure() -> None:
    """A storage of its own for each process beyond the first that runs tests: some hide its template, or fill it."""
    os.environ.pop("COLUMNS", None)  # pytest-xdist says how wide its own lines are, and commands would believe it
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    if worker != "gw0":
        os.environ["HOURGLASS_STORAGE"] = f"{storage()}-{worker}"
        # As `make setup` does for the first; a second where it is there.
        subprocess.run([sys.executable, "-m", "events", "template", "build"], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(autouse=True, scope="session")
def _no_store() -> Iterator[None]:
    """Every home has its own store by default, and would fill it with the template first; who tests it, names one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOURGLASS_SNAPSHOT_STORE", "none")
        yield


@pytest.fixture(params=["host", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    """Both ways to place sessions and sandboxes."""
    value: str = request.param
    return value


@pytest.fixture(scope="session")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    """Servers at public-looking addresses, in a network namespace."""
    with made(tmp_path_factory.mktemp("internet")) as internet:
        yield internet


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    """A home and a server, nothing running; what it leaves is removed."""
    with RecordedServer(ServerSettings(ttl_seconds=6)) as server:
        made = Installed(server, server.create_environment(), tmp_path / "home")
        yield made
    asyncio.run(remove_sandboxes(made.home))
