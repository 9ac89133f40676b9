"""`hourglass rebuild`, `rebuilds` and `verify` as a user runs them, beside a process that writes the log."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from replay.rebuild.throwaway import Place
from tests.replay.rebuild.live import Live

if TYPE_CHECKING:
    from tests.replay.rebuild.conftest import NewLive

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOURGLASS = Path(sys.executable).with_name("hourglass")


def environment(live: Live) -> dict[str, str]:
    """Of a command beside it."""
    # Ray must not be needed: a module of that name that can't be imported.
    blocked = live.log.path.parent / "blocked"
    (blocked / "ray").mkdir(parents=True, exist_ok=True)
    (blocked / "ray/__init__.py").write_text("raise ImportError('no Ray here')\n")
    return {
        **os.environ,
        "HOURGLASS_HOME": str(live.log.path.parent),
        "HOURGLASS_STORAGE": str(live.driver.storage),
        "PYTHONPATH": str(blocked),
    }


async def start(live: Live, *arguments: str, output: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        HOURGLASS,
        *arguments,
        env=environment(live),
        stdout=output,
        stderr=output,
        stdin=asyncio.subprocess.DEVNULL,
    )


async def hourglass(live: Live, *arguments: str) -> tuple[int, str, str]:
    process = await start(live, *arguments)
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_plan_is_shown_and_then_what_came_of_it(new_live: NewLive) -> None:
    live = await new_live()
    snapshot_id = await live.snapshot()
    await live.bash("echo one > a; cat a")
    await live.call("read", {"file_path": "a"})
    code, out, err = await hourglass(live, "rebuild", live.stream, "--yes")
    assert (code, "Traceback" in err) == (0, False), out + err
    assert out.index("It can be rebuilt: 1 to run again, 1 skipped.") < out.index(
        f"{live.stream}@7: every result is as it was; nothing tells"
    )
    code, out, err = await hourglass(live, "rebuild", f"{live.stream}@2", "--yes")
    assert (code, f"{live.stream}@2 came back as it was." in out) == (0, True), out + err
    # As if a snapshot did not exist; a name that none has is no wish.
    code, out, err = await hourglass(live, "rebuild", live.stream, "--yes", "--without", snapshot_id)
    assert (code, "on the template 'base'" in " ".join(out.split())) == (0, True), out + err
    code, out, err = await hourglass(live, "rebuild", live.stream, "--yes", "--without", "turn-nope")
    assert (code, out, "The log has no snapshot turn-nope." in err) == (1, "", True)
    # Nobody to ask is no agreement.
    code, out, _ = await hourglass(live, "rebuild", live.stream)
    assert code == 1
    assert "It can be rebuilt" in out
    assert "is as it was" not in out
    assert (await hourglass(live, "rebuild", live.stream, "--json"))[0] == 2


async def test_json_keep_and_removal(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    await live.bash("echo one > a; cat a")
    at = await live.bash("cat b", content=[{"type": "text", "text": "there"}], is_error=False)
    code, out, err = await hourglass(live, "rebuild", f"{live.sandbox_id}@{at}", "--yes", "--json", "--keep")
    assert code == 1, out + err
    told: dict[str, Any] = json.loads(out)
    assert told["verdict"] == "differs"
    assert [one["verdict"] for one in told["calls"]] == ["equal", "differs"]
    assert "-there" in told["calls"][1]["diff"]
    assert told["plan"]["reproducible"] is True
    kept = told["kept"]["sandbox_id"]
    assert kept.startswith(f"rebuild-{live.sandbox_id.removeprefix('sbx-')}-{at}-")
    listed = json.loads((await hourglass(live, "rebuilds", "ls", "--json"))[1])
    assert {
        "sandbox_id": kept,
        "stream": live.stream,
        "version": at,
        "snapshot_id": told["kept"]["snapshot_id"],
        "verdict": "differs",
    } in listed
    assert kept in (await hourglass(live, "rebuilds", "ls"))[1]
    code, out, err = await hourglass(live, "rebuilds", "rm", kept, "--json")
    assert (code, json.loads(out)) == (0, {"removed": kept}), err
    code, out, err = await hourglass(live, "rebuilds", "rm", kept)
    assert code == 1
    assert f"No rebuild {kept} is kept" in err
    # Earlier, all is as it was.
    code, out, err = await hourglass(live, "rebuild", live.stream, "--until", str(at - 2), "--yes", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "equal"), err


async def test_one_that_was_killed_leaves_nothing_that_the_next_does_not_remove(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    await live.bash("sleep 2")
    place = Place(live.driver.storage)
    # Its machine lives on, and would hold a pipe open.
    killed = await start(live, "rebuild", live.stream, "--yes", "--json", output=asyncio.subprocess.DEVNULL)
    left = await _running(live)
    killed.send_signal(signal.SIGKILL)
    await killed.wait()
    assert left in await live.driver.running()
    assert live.driver.tree(left) is not None
    # One that is alive is not taken for dead.
    alive = await start(live, "rebuild", live.stream, "--yes", "--json")
    other = await _running(live, left)
    assert live.driver.tree(left) is None
    assert left not in await live.driver.running()
    assert not place.lock(left).exists()
    code, out, err = await hourglass(live, "rebuild", live.stream, "--yes", "--json")
    assert code == 0, out + err
    out_alive, err_alive = await alive.communicate()
    assert alive.returncode == 0, err_alive
    assert json.loads(out_alive)["verdict"] == "equal"
    assert other not in await live.driver.running()
    # A polite end clears away at once.
    stopped = await start(live, "rebuild", live.stream, "--yes", "--json")
    last = await _running(live)
    stopped.send_signal(signal.SIGTERM)
    await stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM
    assert live.driver.tree(last) is None
    assert not place.lock(last).exists()


async def _running(live: Live, *but: str) -> str:
    """The throw-away machine of this sandbox, once it runs."""
    token = live.sandbox_id.removeprefix("sbx-")
    async with asyncio.timeout(30):
        while True:
            found = [one for one in await live.driver.running() if token in one and one not in (live.sandbox_id, *but)]
            if found:
                await asyncio.sleep(0.3)  # into its call
                return found[0]
            await asyncio.sleep(0.05)
