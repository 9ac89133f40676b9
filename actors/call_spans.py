"""What the processes of a service do, as OpenTelemetry spans: calls of Anthropic's API and calls between actors.

The anthropic SDK and Ray make the spans themselves, for the provider that `set_up` gives a process, where the OTEL_…
variables ask for traces. They belong to the traces that `actors.spans` projects from the log:

    session                                the claim's root, from the log
    ├─ anthropic.sessions.events.send …    each call of the API for the claim, its heartbeats too
    └─ HostActor.serve ray.remote          a call that was sent to another actor
        └─ HostActor.serve ray.remote_worker   … and ran there

What belongs to no claim is not exported: a service that has nothing to do polls every second, and whoever looks for a
session would have to find it among 80,000 traces of one poll each a day. That polls fail is in the log of the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from actors.trace import root_span_id_of, trace_id_of
from actors.tracing import NoTracing, asked_for, make_exporter, make_provider, root_context, within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import Sampler

    from actors.claim import Claim

log = logging.getLogger(__name__)

RAY_HOOK = "actors.call_spans:on_ray_start"
FLUSH_S = 2.0
"""How long a process that ends waits for its last spans to be taken."""


@dataclass(frozen=True, slots=True)
class _Process:
    """This process's side of it."""

    provider: Any
    """OpenTelemetry's global one: ours, or that of a cluster whose own hook was here first."""
    sampler: Sampler
    """Decides which claims are traced, as it does for the log's spans."""
    exporter: _Noting | None


_process: _Process | None = None


def on_ray_start() -> None:
    """Ray makes spans, and carries the context of a call, where it was given a hook; it calls it in every process.

    Nothing is to do: our actors call `set_up`, and the idle workers that Ray keeps for each CPU, and other commands
    that ask the service, need no provider.
    """


def set_up() -> None:
    """Give this process a provider, where its environment asks for traces. Once: later calls do nothing.

    An exporter that can't be had is a warning: the service works without.
    """
    global _process
    variable = asked_for(os.environ)
    if _process is not None or not variable:
        return
    try:
        exporter = make_exporter(variable, os.environ)
    except NoTracing as error:
        log.warning("calls of this process are not traced: %s", error)
        return
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    theirs = trace.get_tracer_provider()
    if isinstance(theirs, trace.ProxyTracerProvider):
        _process = _made(exporter)
        trace.set_tracer_provider(_process.provider)
    else:
        exporter.shutdown()
        _process = _Process(theirs, TracerProvider(shutdown_on_exit=False).sampler, None)


def _made(exporter: SpanExporter) -> _Process:
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

    noting = _Noting(exporter)
    provider = make_provider(
        cast("SpanExporter", noting),
        sampler=ParentBased(ALWAYS_OFF),  # what has no parent is of no claim
        # No events: Ray would record each exception with its traceback, and there is what tools were given in some.
        span_limits=SpanLimits(max_events=0),
    )
    return _Process(provider, TracerProvider(shutdown_on_exit=False).sampler, noting)


def on() -> bool:
    """Whether this process makes spans."""
    return _process is not None


@contextmanager
def of_claim(claim: Claim) -> Iterator[None]:
    """What is done inside, and by tasks that begin inside, belongs to the claim's trace."""
    if _process is None:
        yield
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    trace_id = int(trace_id_of(claim.claim_id), 16)
    root = root_context(_process.sampler, trace_id, root_span_id_of(claim.session_id, claim.claim_id))
    with _attached(set_span_in_context(NonRecordingSpan(root), Context())):
        yield


@contextmanager
def of_no_claim() -> Iterator[None]:
    """What is done inside belongs to no trace: it serves more than the claim that happened to begin it."""
    if _process is None:
        yield
        return
    from opentelemetry.context import Context

    with _attached(Context()):
        yield


@contextmanager
def _attached(context: Any) -> Iterator[None]:
    from opentelemetry.context import attach, detach

    token = attach(context)
    try:
        yield
    finally:
        detach(token)


def name_method(method: str) -> None:
    """Say in the span of the call that runs what was asked, where actors are asked by name."""
    if _process is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute("hourglass.method", method)


async def flush() -> None:
    """Export what is left, before this process ends; for `FLUSH_S` at most, and at once where the collector is away."""
    process = _process
    if process is None or (process.exporter is not None and process.exporter.failing):
        return
    await asyncio.to_thread(within, FLUSH_S, process.provider.force_flush)


class _Noting:
    """An exporter that knows whether its collector takes anything."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        result = self._exporter.export(spans)
        self.failing = result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        """See `SpanExporter`."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See `SpanExporter`."""
        return self._exporter.force_flush(timeout_millis)
