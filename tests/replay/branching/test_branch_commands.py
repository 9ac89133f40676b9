"""`hourglass branch` and `branches` as a user runs them, with no service."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from events.sqlite_log import SqliteLog
from replay.branching.branching import branch
from replay.branching.errors import NotAppended
from replay.rebuild import findings
from replay.rebuild.throwaway import Place, sweep
from tests.replay.rebuild.test_commands import hourglass, start

if TYPE_CHECKING:
    from tests.replay.rebuild.conftest import NewLive
    from tests.replay.rebuild.live import Live

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("ended")]


def streams(live: Live) -> list[str]:
    with SqliteLog(live.log.path, read_only=True) as log:
        return log.streams()


async def test_a_branch_with_another_call_and_the_tree_of_all(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    at = await live.bash("echo one > a; cat a")
    await live.bash("cat a | tr a-z A-Z")
    live.log.close()
    replaced = ["--replace", f'{at}={{"command": "echo [b]two[/b] > a; cat a"}}']
    code, out, err = await hourglass(live, "branch", live.stream, *replaced, "--yes")
    assert (code, "Traceback" in err) == (0, False), out + err
    assert out.index("It can be rebuilt: nothing to run again") < out.index("instead")
    assert f"the results part at bash at {live.stream}@{at + 1}:" in out
    assert "-ONE" in out
    assert "+[B]TWO[/B]" in out
    [made] = [one.removeprefix("sandbox-") for one in streams(live) if one not in (live.stream,)]
    assert f"{made}@8 is a branch of {live.stream}@{at - 2}, and lies suspended" in out
    code, out, err = await hourglass(live, "branch", f"{made}@2", "--json")
    assert code == 0, out + err
    told: dict[str, Any] = json.loads(out)
    assert (told["parent"], told["parent_version"], told["runs"]) == (made, 2, [])
    second = told["sandbox_id"]
    code, out, err = await hourglass(live, "branches", second)
    assert code == 0, err
    lines = [line.strip("│└├─ ") for line in out.splitlines()]
    assert [line.split("@")[0] for line in lines] == [live.sandbox_id, made, second]
    assert lines[1] == f"{made}@8 suspended, branched from version {at - 2}, 2 calls"
    listed = json.loads((await hourglass(live, "branches", "--json"))[1])
    assert [(one["sandbox_id"], one["how"], one["parent"], one["depth"]) for one in listed] == [
        (live.sandbox_id, "created", "", 0),
        (made, "branched", live.sandbox_id, 1),
        (second, "branched", made, 2),
    ]
    for arguments in (
        ["state", made],
        ["plan", made],
        ["rebuild", second, "--yes"],
        ["diff", "--no-files", made, second],
    ):
        code, out, err = await hourglass(live, *arguments, "--json")
        assert code == 0, out + err


async def test_what_is_refused_says_why_and_leaves_nothing(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    await live.bash("cat b", content=[{"type": "text", "text": "there"}], is_error=False)
    code, _, err = await hourglass(live, "branch", live.stream, "--replace", '2={"command": "true"}', "--yes")
    assert (code, "Traceback" in err) == (1, False), err
    assert f"{live.stream}@2 is no tool call: it is sandbox.started" in err
    assert "next: " in err
    code, out, _ = await hourglass(live, "branch", live.stream, "--json")
    told = json.loads(out)
    assert (code, told["type"], told["rebuilt"]["verdict"]) == (1, "NotTheSame", "differs")
    assert streams(live) == [live.stream]


async def test_one_that_may_be_in_the_log_yet_is_left_for_a_minute(
    new_live: NewLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await new_live()
    await live.snapshot()
    monkeypatch.setattr(findings, "_WAIT_S", 0.1)
    place = Place(live.driver.storage)
    before = set(place.folder.glob("sbx-*.lock"))
    # Another writes the log, and is no service that could be asked.
    with SqliteLog(live.log.path, read_only=True) as log:
        with pytest.raises(NotAppended, match="is being written by another process"):
            await branch(log, live.plan(), live.ground)
        assert log.streams() == [live.stream]
    [left] = set(place.folder.glob("sbx-*.lock")) - before
    assert place.stays(left.stem) is None
    await sweep(live.driver, place)
    assert [one.sandbox_id for one in await live.driver.snapshots()].count(left.stem) == 1
    os.utime(left, (0, 0))
    assert place.stays(left.stem) is False
    await sweep(live.driver, place)
    assert [one.sandbox_id for one in await live.driver.snapshots()].count(left.stem) == 0
    assert not left.exists()


@pytest.mark.chaos
async def test_one_that_was_killed_is_not_listed_and_the_next_removes_what_it_left(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    await live.bash("sleep 2; echo done")
    live.log.close()
    killed = await start(live, "branch", live.stream, "--yes", "--json", output=asyncio.subprocess.DEVNULL)
    left = await _running(live)
    killed.send_signal(signal.SIGKILL)
    await killed.wait()
    assert left in await live.driver.running()
    assert [one["sandbox_id"] for one in json.loads((await hourglass(live, "branches", "--json"))[1])] == [
        live.sandbox_id
    ]
    code, out, err = await hourglass(live, "branch", live.stream, "--json")
    assert code == 0, out + err
    made = json.loads(out)["sandbox_id"]
    assert live.driver.tree(left) is None
    assert left not in await live.driver.running()
    assert not Place(live.driver.storage).lock(left).exists()
    assert sorted(streams(live)) == sorted([live.stream, f"sandbox-{made}"])
    # The one that was made stays, also for whoever sweeps, and also where its maker died right after the append.
    place = Place(live.driver.storage)
    os.close(place.take(made))
    place.promise(made, live.log.path)
    os.utime(place.lock(made), (0, 0))
    code, out, err = await hourglass(live, "rebuild", f"{made}@1", "--json", "--yes")
    assert (code, json.loads(out)["verdict"]) == (0, "equal"), err
    assert not place.lock(made).exists()
    assert json.loads(out)["plan"]["start"]["where"] == ["node"]


async def _running(live: Live) -> str:
    """The machine of a branch that is being made, once it is in its call."""
    before = {live.sandbox_id, *(one for one in await live.driver.running() if one.startswith("rebuild-"))}
    async with asyncio.timeout(30):
        while True:
            place = Place(live.driver.storage)
            found = [one for one in await live.driver.running() if one not in before and place.lock(one).exists()]
            if found:
                await asyncio.sleep(0.3)
                return found[0]
            await asyncio.sleep(0.05)
