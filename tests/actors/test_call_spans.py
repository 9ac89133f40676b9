"""Which of the spans that the libraries make are exported, and what a collector that is away costs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actors import call_spans
from actors.api import as_bearer, connect
from actors.call_spans import of_claim, of_no_claim
from actors.claim import Claim
from actors.trace import root_span_id_of, trace_id_of

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

CLAIM = Claim("c1", "s1", "w", "env_1", "me", "environment_key")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(call_spans, "_process", None)


class Traced:
    """This process, as if it made spans; its provider is not the global one, which is for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._exporter = InMemorySpanExporter()
        process = call_spans._made(self._exporter)
        monkeypatch.setattr(call_spans, "_process", process)
        self.tracer: Tracer = process.provider.get_tracer("a library")
        self.provider: TracerProvider = process.provider

    def exported(self) -> dict[str, tuple[int, int]]:
        """Trace and parent of the spans, by name."""
        self.provider.force_flush()
        found = {}
        for span in self._exporter.get_finished_spans():
            assert span.context is not None
            assert span.parent is not None
            assert span.events == ()
            found[span.name] = (span.context.trace_id, span.parent.span_id)
        return found


async def test_calls_for_a_claim_are_children_of_its_root_and_others_are_not_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced = Traced(monkeypatch)

    async def call(name: str) -> None:
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="a secret"), traced.tracer.start_as_current_span(name):
            raise ValueError("a secret")

    with traced.tracer.start_as_current_span("a call of Ray's that is of no claim"):
        with of_claim(CLAIM):
            await call("heartbeat")
            later = asyncio.create_task(call("of a task"))
            with of_no_claim():
                for_ever = asyncio.create_task(call("of a task for all"))
        await call("poll")
    await asyncio.gather(later, for_ever)
    root = int(trace_id_of("c1"), 16), root_span_id_of("s1", "c1")
    assert traced.exported() == {"heartbeat": root, "of a task": root}


@pytest.mark.parametrize(("sampler", "is_traced"), [("always_on", True), ("always_off", False)])
def test_the_sampler_decides_on_claims_alone(monkeypatch: pytest.MonkeyPatch, sampler: str, is_traced: bool) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    traced = Traced(monkeypatch)
    with of_claim(CLAIM), traced.tracer.start_as_current_span("call"):
        call_spans.name_method("run_call")
    with traced.tracer.start_as_current_span("poll"):
        pass
    assert list(traced.exported()) == ["call"] * is_traced


async def test_the_api_is_traced_without_content_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE", "content")
    async with connect(None, "a token") as client:
        for one in (client, as_bearer(client, "another"), client.with_options(max_retries=0)):
            assert one.open_telemetry["traces"]["content_mode"] == "metadata_only"


async def test_without_the_variables_nothing_is_attached() -> None:
    call_spans.set_up()
    assert not call_spans.on()
    with of_claim(CLAIM), of_no_claim():
        assert not trace.get_current_span().get_span_context().is_valid
        call_spans.name_method("run_call")
    await call_spans.flush()


def test_a_process_without_the_exporter_works_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    call_spans.set_up()
    assert not call_spans.on()
    assert "zipkin is not installed" in caplog.text


async def test_the_provider_of_a_cluster_that_has_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: theirs)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    call_spans.set_up()
    with of_claim(CLAIM), theirs.get_tracer("Ray").start_as_current_span("call") as span:
        assert span.get_span_context().trace_id == int(trace_id_of("c1"), 16)
    await call_spans.flush()


AWAY = """
import asyncio, logging
from opentelemetry import trace
from actors import call_spans
from actors.claim import Claim
from actors.cluster import prepare_process
from actors.settings import Settings

prepare_process(Settings())
for number in range(5):
    with call_spans.of_claim(Claim("c1", "s1", "w", "env_1", "me", "environment_key")):
        trace.get_tracer("x").start_span("a call").end()
    trace.get_tracer_provider().force_flush()
asyncio.run(call_spans.flush())
print(call_spans._process.exporter.failing)
logging.getLogger("actors").info("the end")
"""


def test_a_collector_that_is_away_is_logged_once() -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.1"}
    done = subprocess.run(
        [sys.executable, "-c", AWAY], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    first, last = done.stderr.splitlines()
    assert "opentelemetry.exporter" in first
    assert "Failed to export" in first
    assert last.endswith("the end")
