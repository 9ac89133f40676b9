"""`hourglass up` as a user runs it, with Ray, in both isolations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from actors import cluster
from actors.cluster import host_name
from actors.settings import Settings
from tests.service import HOURGLASS, stop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service import Installed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def test_sessions_are_served_in_both_isolations(installed: Installed, isolation: str, tmp_path: Path) -> None:
    installed.options = ["--isolation", isolation, "--dashboard"]
    with installed.up() as process:
        sessions = [installed.session(recording) for recording in ("fix-the-bug", "tidy-the-logs")]
        streams = [f"session-{session_id}" for session_id in sessions]
        installed.wait_for(streams[0], "session.attached")
        actors = ray_actors(installed)
        traced = modules_of_the_host(installed)
        for stream in streams:
            installed.wait_for(stream, "session.released")
        copied = installed.command("cp", f"{sessions[0]}:/workspace/durations.py", str(tmp_path / "copy.py"))
        missing = installed.command("cp", f"{sessions[0]}:/workspace/nope", str(tmp_path / "nope"))
    assert process.returncode == 0
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "copy.py").read_text().startswith(('"""', "UNITS", "import", "def", "#"))
    assert missing.returncode == 1
    assert "no such file" in missing.stderr.lower()
    assert {"HostActor", "ControllerActor"} <= actors
    # Nobody asked for traces. What the anthropic SDK imports by itself, OpenTelemetry's API, costs nothing.
    assert "anthropic" in traced
    assert not {name for name in traced if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))}
    assert ({"SessionActor", "SandboxActor"} <= actors) == (isolation == "process")
    for session_id, stream in zip(sessions, streams, strict=True):
        kinds = installed.kinds(stream)
        assert (
            kinds.count("tool_call.requested")
            == kinds.count("session.result_posted")
            == len(installed.results(session_id))
        )
        assert installed.kinds(installed.sandbox_of(session_id))[-1] == "sandbox.suspended"
    assert installed.command("log", "verify").returncode == 0
    assert installed.environment.key not in (installed.home.parent / "up.log").read_text()


def ray_actors(installed: Installed) -> set[str]:
    """Class names of the living actors, as `ray list actors` has them."""
    ray = HOURGLASS.with_name("ray")
    listed = ask_ray(installed, str(ray), "list", "actors", "--filter", "state=ALIVE", "--format", "json")
    return {actor["class_name"] for actor in json.loads(listed[listed.index("[") :])}


def modules_of_the_host(installed: Installed) -> set[str]:
    """What the process of the host has imported."""
    program = (
        "import json, ray; ray.init(namespace='hourglass', logging_level='ERROR', log_to_driver=False)\n"
        f"host = ray.get_actor({host_name(Settings(home=installed.home))!r})\n"
        "print(json.dumps(ray.get(host.__ray_call__.remote(lambda _: list(__import__('sys').modules)))))"
    )
    return set(json.loads(ask_ray(installed, sys.executable, "-c", program).splitlines()[-1]))


def ask_ray(installed: Installed, *command: str) -> str:
    """What a command prints that speaks to the service's Ray. There may be another one on this machine."""
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_ADDRESS": (installed.home / "ray-address").read_text(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_up_on_the_same_home_is_refused(installed: Installed) -> None:
    with installed.up() as first:
        second = installed.command("up")
        assert second.returncode == 1
        assert "another `hourglass up`" in second.stderr
        assert str(first.pid) in second.stderr
        assert "--home" in second.stderr
        session_id = installed.session("bash-true")
        installed.wait_for(f"session-{session_id}", "session.released")


def test_a_key_that_the_queue_refuses_ends_it_with_the_reason(installed: Installed) -> None:
    installed.server.revoke(installed.environment.key)
    process = installed.start()
    assert process.stdout is not None
    said = json.loads(process.stdout.read())
    stop(process)
    assert process.returncode == 1
    assert "revoked" in said["error"]
    assert "Console" in said["next"]


def test_a_corrupt_log_is_refused_and_left_alone(installed: Installed) -> None:
    installed.home.mkdir(parents=True)
    path = installed.home / "log.db"
    path.write_bytes(b"this is no database" * 1000)
    done = installed.command("up")
    assert done.returncode == 1
    assert "log.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == b"this is no database" * 1000


def test_a_process_takes_as_many_open_files_as_it_may() -> None:
    program = "from actors.cluster import allow_open_files as f; f(); import resource as r; print(*r.getrlimit(7))"
    done = subprocess.run(
        ["prlimit", "--nofile=256:5000", sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["5000", "5000"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ANTHROPIC_ENVIRONMENT_ID": ""}, "no environment"),
        ({"ANTHROPIC_ENVIRONMENT_KEY": ""}, "no environment key"),
        ({"HOURGLASS_ISOLATION": "none"}, "isolation"),
        ({"HOURGLASS_LIMITS__MEMORY_BYTES": "12"}, "memory_bytes"),
        ({"HOURGLASS_TEMPLATE": "nope"}, "template"),
    ],
)
def test_bad_settings_end_it_before_ray_starts(installed: Installed, change: dict[str, str], said: str) -> None:
    done = subprocess.run(
        [HOURGLASS, "up"], env=installed.variables | change, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "next:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dashboard_that_is_not_installed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with pytest.raises(cluster.NoDashboard) as caught:
        cluster.start_ray(Settings(), dashboard=True)
    assert "hourglass-agents[cluster]" in caught.value.advice


def test_sigint_drains_as_well(installed: Installed) -> None:
    process = installed.start()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    stop(process)


def test_doctor_says_it_in_json_too(installed: Installed) -> None:
    done = installed.command("doctor", "--json")
    found = json.loads(done.stdout)
    assert found["ok"] is (done.returncode == 0)
    assert {"runsc", "root", "template"} <= {finding["name"] for finding in found["findings"]}


def test_cp_without_a_service_says_how_to_start_one(installed: Installed) -> None:
    done = installed.command("cp", "sesn_x:/etc/hosts", "-")
    assert done.returncode == 1
    assert "no service runs" in done.stderr
    assert "hourglass up" in done.stderr
