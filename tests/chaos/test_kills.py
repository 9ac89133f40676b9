"""`kill -9` of each part of a running service, in the middle of a tool call; then it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic

from replay.local import storage
from tests.service import HOURGLASS, stop

if TYPE_CHECKING:
    from tests.service import Installed

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


def in_a_call(installed: Installed) -> str:
    """A session whose first call sleeps for three seconds, in the middle of it."""
    session_id = installed.session("interrupt")
    installed.wait_for(installed.sandbox_of(session_id), "tool_call.started")
    return session_id


def ran_once_and_was_posted(installed: Installed, session_id: str) -> None:
    (posted,) = installed.wait_for(f"session-{session_id}", "session.result_posted")
    assert posted.data.outcome == "posted"  # type: ignore[union-attr]
    (result,) = installed.results(session_id)
    assert result["content"] == [{"type": "text", "text": "awake"}]
    kinds = installed.kinds(installed.sandbox_of(session_id))
    assert kinds.count("tool_call.started") == kinds.count("tool_call.completed") == 1
    assert "sandbox.recovered" in kinds
    assert installed.command("log", "verify").returncode == 0


def kill_actor(name: str) -> None:
    """Kill the process of a Ray actor by its title."""
    found = subprocess.run(["pgrep", "-f", f"^ray::{name}"], capture_output=True, text=True, check=True)
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def test_the_whole_service_is_killed_and_started_again(installed: Installed, isolation: str) -> None:
    installed.options = ["--isolation", isolation]
    process = installed.start()
    session_id = in_a_call(installed)
    os.kill(process.pid, signal.SIGKILL)
    stop(process)
    wait_until_ray_is_gone()
    with installed.up():
        ran_once_and_was_posted(installed, session_id)


def wait_until_ray_is_gone() -> None:
    """Ray's own reaper ends what `up` started."""
    for _ in range(300):
        if subprocess.run(["pgrep", "-f", "^ray::HostActor"], capture_output=True, check=False).returncode:
            return
        time.sleep(0.1)
    raise AssertionError("the host outlived the service")


def test_the_host_is_killed_and_its_replacement_goes_on(installed: Installed) -> None:
    with installed.up():
        session_id = in_a_call(installed)
        kill_actor("HostActor")
        ran_once_and_was_posted(installed, session_id)
    assert installed.kinds(f"session-{session_id}").count("session.claimed") == 1


def test_the_controller_is_killed_and_its_replacement_takes_the_lease_back(installed: Installed) -> None:
    with installed.up():
        session_id = in_a_call(installed)
        kill_actor("ControllerActor")
        (posted,) = installed.wait_for(f"session-{session_id}", "session.result_posted")
        installed.wait_for(f"session-{session_id}", "session.released")
    assert posted.data.outcome == "posted"  # type: ignore[union-attr]
    assert installed.kinds(installed.sandbox_of(session_id)).count("tool_call.started") == 1


def test_the_machine_is_killed_and_the_agent_is_told(installed: Installed) -> None:
    with installed.up():
        session_id = in_a_call(installed)
        sandbox_id = installed.sandbox_of(session_id).removeprefix("sandbox-")
        subprocess.run(["pkill", "-KILL", "-f", f"runsc.*{machine_of(installed, sandbox_id)}"], check=True)
        installed.wait_for(f"session-{session_id}", "session.result_posted")
    (result,) = installed.results(session_id)
    assert result["is_error"]
    assert "restarted" in result["content"][0]["text"]
    kinds = installed.kinds(f"sandbox-{sandbox_id}")
    assert "sandbox.crashed" in kinds
    assert "sandbox.recovered" in kinds


def machine_of(installed: Installed, sandbox_id: str) -> str:
    (started,) = [one.data for one in installed.history(f"sandbox-{sandbox_id}") if one.type == "sandbox.started"]
    machine_id: str = started.machine_id  # type: ignore[union-attr]
    return machine_id


@pytest.mark.parametrize("moment", ["0.02", "0.08"])
def test_the_host_is_killed_in_the_middle_of_a_suspend(installed: Installed, moment: str) -> None:
    with installed.up():
        session_id = installed.session("two-turns")
        installed.wait_for(f"session-{session_id}", "session.released")
        sandbox = installed.sandbox_of(session_id)
        # Told apart from what a pause says of itself: the one that is running when its host dies says nothing of use.
        asked = subprocess.Popen(
            [HOURGLASS, "pause", session_id],
            env=installed.variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        held = list_snapshots()
        deadline = time.monotonic() + 20
        while list_snapshots() == held and asked.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(float(moment))
        kill_actor("HostActor")
        asked.wait(timeout=60)
        assert installed.json("resume", session_id)["phase"] == "running"
        with Anthropic(api_key=installed.server.api_key, base_url=installed.server.base_url) as app:
            app.beta.sessions.events.send(
                session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Add one."}]}]
            )
        installed.wait_for(f"session-{session_id}", "session.result_posted", count=2)
        # Shell and all: nothing of the sandbox's memory is lost, whenever it was.
        assert installed.results(session_id)[-1]["content"] == [{"type": "text", "text": "42\n41"}]
        kinds = installed.kinds(sandbox)
        assert "sandbox.crashed" not in kinds
        assert installed.command("log", "verify").returncode == 0


def list_snapshots() -> set[str]:
    """Whole ones and half ones on this node."""
    return set(os.listdir(storage() / "pool" / "snapshots"))
