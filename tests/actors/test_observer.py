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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from actors.observer import Observer
from actors.settings import Settings
from actors.trace import TRACE_ID
from tests.actors.test_metrics import figures
from tests.service import HOURGLASS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.service import Installed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
_WAIT_S = 40.0


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Takes traces over OTLP/HTTP; its address, and the spans that came."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            for one in request.resource_spans:
                resource = {pair.key: pair.value.string_value for pair in one.resource.attributes}
                service = resource["service.name"]
                spans.extend((service, span) for scope in one.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", spans
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
    check_spans(installed, session_id, exported, calls)
    # Another start goes on counting where the log stands.
    installed.options = ["--metrics-port", "0"]
    with installed.up():
        (ours,) = installed.said["metrics"]
        again = scrape_until(ours, lambda now: now.get('hourglass_sandboxes{phase="suspended"}') == 1)
    assert sum(value for name, value in again.items() if name.startswith("hourglass_tool_calls_total")) == calls


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


def check_spans(installed: Installed, session_id: str, exported: list[Any], calls: int) -> None:
    """One trace, as the metadata of the events has it, with each call's span and its run; one root."""
    assert {service for service, _ in exported} == {"hourglass"}
    spans = [span for _, span in exported]
    traces = {event.metadata[TRACE_ID] for event in installed.history(f"session-{session_id}")}
    sandbox = installed.history(installed.sandbox_of(session_id))
    assert {event.metadata[TRACE_ID] for event in sandbox} == traces
    assert {span.trace_id.hex() for span in spans} == traces
    assert len(traces) == 1
    ids = {span.span_id for span in spans}
    assert len(ids) == len(spans)
    roots = [span for span in spans if not span.parent_span_id]
    assert [root.name for root in roots] == ["session"]
    assert all(span.parent_span_id in ids for span in spans if span.parent_span_id)
    names = [span.name for span in spans]
    assert sum(name.startswith("execute_tool ") for name in names) == calls
    assert sum(name.startswith("run ") for name in names) == calls
    assert {"attach", "machine start", "machine snapshot", "machine suspend"} <= set(names)


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
