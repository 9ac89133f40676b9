"""Ray: every actor's options in one place, and what a call to one may mean.

Actors belong to the `hourglass up` that made them and end with it; Ray restarts one that dies under it. A restarted
actor runs its constructor and nothing else, so starting is recovering: state comes from the log, leases from the
controller.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

from actors import call_spans
from actors.api import connect, forget_credentials
from actors.controller import Controller
from actors.host import Host, HostGone
from actors.queue import WorkQueue
from actors.tracing import asked_for
from events.errors import HourglassError

if TYPE_CHECKING:
    from actors.claim import Claim, Outcome
    from actors.settings import Settings

NAMESPACE = "hourglass"
_OBJECT_STORE_BYTES = 96 * 1024**2
"""Actors exchange messages of some KiB; Ray's default would take a third of the machine's memory."""


@dataclass(eq=False)
class RayNotLoopback(HourglassError):
    """Ray would listen at {address}, where the network can reach it."""

    address: str
    next_step = "Start it with `hourglass up` in a fresh process, or name a cluster to join with --address."


@dataclass(eq=False)
class NoDashboard(HourglassError):
    """Ray's dashboard is not installed."""

    next_step = "Install it: pip install 'hourglass-agents[cluster]'; or leave out --dashboard."


_NICE = -10

_HOST_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_concurrency": 10_000,  # each served session is one call that waits
    "enable_task_events": False,
}
_CONTROLLER_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_concurrency": 100,
    "enable_task_events": False,
}


_OPEN_FILES = 65_536


def allow_open_files() -> None:
    """As many as the system lets us: a machine takes some, and many systems start a process with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def prepare_process(settings: Settings) -> None:
    """What every actor of ours does first: forget inherited keys, log to standard error, which Ray reads, be traced."""
    forget_credentials()
    allow_open_files()
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("httpx", "httpx2", "anthropic"):
        logging.getLogger(chatty).setLevel(level if level == logging.DEBUG else logging.WARNING)
    call_spans.set_up()


def go_first() -> None:
    """Put this process before whatever the sandboxes do: claims and heartbeats wait for nothing on a busy node.

    Each thread has a priority of its own on Linux, and Ray runs an actor's loop in another one than its constructor.
    Not to be had without the right, and not needed then. What machines are made of does not inherit it: the nursery
    gives it up.
    """
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread), _NICE)
    # Modules and Ray's own objects stay for good, and there are hundreds of thousands: each look of the collector at
    # them stops everything for a tenth of a second.
    gc.collect()
    gc.freeze()


def start_ray(settings: Settings, *, dashboard: bool = False) -> None:
    """Join the cluster of the settings, or start Ray on this machine, bound to loopback.

    `prepare_ray` must have been called. Raises `NoDashboard`, and `RayNotLoopback` where Ray would listen to
    the network.
    """
    if dashboard and find_spec("aiohttp_cors") is None:
        raise NoDashboard
    common: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": logging.WARNING}
    traced = bool(asked_for(os.environ))
    if settings.ray_address is not None:
        # Its processes have their nodes' environment, and Ray's own spans are for who started it to switch on.
        variables = {name: value for name, value in os.environ.items() if traced and name.startswith("OTEL_")}
        ray.init(address=settings.ray_address, runtime_env={"env_vars": variables} if variables else None, **common)
        return
    ray.init(
        _tracing_startup_hook=call_spans.RAY_HOOK if traced else None,
        _node_ip_address="127.0.0.1",
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=_OBJECT_STORE_BYTES,
        resources={"sandbox": settings.max_sandboxes},
        **common,
    )
    address = ray.get_runtime_context().gcs_address
    if not address.startswith("127.0.0.1:"):
        ray.shutdown()
        raise RayNotLoopback(address)


class HostActor(Host):
    """A host in a Ray actor."""

    def __init__(self, settings: Settings, node: str) -> None:
        prepare_process(settings)
        go_first()
        if settings.isolation == "process":
            from actors.processes import process_actors  # its actors hold handles of this one

            super().__init__(settings, node=node, make_actors=process_actors)
        else:
            super().__init__(settings, node=node)

    async def ping(self) -> bool:
        """Whether its event loop turns, and visitors may come."""
        return bool(await self.actors.door.open())

    async def close(self) -> None:
        """See `Host`; nothing may be asked of this process afterwards."""
        await super().close()
        await call_spans.flush()


class RayHost:
    """A `HostHandle` on a `HostActor`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayActorError as error:
            raise HostGone(str(error).splitlines()[0]) from error

    async def claim(self, claim: Claim) -> None:
        """See `Host`."""
        await self._ask("claim", claim)

    async def serve(self, claim: Claim, tokens: list[str]) -> Outcome:
        """See `Host`."""
        outcome: Outcome = await self._ask("serve", claim, tokens)
        return outcome

    async def cancel(self, claim_id: str) -> None:
        """See `Host`."""
        await self._ask("cancel", claim_id)

    async def drain(self) -> None:
        """See `Host`."""
        await self._ask("drain")

    async def release(self, claim: Claim, reason: str) -> None:
        """See `Host`."""
        await self._ask("release", claim, reason)

    async def lose_lease(self, claim: Claim, reason: str, detail: str) -> None:
        """See `Host`."""
        await self._ask("lose_lease", claim, reason, detail)

    async def fail(self, claim: Claim, reason: str, detail: str) -> None:
        """See `Host`."""
        await self._ask("fail", claim, reason, detail)

    async def bury(self, session_id: str) -> None:
        """See `Host`."""
        await self._ask("bury", session_id)

    async def open_claims(self) -> list[Claim]:
        """See `Host`."""
        claims: list[Claim] = await self._ask("open_claims")
        return claims


class ControllerActor:
    """A controller in a Ray actor."""

    def __init__(self, settings: Settings, environment_key: str) -> None:
        prepare_process(settings)
        go_first()
        self._settings = settings
        # By name: a handle among a constructor's arguments may be gone when Ray runs it again.
        self._host = RayHost(ray.get_actor(host_name(settings)))
        self._environment_key = environment_key
        self._controller: Controller | None = None

    async def run(self) -> None:
        """Serve until `drain`. Raises `QueueRejected`. Called again after a restart."""
        settings = self._settings
        queue = WorkQueue(
            connect(settings.base_url, self._environment_key),
            settings.environment_id or "",
            worker_id=settings.worker_id,
            block_ms=settings.block_ms,
            reclaim_older_than_ms=settings.reclaim_older_than_ms,
        )
        self._controller = Controller(
            queue, self._host, environment_key=self._environment_key, max_sessions=settings.max_sandboxes
        )
        await self._controller.run()

    async def drain(self, seconds: float) -> None:
        """Hand everything back; see `Controller.drain`."""
        if self._controller is not None:
            await self._controller.drain(seconds)
        await call_spans.flush()

    async def status(self) -> dict[str, Any]:
        """Leases in hand."""
        return self._controller.status() if self._controller is not None else {}


def node_name() -> str:
    """What this node is called in events."""
    return socket.gethostname()


def host_name(settings: Settings) -> str:
    """The name of this node's host actor for a home."""
    return f"host-{node_name()}-{settings.home}"


def make_host(settings: Settings) -> Any:
    """The host actor of this node."""
    return ray.remote(HostActor).options(name=host_name(settings), **_HOST_OPTIONS).remote(settings, node_name())


def make_controller(settings: Settings, environment_key: str) -> Any:
    """The controller actor of an environment; the host must be there."""
    name = f"controller-{settings.environment_id}"
    return ray.remote(ControllerActor).options(name=name, **_CONTROLLER_OPTIONS).remote(settings, environment_key)
