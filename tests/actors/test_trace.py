"""The trace in an event's metadata, and the spans that are made of events."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from actors import trace, tracing
from actors.journal import LocalJournal
from actors.records import session_entity
from actors.spans import Spans
from actors.trace import TRACE_ID, TracedJournal, claim_command, root_span_id_of, span_id_of, trace_id_of
from actors.tracing import NoTracing, Traces, asked_for, open_traces
from events import session as fold
from events.envelope import new_events
from events.errors import WrongExpectedVersion
from events.log import Append, Expect
from events.sqlite_log import SqliteLog
from tests.actors.told import BEGAN, CREATED, TRACE, claimed, requested, tell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from events.types import EventData

NS = 1_000_000_000


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db") as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def write(stream: str, name: str, data: EventData, session_id: str = "s1") -> Append:
    events = new_events(name, [data], correlation_id=session_id, metadata={"node": "n"})
    return Append(stream, events, expected=Expect.ANY)


async def test_every_event_of_a_claim_has_its_trace(log: SqliteLog) -> None:
    journal = TracedJournal(LocalJournal(log))
    before = await journal.append(write("sandbox-x", "0", CREATED))
    await journal.append(write("session-s1", "1", claimed("c1")))
    await journal.append(write("sandbox-x", "2", requested("t", "bash")), write("session-s1", "3", requested("t", "x")))
    await journal.append(write("session-s1", "4", claimed("c2")))
    await journal.append(write("session-s1", "5", requested("u", "bash")))
    other = await journal.append(write("session-s2", "6", requested("u", "bash"), session_id="s2"))
    found = [event.metadata.get(TRACE_ID) for event in log.read_all()]
    one, two = trace_id_of("c1"), trace_id_of("c2")
    assert found == [None, one, one, one, two, two, None]
    assert before[0][0].metadata == other[0][0].metadata == {"node": "n"}


async def test_the_next_host_finds_the_trace_in_the_log(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    await TracedJournal(LocalJournal(log)).append(write("session-s1", "1", claimed("c1")))
    await TracedJournal(LocalJournal(log)).append(write("session-s2", "2", claimed("c2"), session_id="s2"))
    monkeypatch.setattr(trace, "_REMEMBERED", 1)
    later = TracedJournal(LocalJournal(log))
    for number, session_id in enumerate(["s1", "s2", "s1"]):
        (events,) = await later.append(write(f"sandbox-{session_id}", f"a{number}", requested("t", "x"), session_id))
        assert events[0].metadata[TRACE_ID] == trace_id_of("c1" if session_id == "s1" else "c2")
        assert len(later._traces) == 1


async def test_a_claim_that_was_not_recorded_is_no_trace(log: SqliteLog) -> None:
    journal = TracedJournal(LocalJournal(log))
    await journal.append(write("session-s1", "1", claimed("c1")))
    with pytest.raises(WrongExpectedVersion):
        await journal.append(Append("session-s1", new_events("2", [claimed("c2")], correlation_id="s1"), expected=7))
    (events,) = await journal.append(write("session-s1", "3", requested("t", "bash")))
    assert events[0].metadata[TRACE_ID] == trace_id_of("c1")


async def test_whoever_knows_a_claim_knows_its_root(log: SqliteLog) -> None:
    entity = session_entity("s1", LocalJournal(log), epoch=1, metadata={})
    for claim_id in ("c1", "c2"):
        claim = fold.Claim(
            claim_id=claim_id, environment_id="env_1", work_id="w", worker_id="me", credential="environment_key"
        )
        (event,) = await entity.execute(claim_command(claim_id), claim)
        assert span_id_of(event.event_id) == root_span_id_of("s1", claim_id)


def spans_of(log: SqliteLog, since_us: int = 0) -> dict[str, ReadableSpan]:
    """The story's spans, by name; of several with one name the last."""
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    spans = Spans(traces, since_us)
    for event in tell(log):
        spans.take(event)
    traces.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def seconds(span: ReadableSpan) -> tuple[float, float]:
    """From the story's beginning."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / NS - BEGAN, span.end_time / NS - BEGAN


def test_spans_have_the_times_of_the_log(log: SqliteLog) -> None:
    found = spans_of(log)
    assert {name: seconds(span) for name, span in found.items() if name != "session"} == {
        "machine start": (0.5, 1),
        "attach": (0, 2),
        "run bash": (10, 11),
        "execute_tool bash": (10, 12),
        "run an invention of the model": (9, 9),
        "execute_tool an invention of the model": (8, 9),
        "execute_tool read": (13, 13),
        "machine crash": (11, 11),
        "machine recover": (11, 12),
        "machine snapshot": (pytest.approx(23.9), 24),
        "machine suspend": (pytest.approx(23.8), 24),
    }


def test_spans_hang_together(log: SqliteLog) -> None:
    found = spans_of(log)
    parents = {}
    names = {span.context.span_id: name for name, span in found.items() if span.context is not None}
    for name, span in found.items():
        assert span.context is not None
        parents[name] = names.get(span.parent.span_id) if span.parent is not None else ""
        if name != "session":
            assert span.context.trace_id == TRACE
    # The root of the first claim: of the spans named so, the last is the second session's.
    root = found["attach"].parent
    assert root is not None
    assert parents["machine start"] == "attach"
    assert parents["run bash"] == parents["machine recover"] == parents["machine crash"] == "execute_tool bash"
    for name in ("execute_tool bash", "execute_tool read", "machine suspend", "machine snapshot"):
        assert found[name].parent == root
    assert parents["session"] == ""


def test_spans_say_what_went_wrong(log: SqliteLog) -> None:
    found = spans_of(log)
    errors = {
        name: span.status.description for name, span in found.items() if span.status.status_code is StatusCode.ERROR
    }
    assert errors == {
        "run bash": "interrupted: out_of_memory",
        "execute_tool bash": None,
        "machine crash": "out_of_memory: ",
        "run an invention of the model": "the tool's result is an error",
        "execute_tool an invention of the model": None,
        "session": "lease lost: no_heartbeat_succeeded",
    }
    asked = found["execute_tool bash"].attributes or {}
    assert asked["gen_ai.operation.name"] == "execute_tool"
    assert asked["gen_ai.tool.call.id"] == "t3"
    assert asked["gen_ai.conversation.id"] == "s1"
    assert (found["session"].attributes or {})["hourglass.outcome"] == "lease_lost"
    assert found["session"].resource.attributes["service.name"] == "hourglass"


def test_the_same_log_gives_the_same_spans(log: SqliteLog, tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "again.db") as again:
        assert [one.context for one in spans_of(log).values()] == [one.context for one in spans_of(again).values()]


def test_what_ended_before_is_not_exported_again(log: SqliteLog) -> None:
    found = spans_of(log, since_us=(BEGAN + 13) * 1_000_000)
    assert set(found) == {"session", "execute_tool read", "machine suspend", "machine snapshot"}


def test_a_trace_that_is_not_sampled_is_not_exported(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    assert spans_of(log) == {}


@pytest.mark.parametrize(
    ("variables", "asks"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ""),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ""),
    ],
)
def test_the_standard_variables_ask_for_traces(variables: dict[str, str], asks: str) -> None:
    assert asked_for(variables) == asks


def test_an_exporter_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(NoTracing, match=r"asked for by OTEL_TRACES_EXPORTER, .* zipkin is not installed") as error:
        open_traces()
    assert "hourglass-agents[otel]" in error.value.advice
    assert "OTEL_SDK_DISABLED" in error.value.advice


@pytest.mark.parametrize(
    ("variables", "stay"),
    [
        ({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=hush", "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "x=hush"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=hush"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://me:hush@127.0.0.1:9/v1/traces"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_HEADERS": "x=hush"}, True),
    ],
)
def test_credentials_are_not_inherited_and_who_has_none_does_not_try(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variables: dict[str, str], stay: bool
) -> None:
    for name, value in {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    traces = open_traces()
    assert traces is not None
    traces.close()
    assert "hush" not in str(os.environ)
    assert bool(asked_for(os.environ)) is stay
    assert ("the log's spans alone" in caplog.text) is not stay
    assert "hush" not in caplog.text


def test_credentials_are_forgotten_where_nobody_asks_for_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hush")
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "one that is not installed")
    assert open_traces() is None
    assert not {"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_PYTHON_TRACER_PROVIDER"} & set(os.environ)


def test_a_collector_that_does_not_answer_holds_up_nobody(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "_CLOSE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        traces = open_traces()
        assert traces is not None
        spans = Spans(traces, 0)
        for event in tell(log):
            spans.take(event)
        traces.close()
    assert "they are lost" in caplog.text
