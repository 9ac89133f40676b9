"""OpenTelemetry's side of tracing, as the standard variables say: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_EXPORTER …

Off, and nothing of OpenTelemetry is imported, unless one of them asks for traces. Spans are made by `actors.spans`, and
in the processes of the service by the libraries that `actors.call_spans` lets make them.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any

from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import SpanContext

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
_GROUP = "opentelemetry_traces_exporter"
_CLOSE_S = 5.0
_SAY_EVERY_S = 60.0


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


def make_provider(exporter: SpanExporter, **options: Any) -> TracerProvider:
    """One that exports in batches, on a thread of its own. Nothing is exported at the process's end by itself."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {"service.version": version("hourglass-agents"), "host.name": platform.node()}
    if "OTEL_SERVICE_NAME" not in os.environ:
        attributes["service.name"] = "hourglass"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False, **options)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def root_context(sampler: Sampler, trace_id: int, span_id: int) -> SpanContext:
    """The context of a trace's first span, sampled or not. Whoever asks the same sampler gets the same answer."""
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.sampling import Decision
    from opentelemetry.trace import SpanContext, TraceFlags

    # In no context: None would be the current one, and whoever asks may be in a span of Ray's that is not sampled.
    decision = sampler.should_sample(Context(), trace_id, "session").decision
    flags = TraceFlags(TraceFlags.SAMPLED if decision is Decision.RECORD_AND_SAMPLE else TraceFlags.DEFAULT)
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)


def within(seconds: float, work: Callable[[], object]) -> bool:
    """Do it on a thread of its own, and wait so long at most; whether it was done by then.

    OpenTelemetry's own limits of time are not kept where a collector does not answer.
    """
    thread = threading.Thread(target=work, name="last traces", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


class Traces:
    """Where the log's spans go. `close` it, or the last ones are lost."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.trace.id_generator import IdGenerator

        class Given(IdGenerator):
            """Ids that the log has given."""

            context: SpanContext

            def generate_span_id(self) -> int:
                return self.context.span_id

            def generate_trace_id(self) -> int:
                return self.context.trace_id

        self._ids: Any = Given()
        self._provider = make_provider(exporter, id_generator=self._ids)
        self.tracer = self._provider.get_tracer("hourglass", version("hourglass-agents"))

    def root(self, trace_id: int, span_id: int) -> SpanContext:
        """The context of a trace's first span, sampled as OTEL_TRACES_SAMPLER says."""
        return root_context(self._provider.sampler, trace_id, span_id)

    def next_is(self, context: SpanContext) -> None:
        """The ids of the next span; spans are made by one thread."""
        self._ids.context = context

    def close(self) -> None:
        """Export what is left, for some seconds at most: a collector that does not answer must not hold up a stop."""
        if not within(_CLOSE_S, self._provider.shutdown):
            log.warning("the collector did not take the last traces within %.0f s, they are lost", _CLOSE_S)


def open_traces() -> Traces | None:
    """What this process's environment asks for; None where it asks for nothing. Raises `NoTracing`.

    Call it before Ray is started: what may be credentials among the variables is forgotten then. A collector that wants
    some gets the log's spans alone, and no process that is started later tries to export to it.
    """
    variable = asked_for(os.environ)
    traces = Traces(make_exporter(variable, os.environ)) if variable else None
    # The global provider is for our processes to make; a name of one that is not installed would break Ray's calls.
    os.environ.pop("OTEL_PYTHON_TRACER_PROVIDER", None)
    if _forget_credentials(os.environ) and traces is not None:
        os.environ["OTEL_TRACES_EXPORTER"] = "none"
        log.warning("the collector wants credentials, which no other process is given: it gets the log's spans alone")
    return traces


def _forget_credentials(environment: MutableMapping[str, str]) -> bool:
    """Drop them; whether there were some for traces."""
    secret = [name for name in environment if name.startswith("OTEL_") and name.endswith("_HEADERS")]
    secret += [name for name in _ENDPOINTS if "@" in environment.get(name, "")]  # http://user:password@host
    for name in secret:
        del environment[name]
    return any(name in (*_HEADERS, *_ENDPOINTS) for name in secret)


class _Seldom(logging.Handler):
    """Passes on one record a minute, with the number of those before it that it did not.

    An exporter says of each batch and each try that its collector does not answer, in every process of ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said_at = -_SAY_EVERY_S
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if time.monotonic() - self._said_at < _SAY_EVERY_S:
            self._left_out += 1
            return
        if self._left_out:
            record.msg, record.args = f"{record.getMessage()} ({self._left_out} more messages before this one)", None
        self._said_at, self._left_out = time.monotonic(), 0
        logging.getLogger().handle(record)


def _speak_seldom() -> None:
    """Bound what OpenTelemetry logs in this process."""
    logger = logging.getLogger("opentelemetry")
    if logger.propagate:
        logger.propagate = False
        logger.addHandler(_Seldom())


def make_exporter(variable: str, environment: Mapping[str, str]) -> SpanExporter:
    """The exporter that the variables name, `variable` asking for it. Raises `NoTracing`."""
    _speak_seldom()
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
