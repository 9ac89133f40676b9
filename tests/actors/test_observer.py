"""A real `hourglass up`, watched: metrics are scraped, traces exported to a collector, `top` runs in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from actors.observer import Observer
from actors.settings import Settings
from actors.trace import TRACE_ID
from events.types import ToolCallRequested
from tests.actors.test_metrics import figures
from tests.service import HOURGLASS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.service import Installed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
_WAIT_S = 40.0


@dataclass
class Collected:
    """What came over the wire."""

    spans: list[Any] = field(default_factory=list)
    services: set[str] = field(default_factory=set)
    scopes: dict[bytes, str] = field(default_factory=dict)
    """What made a span, by the span's id."""
    bodies: list[bytes] = field(default_factory=list)


@contextmanager
def collector() -> Iterator[tuple[str, Collected]]:
    """Takes traces over OTLP/HTTP; its address, and what came."""
    collected = Collected()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collected.bodies.append(body)
            request = ExportTraceServiceRequest()
            request.ParseFromString(body)
            for one in request.resource_spans:
                resource = {pair.key: pair.value.string_value for pair in one.resource.attributes}
                collected.services.add(resource["service.name"])
                for scope in one.scope_spans:
                    collected.spans.extend(scope.spans)
                    collected.scopes.update(dict.fromkeys((span.span_id for span in scope.spans), scope.scope.name))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", collected
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def scrape_until(address: str, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    deadline = time.monotonic() + _WAIT_S
    while True:
        with urllib.request.urlopen(address) as answer:
            found = figures(answer.read().decode())
        if holds(found):
            return found
        assert time.monotonic() < deadline, {name: value for name, value in found.items() if "hourglass" in name}
        time.sleep(0.2)


def test_a_service_is_scraped_and_traced(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    installed.options = ["--metrics-port", "0", "--dashboard"]
    with collector() as (address, exported):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        with installed.up():
            ours, rays = installed.said["metrics"]
            assert ours.startswith("http://127.0.0.1:")
            assert rays.startswith("http://127.0.0.1:")
            session_id = installed.session("fix-the-bug")
            installed.wait_for(f"session-{session_id}", "session.released")
            calls = len(installed.results(session_id))
            assert installed.sandbox_of(session_id).removeprefix("sandbox-") in watched_top(installed)
            found = scrape_until(ours, lambda now: now.get('hourglass_claims_ended_total{how="idle"}') == 1)
            live = scrape_until(ours, lambda now: now.get('hourglass_up{part="controller"}') == 1)
            through_ray = scrape_until(
                rays, lambda now: sum(value for name, value in now.items() if "ray_hourglass_claims_ended" in name) == 1
            )
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(ours)
    assert sum(value for name, value in found.items() if name.startswith("hourglass_tool_calls_total")) == calls > 3
    assert found['hourglass_machine_seconds_count{operation="start"}'] == 1
    assert found['hourglass_sandboxes{phase="frozen"}'] == 1
    assert live['hourglass_up{part="host"}'] == live['hourglass_up{part="observer"}'] == 1
    # Whatever Ray shows beside, it shows the very figures.
    ray_calls = [value for name, value in through_ray.items() if name.startswith("ray_hourglass_tool_calls_total")]
    assert sum(ray_calls) == calls
    check_spans(installed, session_id, exported)
    assert {"HostActor.claim", "HostActor.serve", "HostActor.release"} <= remote_calls(exported)
    # Another start goes on counting where the log stands.
    installed.options = ["--metrics-port", "0", "--isolation", "process"]
    with collector() as (address, exported):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        with installed.up():
            (ours,) = installed.said["metrics"]
            again = scrape_until(ours, lambda now: now.get('hourglass_sandboxes{phase="suspended"}') == 1)
            session_id = installed.session("tidy-the-logs")
            installed.wait_for(f"session-{session_id}", "session.released")
    assert sum(value for name, value in again.items() if name.startswith("hourglass_tool_calls_total")) == calls
    check_spans(installed, session_id, exported)
    assert {"SessionActor.run", "SandboxActor.call", "HostActor.append"} <= remote_calls(exported)


def watched_top(installed: Installed) -> str:
    """What `hourglass top` draws in a terminal until it has looked twice, and Ctrl-C ends it."""
    ours, theirs = pty.openpty()
    variables = installed.variables | {"TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(
        [HOURGLASS, "top"], env=variables, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    drawn = b""
    try:
        while b"of a CPU" not in drawn:
            assert select.select([ours], [], [], _WAIT_S)[0], drawn
            drawn += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(_WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return drawn.decode()


def check_spans(installed: Installed, session_id: str, exported: Collected) -> None:
    """One trace, as the metadata of the events has it: of the log, of the API's client and of Ray; one root."""
    assert exported.services == {"hourglass"}
    spans = exported.spans
    history = installed.history(f"session-{session_id}")
    traces = {event.metadata[TRACE_ID] for event in history}
    sandbox = installed.history(installed.sandbox_of(session_id))
    assert {event.metadata[TRACE_ID] for event in sandbox} == traces
    assert {span.trace_id.hex() for span in spans} == traces
    assert len(traces) == 1
    ids = {span.span_id for span in spans}
    assert len(ids) == len(spans)
    (root,) = [span for span in spans if not span.parent_span_id]
    assert root.name == "session"
    assert root.span_id == history[0].event_id.bytes[:8]
    assert all(span.parent_span_id in ids for span in spans if span.parent_span_id)
    names = [span.name for span in spans]
    calls = len(installed.results(session_id))
    assert sum(name.startswith("execute_tool ") for name in names) == calls
    assert sum(name.startswith("run ") for name in names) == calls
    assert {"attach", "machine start", "machine snapshot", "machine suspend"} <= set(names)
    of_api = [span for span in spans if exported.scopes[span.span_id] == "com.anthropic.sdk.python"]
    assert {span.parent_span_id for span in of_api} == {root.span_id}
    asked = [span.name.removeprefix("anthropic.") for span in of_api]
    assert asked.count("sessions.events.send") == calls
    assert set(asked) == {
        *(f"environments.work.{what}" for what in ("ack", "heartbeat", "stop")),
        *(f"sessions.{what}" for what in ("retrieve", "events.stream", "events.list", "events.send")),
    }
    check_no_secrets(installed, session_id, exported)


def check_no_secrets(installed: Installed, session_id: str, exported: Collected) -> None:
    """No key and no token, and nothing of what the tools were given or returned."""
    sent = b"".join(exported.bodies)
    assert b"sk-ant-" not in sent  # with this begin the environment's key, the session's token and the app's key
    assert installed.environment.key.encode() not in sent
    asked = [event.data for event in installed.history(f"session-{session_id}")]
    given = [one.input for one in asked if isinstance(one, ToolCallRequested)]
    texts = [text for one in [*given, *installed.results(session_id)] for text in texts_in(one)]
    lines = {line.strip() for text in texts for line in text.splitlines()}
    assert len(lines) > 10
    assert [line for line in lines if len(line) > 8 and line.encode() in sent] == []


def texts_in(value: object) -> Iterator[str]:
    """Every text in a JSON value that is not one of the API's ids and words."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name in ("content", "text", "command", "file_text", "old_str", "new_str", "path", "pattern"):
                yield from texts_in(one)


def remote_calls(exported: Collected) -> set[str]:
    """The calls between actors that were both sent and run."""
    of_ray = [span.name for span in exported.spans if exported.scopes[span.span_id].startswith("ray.")]
    sent = {name.removesuffix(" ray.remote") for name in of_ray if name.endswith(" ray.remote")}
    return sent & {name.removesuffix(" ray.remote_worker") for name in of_ray}


async def test_figures_of_a_log_that_can_not_be_read_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    observer = Observer(Settings(home=tmp_path, metrics_port=0))
    try:
        await observer.run(None, None)
        found = await asyncio.to_thread(scrape_until, observer.addresses[0], bool)
        assert found['hourglass_up{part="observer"}'] == 0
    finally:
        await observer.finish()
    assert "the service goes on" in caplog.text
    assert "log.db" in caplog.text


def test_traces_that_can_not_be_exported_end_it_before_ray_starts(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    done = installed.command("up", "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert "zipkin" in said["error"]
    assert "OTEL_SDK_DISABLED" in said["next"]
