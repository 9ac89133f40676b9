"""Metrics, projected from a log."""

from __future__ import annotations

import re
import socket
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client import generate_latest

from actors.meters import FIGURES, LOOPBACK, MetricsPortTaken, PrometheusMeters
from actors.metrics import Metrics
from events.sqlite_log import SqliteLog
from events.usage import Usage, usage_of
from tests.actors.told import BEGAN, SECOND, tell

if TYPE_CHECKING:
    from pathlib import Path

NOW_US = (BEGAN + 44) * SECOND
STORY = {
    'hourglass_events_total{type="session.claimed"}': 3,
    'hourglass_events_total{type="sandbox.suspended"}': 2,
    'hourglass_claims_ended_total{how="idle"}': 1,
    'hourglass_claims_ended_total{how="lease_lost"}': 1,
    'hourglass_leases_lost_total{reason="no_heartbeat_succeeded"}': 1,
    'hourglass_sessions_failed_total{reason="api_error"}': 1,
    'hourglass_sessions{phase="claimed"}': 1,
    'hourglass_sessions{phase="attached"}': 0,
    "hourglass_attach_seconds_count": 1,
    "hourglass_attach_seconds_sum": 2,
    'hourglass_tool_calls_total{outcome="ok",tool="bash"}': 1,
    'hourglass_tool_calls_total{outcome="error",tool="other"}': 1,
    'hourglass_tool_calls_total{outcome="interrupted",tool="bash"}': 1,
    'hourglass_tool_calls_total{outcome="denied",tool="read"}': 1,
    'hourglass_tool_call_seconds_sum{tool="bash"}': 2,
    'hourglass_tool_call_turnaround_seconds_sum{tool="bash"}': 6,
    'hourglass_sandboxes{phase="suspended"}': 2,
    'hourglass_sandboxes{phase="running"}': 0,
    'hourglass_sandbox_seconds_total{phase="running"}': 12,
    'hourglass_sandbox_seconds_total{phase="stopped"}': 1,
    'hourglass_sandbox_seconds_total{phase="frozen"}': 10,
    'hourglass_sandbox_seconds_total{phase="suspended"}': 39,
    'hourglass_machine_seconds_sum{operation="start"}': 0.5,
    'hourglass_machine_seconds_sum{operation="recover"}': 1,
    # Not the fork's.
    'hourglass_machine_seconds_count{operation="suspend"}': 1,
    'hourglass_machine_seconds_count{operation="snapshot"}': 1,
    'hourglass_crashes_total{reason="out_of_memory"}': 1,
    "hourglass_cpu_seconds_total": 4,
    "hourglass_snapshot_bytes_total": 9,
    "hourglass_log_position": 31,
}


def told(tmp_path: Path) -> PrometheusMeters:
    meters = PrometheusMeters()
    metrics = Metrics(meters)
    with SqliteLog(tmp_path / "log.db") as log:
        for event in tell(log):
            metrics.take(event)
    metrics.show()
    metrics.tick(NOW_US)
    return meters


def figures(text: str) -> dict[str, float]:
    """What a scrape says, by series."""
    return {
        series: float(value)
        for series, value in re.findall(r"^([^#\s]\S*?(?:\{.*\})?) ([-+\d.e]+)$", text, re.MULTILINE)
    }


def test_a_story_in_figures(tmp_path: Path) -> None:
    found = figures(generate_latest(told(tmp_path).registry).decode())
    assert {name: found[name] for name in STORY} == pytest.approx(STORY)


def test_figures_agree_with_usage(tmp_path: Path) -> None:
    found = figures(generate_latest(told(tmp_path).registry).decode())
    with SqliteLog(tmp_path / "told.db") as log:
        history = tell(log)
    used = Usage()
    for name in ("x", "y"):
        mine = [event for event in history if event.stream == f"sandbox-{name}"]
        used = used.plus(usage_of(name, mine, NOW_US).usage)
    for phase in ("running", "frozen", "suspended", "stopped"):
        assert found[f'hourglass_sandbox_seconds_total{{phase="{phase}"}}'] == getattr(used, f"seconds_{phase}")
    assert found["hourglass_cpu_seconds_total"] == used.cpu_seconds
    assert found["hourglass_snapshot_bytes_total"] == used.snapshot_bytes


def test_time_is_counted_once_and_never_back(tmp_path: Path) -> None:
    meters = PrometheusMeters()
    metrics = Metrics(meters)
    with SqliteLog(tmp_path / "log.db") as log:
        for event in tell(log):
            metrics.take(event)
            metrics.tick(event.recorded_at_us)
    series = 'hourglass_sandbox_seconds_total{phase="suspended"}'
    seen = []
    for now_us in (NOW_US, NOW_US, NOW_US - 5 * SECOND, NOW_US + SECOND):
        metrics.tick(now_us)
        seen.append(figures(generate_latest(meters.registry).decode())[series])
    assert seen == [39, 39, 39, 41]


def test_no_id_of_anything_is_in_a_label(tmp_path: Path) -> None:
    text = generate_latest(told(tmp_path).registry).decode()
    values = set(re.findall(r'="([^"]*)"', text))
    assert not values & {"s1", "s2", "x", "y", "c1", "t1", "a", "an invention of the model"}
    assert {label for figure in FIGURES.values() for label in figure.labels} <= {
        "type", "how", "reason", "phase", "tool", "outcome", "operation", "part",
    }  # fmt: skip


def test_they_are_served_on_loopback_alone() -> None:
    meters = PrometheusMeters()
    port = meters.serve(0)
    try:
        meters.add("hourglass_crashes", reason="lost")
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics") as answer:
            assert b'hourglass_crashes_total{reason="lost"} 1.0' in answer.read()
        assert meters._server is not None
        assert meters._server.server_address[0] == "127.0.0.1"
        with pytest.raises(MetricsPortTaken, match=rf"port {port} .* in use") as error:
            PrometheusMeters().serve(port)
        assert "--metrics-port" in error.value.advice
    finally:
        meters.close()
        meters.close()
    with socket.socket() as probe:
        assert probe.connect_ex((LOOPBACK, port)) != 0
