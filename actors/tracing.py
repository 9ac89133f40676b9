"""OpenTelemetry's side of tracing, as the standard variables say: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_EXPORTER …

Off, and nothing of OpenTelemetry is imported, unless one of them asks for traces. Spans are made by `actors.spans`.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any

from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
_GROUP = "opentelemetry_traces_exporter"
_CLOSE_S = 5.0


@dataclass(eq=False)
class NoTracing(HourglassError):
    """Traces are asked for by {variable}, and can't be exported: {reason}."""

    variable: str
    reason: str
    remedy: str
    next_step = "{remedy}; or set OTEL_SDK_DISABLED=true."


def asked_for(environment: Mapping[str, str]) -> str:
    """The variable that asks for traces; "" where none does."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter:
        return "" if exporter == "none" else "OTEL_TRACES_EXPORTER"
    return next((name for name in _ENDPOINTS if environment.get(name, "").strip()), "")


class Traces:
    """Where spans go. `close` it, or the last ones are lost."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import IdGenerator

        class Given(IdGenerator):
            """Ids that the log has given."""

            context: SpanContext

            def generate_span_id(self) -> int:
                return self.context.span_id

            def generate_trace_id(self) -> int:
                return self.context.trace_id

        release = version("hourglass-agents")
        attributes = {"service.version": release, "host.name": platform.node()}
        if "OTEL_SERVICE_NAME" not in os.environ:
            attributes["service.name"] = "hourglass"
        self._ids: Any = Given()
        self._provider = TracerProvider(
            resource=Resource.create(attributes), id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("hourglass", release)

    def root(self, trace_id: int, span_id: int) -> SpanContext:
        """The context of a trace's first span, sampled as OTEL_TRACES_SAMPLER says."""
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.trace import SpanContext, TraceFlags

        decision = self._provider.sampler.should_sample(None, trace_id, "session").decision
        flags = TraceFlags(TraceFlags.SAMPLED if decision is Decision.RECORD_AND_SAMPLE else TraceFlags.DEFAULT)
        return SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)

    def next_is(self, context: SpanContext) -> None:
        """The ids of the next span; spans are made by one thread."""
        self._ids.context = context

    def close(self) -> None:
        """Export what is left, for some seconds at most: a collector that does not answer must not hold up a stop."""
        closing = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        if closing.is_alive():
            log.warning("the collector did not take the last traces within %.0f s, they are lost", _CLOSE_S)


def open_traces() -> Traces | None:
    """What this process's environment asks for; None where it asks for nothing. Raises `NoTracing`.

    Call it before Ray is started: what may be credentials among the variables is forgotten then.
    """
    variable = asked_for(os.environ)
    if not variable:
        return None
    exporter = _exporter(variable, os.environ)
    traces = Traces(exporter)
    for name in _HEADERS:
        os.environ.pop(name, None)
    return traces


def _exporter(variable: str, environment: Mapping[str, str]) -> SpanExporter:
    name = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name == "otlp":
        protocol = (
            environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = list(entry_points(group=_GROUP, name=name))
    if not found:
        remedy = "pip install 'hourglass-agents[otel]'"
        if name != "otlp_proto_http":
            remedy = f"install the package that has it, or unset it: {remedy} exports OTLP over HTTP"
        raise NoTracing(variable=variable, reason=f"the exporter {name} is not installed", remedy=remedy)
    try:
        exporter: SpanExporter = found[0].load()()
    except Exception as error:
        raise NoTracing(variable=variable, reason=f"{name}: {error}", remedy="correct the OTEL_… variables") from error
    return exporter
