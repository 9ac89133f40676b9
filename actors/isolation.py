"""Where sessions and sandboxes live: in their host's process, or each in a Ray actor of its own. One handle for both.

An entity in the host costs 0.4 KiB and microseconds; a Ray actor of its own costs 47 MiB and a second of CPU, and dies
alone. A session's code is the same in both, and so is a sandbox's.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from actors.api import as_bearer, connect
from actors.claim import Outcome
from actors.egress.credentials import Credentials
from actors.egress.gateway import Gateway
from actors.egress.names import Names
from actors.life import SandboxContext
from actors.machines.drivers import make_driver
from actors.machines.protocol import MachineSpec
from actors.pace import Pace
from actors.sandbox import Sandbox
from actors.session import Session
from actors.tries import TryLimits
from actors.visits.door import Door
from actors.visits.wire import FOLDER, HOST_DOOR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anthropic import AsyncAnthropic

    from actors.claim import Claim
    from actors.forks import Forks
    from actors.handle import SandboxHandle
    from actors.journal import Journal
    from actors.keeping import Choice
    from actors.machines.protocol import Driver
    from actors.settings import Settings


@dataclass(frozen=True, slots=True)
class Placement:
    """What an actor is told about where it runs."""

    settings: Settings
    node: str
    epoch: int
    metadata: Mapping[str, str]


class SessionRun(Protocol):
    """A session that is being served."""

    claim: Claim

    async def outcome(self) -> Outcome:
        """Wait until it ends; `cancelled` after `cancel`. Raises what `Session.run` raises."""
        ...

    async def cancel(self) -> None:
        """End it now. Returns when it has ended."""
        ...

    async def drain(self) -> None:
        """Let it end after the call that runs."""
        ...

    async def keep(self, choice: Choice, sandbox: SandboxHandle) -> None:
        """See `Session.keep`."""
        ...


class Actors(Protocol):
    """Makes sessions and sandboxes for a host."""

    door: Door
    """The host's own."""
    driver: Driver
    """Of this node, in the host's process."""

    async def sandbox(self, sandbox_id: str, session_id: str) -> SandboxHandle:
        """The sandbox's actor, its stream folded; its machine is found again where one runs."""
        ...

    async def session(self, claim: Claim, tokens: list[str], sandbox: SandboxHandle, forks: Forks) -> SessionRun:
        """Start serving a claim."""
        ...

    async def running(self) -> list[str]:
        """Ids of the sandboxes that have a machine on this node."""
        ...

    async def prepare(self) -> None:
        """Do ahead what starting machines will need. Raises `MachineError`."""
        ...

    async def remove(self, sandbox_id: str) -> None:
        """End the machine of a sandbox that is over and remove its files. Raises `MachineError`."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


def sandbox_context(placement: Placement, journal: Journal, driver: Driver, door: Door) -> SandboxContext:
    """What the sandboxes of one process share."""
    settings = placement.settings
    return SandboxContext(
        driver=driver,
        journal=journal,
        home=settings.home,
        node=placement.node,
        epoch=placement.epoch,
        template=settings.template,
        limits=settings.limits,
        start_slots=asyncio.Semaphore(max(1, os.cpu_count() or 1)),
        pace=Pace(2 * max(1, os.cpu_count() or 1)),
        metadata=placement.metadata,
        door=door,
        freeze=settings.freeze,
        snapshots=settings.snapshots,
        snapshots_local=settings.snapshots_local,
        stores=settings.store_url is not None,
        given_egress=settings.given_egress,
        gateway=Gateway(names=Names(settings.egress_hosts), credentials=Credentials(settings.egress_credentials)),
    )


def make_session(
    claim: Claim,
    placement: Placement,
    *,
    client: AsyncAnthropic,
    tokens: list[str],
    sandbox: SandboxHandle,
    journal: Journal,
    forks: Forks,
) -> Session:
    """A session on `client`'s connection pool, with the credentials of its claim."""
    settings = placement.settings
    return Session(
        claim,
        clients=[as_bearer(client, token) for token in tokens],
        sandbox=sandbox,
        journal=journal,
        epoch=placement.epoch,
        metadata=placement.metadata,
        max_idle=settings.max_idle,
        max_silence=settings.max_silence,
        forks=forks,
        tries=TryLimits(
            variants=min(settings.try_max, settings.fork_max),
            seconds=min(settings.try_seconds, settings.limits.tool_seconds),
        ),
    )


class LocalRun:
    """A session served by a task of this process."""

    def __init__(self, session: Session) -> None:
        self.claim = session.claim
        self._session = session
        self._task = asyncio.create_task(session.run(), name=f"session {session.claim.session_id}")

    async def outcome(self) -> Outcome:
        """See `SessionRun`."""
        await asyncio.wait([self._task])
        return Outcome("cancelled") if self._task.cancelled() else self._task.result()

    async def cancel(self) -> None:
        """See `SessionRun`."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def drain(self) -> None:
        """See `SessionRun`."""
        self._session.drain()

    async def keep(self, choice: Choice, sandbox: SandboxHandle) -> None:
        """See `SessionRun`."""
        await self._session.keep(choice, sandbox)


class LocalActors:
    """`isolation = "host"`: entities in the host's own process."""

    def __init__(self, placement: Placement, journal: Journal, driver: Driver) -> None:
        self._placement = placement
        self._journal = journal
        self.driver = driver
        self.door = Door(placement.settings.home / FOLDER / HOST_DOOR)
        self._context = sandbox_context(placement, journal, driver, self.door)
        # One pool of connections for all, made before the first claim: setting up TLS takes long, and blocks the loop.
        # Sessions use copies with their own credentials; this one is never sent.
        self._client = connect(placement.settings.base_url, "none")

    async def sandbox(self, sandbox_id: str, session_id: str) -> SandboxHandle:
        """See `Actors`."""
        sandbox = Sandbox(sandbox_id, session_id, self._context)
        await sandbox.load()
        return sandbox

    async def session(self, claim: Claim, tokens: list[str], sandbox: SandboxHandle, forks: Forks) -> SessionRun:
        """See `Actors`."""
        return LocalRun(
            make_session(
                claim,
                self._placement,
                client=self._client,
                tokens=tokens,
                sandbox=sandbox,
                journal=self._journal,
                forks=forks,
            )
        )

    async def running(self) -> list[str]:
        """See `Actors`."""
        return await self.driver.running()

    async def prepare(self) -> None:
        """See `Actors`."""
        await prepare(self.driver, self._placement.settings)

    async def remove(self, sandbox_id: str) -> None:
        """See `Actors`."""
        await self.driver.remove(sandbox_id)

    async def close(self) -> None:
        """See `Actors`."""
        await self._client.close()
        await self.driver.close()


async def prepare(driver: Driver, settings: Settings) -> None:
    """Do ahead what the machines of these settings will need. Raises `MachineError`."""
    await driver.prepare(MachineSpec("new", settings.template, settings.limits))


def local_actors(placement: Placement, journal: Journal) -> Actors:
    """For `Host`: entities in its own process."""
    return LocalActors(
        placement, journal, make_driver(placement.settings, waiting=placement.settings.waiting_containers)
    )
