"""`hourglass bisect` as a user runs it: on a session of the recorded kind, killed in the middle, beside a service."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from events.sqlite_log import SqliteLog
from events.types import BisectBegun, BisectProbed
from replay.library import Library
from replay.rebuild.throwaway import Place
from tests.replay.rebuild.test_commands import hourglass, start

if TYPE_CHECKING:
    from pathlib import Path

    from tests.replay.rebuild.conftest import NewLive
    from tests.service import Installed

UNITTEST = ("python3", "-B", "-m", "unittest")
BLAMED = {"file_path": "durations.py", "old_string": "[smhdw])+", "new_string": "[smhdw]\\s*)*"}
"""The edit of `break-the-tests` after which nothing at all is a duration too."""


@pytest.mark.asyncio(loop_scope="module")
async def test_the_edit_that_broke_a_test_is_found_in_a_session_as_it_was_recorded(new_live: NewLive) -> None:
    live = await new_live()
    versions = []
    for number, call in enumerate(Library().get("break-the-tests").calls.values()):
        versions.append(await live.call(call["name"], call["input"]))
        if number % 4 == 2:
            await live.snapshot()
    live.log.close()
    good, bad = str(versions[2]), str(versions[-1])
    arguments = ("bisect", live.sandbox_id, "--good", good, "--bad", bad, "--jobs", "2")
    code, out, err = await hourglass(live, *arguments, "--json", "--", *UNITTEST)
    assert code == 0, out + err
    said: dict[str, Any] = json.loads(out)
    [blamed] = said["blamed"]
    assert (said["exact"], blamed["tool"], blamed["input"], blamed["version"]) == (True, "edit", BLAMED, versions[7])
    assert (said["good"], said["bad"]) == (versions[6], versions[7])
    assert "-[smhdw])+\n" in blamed["edited"]
    assert blamed["edited"].endswith("+[smhdw]\\s*)*")
    # Again, for people: nothing is run that is known.
    code, out, err = await hourglass(live, *arguments, "--", *UNITTEST)
    assert code == 0, out + err
    assert f"version {versions[7]}: edit" in out
    assert "+[smhdw]\\s*)*" in out
    assert out.count("recorded") == len(said["probes"])
    assert f"hourglass log show {said['evidence']}" in out
    code, out, err = await hourglass(live, "log", "show", said["evidence"], "--json")
    assert code == 0, err
    assert "bisect.found" in out
    for wrong, message in (
        (("bisect", live.sandbox_id, "--good", bad, "--bad", good, "--", "true"), "does not come before the bad one"),
        (("bisect", live.sandbox_id, "--good", good, "--bad", "999", "--", "true"), "has no version 999"),
        (("bisect", "nobody", "--good", good, "--bad", bad, "--", "true"), "no session or sandbox 'nobody'"),
        ((*arguments, "--no-record", "--", "false"), "which is called good, the command fails with exit code 1"),
    ):
        code, out, err = await hourglass(live, *wrong)
        assert code == 1, wrong
        assert message in " ".join(err.split()), err
    assert (await hourglass(live, "bisect", f"{live.sandbox_id}@9", "--good", "1", "--bad", "2", "--", "true"))[0] == 2
    assert (await hourglass(live, "bisect", live.sandbox_id, "--good", "1", "--bad", "2"))[0] == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_one_that_was_killed_goes_on_where_it_was_and_leaves_no_machine(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    first = live.version
    versions = [await live.bash(f"echo {number} > n") for number in range(8)]
    live.log.close()
    command = ("sh", "-c", "sleep 0.5; [ ! -e n ] || [ $(cat n) -lt 3 ]")
    arguments = ("bisect", live.sandbox_id, "--good", str(first), "--bad", str(versions[-1]), "--json", "--", *command)
    killed = await start(live, *arguments, output=asyncio.subprocess.DEVNULL)
    before = await _first_probes(live.log.path, 1)
    killed.send_signal(signal.SIGKILL)
    await killed.wait()
    code, out, err = await hourglass(live, *arguments)
    assert code == 0, out + err
    said: dict[str, Any] = json.loads(out)
    assert (said["good"], said["bad"]) == (versions[2], versions[3])
    again = [one["version"] for one in said["probes"] if one["recorded"]]
    assert again == [one.version for one in before][: len(again)]
    assert len(again) >= 1
    assert len(said["probes"]) > len(again)
    with SqliteLog(live.log.path, read_only=True) as log:
        told = list(log.read_data(said["evidence"]))
        assert log.verify() is None
    assert sum(isinstance(one, BisectBegun) for one in told) == 2
    probed = [one.version for one in told if isinstance(one, BisectProbed)]
    assert len(probed) == len(set(probed))
    assert not [one for one in await live.driver.running() if one.startswith("rebuild-")]
    assert not list(Place(live.driver.storage).folder.glob("rebuild-*.lock"))


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_beside_a_service_the_evidence_is_in_its_log_and_it_goes_on(installed: Installed) -> None:
    with installed.up():
        session = installed.session("break-the-tests")
        installed.wait_for(f"session-{session}", "session.idled")
        stream = installed.sandbox_of(session)
        history = installed.history(stream)
        ended = [event.version for event in history if event.type == "tool_call.completed"]
        done = installed.command(
            *("bisect", stream, "--good", str(ended[2]), "--bad", str(ended[-1]), "--json"), "--", *UNITTEST
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        [blamed] = found["blamed"]
        assert (blamed["tool"], blamed["input"]) == ("edit", BLAMED)
        told = installed.history(found["evidence"])
        assert [told[0].type, told[-1].type] == ["bisect.begun", "bisect.found"]
        assert {event.correlation_id for event in told} == {session}
        assert [event.hash for event in installed.history(stream)][: len(history)] == [one.hash for one in history]
        # Its writer has lost nothing.
        assert installed.json("pause", session)["phase"] == "suspended"
    with SqliteLog(installed.home / "log.db", read_only=True) as log:
        assert log.verify() is None


async def _first_probes(path: Path, count: int) -> list[BisectProbed]:
    async with asyncio.timeout(60):
        while True:
            found = _probes(path)
            if len(found) >= count:
                return found
            await asyncio.sleep(0.1)


def _probes(path: Path) -> list[BisectProbed]:
    with SqliteLog(path, read_only=True) as log:
        streams = [one for one in log.streams() if one.startswith("bisect-")]
        told = [data for stream in streams for data in log.read_data(stream)]
    return [one for one in told if isinstance(one, BisectProbed)]
