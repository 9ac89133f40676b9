"""What watches a running service from `hourglass up`: metrics and traces, from the log and from what actors say.

It reads the log as any other reader does, in this process, which has nothing else to do: neither the host nor the
controller pays for it. Where it fails, the service goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray.exceptions import RayError

from actors.meters import LOOPBACK, PrometheusMeters, RayMeters
from actors.metrics import Metrics
from actors.tracing import open_traces
from events.errors import HourglassError
from events.home import LOG_NAME
from events.log import CaughtUp
from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.meters import Meters
    from actors.settings import Settings
    from actors.tracing import Traces
    from events.envelope import Event

log = logging.getLogger(__name__)

_TICK_S = 5.0
_ANSWER_S = 5.0


class Taker(Protocol):
    """What is fed the log."""

    def take(self, event: Event) -> None:
        """The next event."""
        ...


class Observer:
    """Of one `up`. Make it before Ray is started, `run` it beside the service, `finish` it after."""

    def __init__(self, settings: Settings) -> None:
        """Raises `MetricsPortTaken` and `NoTracing`."""
        self._path = settings.home / LOG_NAME
        self._began_us = time.time_ns() // 1000
        self._traces: Traces | None = open_traces()
        self._prometheus: PrometheusMeters | None = None
        self._metrics: Metrics | None = None
        self._meters: list[Meters] = []
        self._takers: list[Taker] = []
        self._position = 0
        self._log: SqliteLog | None = None
        self.addresses: list[str] = []
        """Where the metrics are served."""
        if settings.metrics_port is not None:
            self._prometheus = PrometheusMeters()
            self._meters.append(self._prometheus)
            self.addresses.append(f"http://{LOOPBACK}:{self._prometheus.serve(settings.metrics_port)}/metrics")

    def use_ray(self) -> None:
        """Hand the metrics to Ray as well, which must run, and have its metrics agent."""
        self._meters.append(RayMeters())
        here = ray.get_runtime_context().get_node_id()
        for node in ray.nodes():
            if node["NodeID"] == here:
                self.addresses.append(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")

    async def run(self, host: Any, controller: Any) -> None:
        """Watch until cancelled; returns at once where nobody wants to know."""
        if self._meters:
            self._metrics = Metrics(*self._meters)
            self._takers.append(self._metrics)
        if self._traces is not None:
            from actors.spans import Spans

            self._takers.append(Spans(self._traces, self._began_us))
        if not self._takers:
            return
        try:
            self._log = SqliteLog(self._path, read_only=True)
            self._put("hourglass_up", 1.0, part="observer")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(self._log), name="follow the log")
                if self._metrics is not None:
                    tasks.create_task(self._tick(self._metrics, host, controller), name="ask the actors")
        except* (HourglassError, OSError) as errors:
            for error in errors.exceptions:
                self._broke(str(error))
        except* Exception as errors:
            # A bug in what only looks on must not end what it looks at.
            self._broke("a bug", errors)

    def _broke(self, why: str, error: BaseException | None = None) -> None:
        """Say so, there too where somebody would else take old figures for new ones."""
        log.warning("metrics and traces end here, the service goes on: %s", why, exc_info=error)
        self._put("hourglass_up", 0.0, part="observer")

    async def finish(self) -> None:
        """Take what the log has by now, and let go of everything. Once, after `run` was cancelled."""
        try:
            if self._log is not None:
                for event in self._log.read_all(after=self._position):
                    self._take(event)
                self._log.close()
            if self._traces is not None:
                await asyncio.to_thread(self._traces.close)
        except (HourglassError, OSError) as error:
            log.warning("the last metrics and traces are lost: %s", error)
        finally:
            self.close()

    def close(self) -> None:
        """Serve no more metrics. May be called twice."""
        if self._prometheus is not None:
            self._prometheus.close()

    async def _follow(self, followed: SqliteLog) -> None:
        async for event in followed.subscribe_async():
            if not isinstance(event, CaughtUp):
                self._take(event)
            elif self._metrics is not None:
                self._metrics.show()

    def _take(self, event: Event) -> None:
        for one in self._takers:
            one.take(event)
        self._position = event.position

    async def _tick(self, metrics: Metrics, host: Any, controller: Any) -> None:
        while True:
            machines = await _answer(host.operate.remote("sandboxes"))
            leases = await _answer(controller.status.remote())
            self._put("hourglass_up", machines is not None, part="host")
            self._put("hourglass_up", leases is not None, part="controller")
            if machines is not None:
                self._put_machines(machines)
            if leases is not None:
                self._put_leases(leases.get("sessions", []))
            metrics.tick(time.time_ns() // 1000)
            await asyncio.sleep(_TICK_S)

    def _put_machines(self, views: Sequence[dict[str, Any]]) -> None:
        memory = [view["memory_bytes"] for view in views if view["memory_bytes"] is not None]
        self._put("hourglass_machines", len(memory))
        self._put("hourglass_memory_bytes", sum(memory))

    def _put_leases(self, leases: Sequence[dict[str, Any]]) -> None:
        self._put("hourglass_leases", len(leases))
        self._put("hourglass_heartbeat_age_seconds", max((one["heartbeat_age"] for one in leases), default=0.0))
        late = max((one["heartbeat_age"] / one["lease_ttl"] for one in leases), default=0.0)
        self._put("hourglass_heartbeat_late_ratio", late)

    def _put(self, name: str, value: float, /, **labels: str) -> None:
        for one in self._meters:
            one.put(name, value, **labels)


async def _answer(reference: Any) -> Any:
    """What an actor says; None where it says nothing in time."""
    try:
        return await asyncio.wait_for(_awaited(reference), _ANSWER_S)
    except (RayError, TimeoutError) as error:
        log.info("an actor was asked for metrics and did not answer: %s", str(error).splitlines()[:1])
        return None


async def _awaited(reference: Any) -> Any:
    return await reference
