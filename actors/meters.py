"""The figures that a running service shows: what there is, and where it can be read.

Each figure is defined once, in `FIGURES`, and none has the id of a session, a sandbox or a call in a label: a label's
values are few and known. `PrometheusMeters` keeps them for a scrape of our own port; `RayMeters` hands them to Ray,
whose metrics agent exports them beside its own, prefixed by `ray_`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from events.errors import HourglassError

if TYPE_CHECKING:
    from http.server import HTTPServer
    from threading import Thread

LOOPBACK = "127.0.0.1"
_MACHINE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CALL_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0)


@dataclass(frozen=True, slots=True)
class Figure:
    """What one figure is."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, in seconds."""


FIGURES = {
    "hourglass_events": Figure("counter", "Events in the log, by type.", ("type",)),
    "hourglass_claims_ended": Figure("counter", "Claims that ended, by how.", ("how",)),
    "hourglass_leases_lost": Figure("counter", "Leases that were lost, by reason.", ("reason",)),
    "hourglass_sessions_failed": Figure("counter", "Sessions that could not be served, by reason.", ("reason",)),
    "hourglass_sessions": Figure("gauge", "Sessions that are claimed now, by how far they are.", ("phase",)),
    "hourglass_attach_seconds": Figure("histogram", "From a claim to the session being attached.", (), _MACHINE_S),
    "hourglass_tool_calls": Figure("counter", "Tool calls that ended, by tool and outcome.", ("tool", "outcome")),
    "hourglass_tool_call_seconds": Figure("histogram", "Tool calls in the machine, by tool.", ("tool",), _CALL_S),
    "hourglass_tool_call_turnaround_seconds": Figure(
        "histogram", "From a tool call's request to its posted result, by tool.", ("tool",), _CALL_S
    ),
    "hourglass_sandboxes": Figure("gauge", "Sandboxes that exist now, by phase.", ("phase",)),
    "hourglass_sandbox_seconds": Figure("counter", "Seconds that sandboxes spent in each phase.", ("phase",)),
    "hourglass_machine_seconds": Figure(
        "histogram", "What was done to machines, by operation.", ("operation",), _MACHINE_S
    ),
    "hourglass_crashes": Figure("counter", "Machines that ended by themselves or were lost, by reason.", ("reason",)),
    "hourglass_cpu_seconds": Figure("counter", "CPU time of machines, counted when they rest or end."),
    "hourglass_snapshot_bytes": Figure("counter", "Bytes of images that were taken."),
    "hourglass_log_position": Figure("gauge", "Position of the log's last event that is counted here."),
    "hourglass_up": Figure("gauge", "Whether a part of the service answers: 1, or 0.", ("part",)),
    "hourglass_machines": Figure("gauge", "Machines in memory now."),
    "hourglass_memory_bytes": Figure("gauge", "Memory of all machines now."),
    "hourglass_leases": Figure("gauge", "Leases held now."),
    "hourglass_heartbeat_age_seconds": Figure(
        "gauge", "Since the last heartbeat that the queue answered, of the lease where that is longest ago."
    ),
    "hourglass_heartbeat_late_ratio": Figure(
        "gauge", "That time in parts of what the lease was granted: at 1 a lease is lost."
    ),
}


class Meters(Protocol):
    """Where figures go. Thread-safe; a name that `FIGURES` does not have is a `KeyError`."""

    def add(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """Count up a counter."""
        ...

    def put(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Add to a histogram."""
        ...


@dataclass(eq=False)
class MetricsPortTaken(HourglassError):
    """The metrics can't be served on port {port} of the loopback device: {reason}."""

    port: int
    reason: str
    next_step = "Give another port with --metrics-port; 0 takes any that is free."


class PrometheusMeters:
    """Figures in this process, in the text format of Prometheus at `/metrics` once they are served."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._figures: dict[str, Any] = {name: _prometheus(name, one, self.registry) for name, one in FIGURES.items()}
        self._server: HTTPServer | None = None
        self._thread: Thread | None = None

    def serve(self, port: int) -> int:
        """Listen on loopback, in a thread; returns the port. Raises `MetricsPortTaken`."""
        try:
            self._server, self._thread = start_http_server(port, addr=LOOPBACK, registry=self.registry)
        except OSError as error:
            raise MetricsPortTaken(port=port, reason=error.strerror or str(error)) from error
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Listen no more. May be called twice."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def add(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """See `Meters`."""
        self._of(name, labels).inc(amount)

    def put(self, name: str, value: float, /, **labels: str) -> None:
        """See `Meters`."""
        self._of(name, labels).set(value)

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """See `Meters`."""
        self._of(name, labels).observe(value)

    def _of(self, name: str, labels: dict[str, str]) -> Any:
        figure = self._figures[name]
        return figure.labels(**labels) if labels else figure


def _prometheus(name: str, figure: Figure, registry: CollectorRegistry) -> Any:
    if figure.kind == "histogram":
        return Histogram(name, figure.help, figure.labels, registry=registry, buckets=figure.buckets)
    kind = Counter if figure.kind == "counter" else Gauge
    return kind(name, figure.help, figure.labels, registry=registry)


class RayMeters:
    """Figures that Ray's metrics agent exports; Ray must run. It hands them on every few seconds."""

    def __init__(self) -> None:
        from ray.util import metrics

        self._figures: dict[str, Any] = {}
        for name, one in FIGURES.items():
            if one.kind == "histogram":
                made: Any = metrics.Histogram(name, one.help, list(one.buckets), tag_keys=one.labels)
            else:
                made = {"counter": metrics.Counter, "gauge": metrics.Gauge}[one.kind](name, one.help, one.labels)
            self._figures[name] = made

    def add(self, name: str, amount: float = 1.0, /, **labels: str) -> None:
        """See `Meters`."""
        if amount > 0:  # Ray refuses to count nothing
            self._figures[name].inc(amount, tags=labels)

    def put(self, name: str, value: float, /, **labels: str) -> None:
        """See `Meters`."""
        self._figures[name].set(value, tags=labels)

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """See `Meters`."""
        self._figures[name].observe(value, tags=labels)
