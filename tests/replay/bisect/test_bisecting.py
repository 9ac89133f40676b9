"""Bisects in real machines: what is found, what is skipped, what ends it, and that nothing else is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from events.sqlite_log import SqliteLog
from events.types import BisectBegun, BisectFound, BisectProbed, SandboxCrashed, SandboxRecovered
from replay.bisect.bisecting import Bisected, asked, bisect
from replay.bisect.errors import (
    BadIsGood,
    CommandDied,
    CommandHung,
    CommandRefused,
    EndUntold,
    GoodIsBad,
    RangeReversed,
)
from replay.bisect.evidence import Evidence
from replay.rebuild.errors import NotRecorded, NotReproducible
from tests.replay.history.boxes import SESSION, begin
from tests.replay.rebuild.live import everything

if TYPE_CHECKING:
    from pathlib import Path

    from replay.bisect.probing import Probe
    from tests.replay.rebuild.conftest import NewLive
    from tests.replay.rebuild.live import Live

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def run(
    live: Live, good: int, bad: int, *command: str, path: Path | None = None, anew: bool = False, **options: Any
) -> Bisected:
    """A bisect that records nothing, unless the log at `path` is one that nobody else writes."""
    with SqliteLog(live.log.path, read_only=True) as log:
        begun = asked(log, live.stream, good, bad, command, driver="gvisor", **options)
        with Evidence.opened(log, begun, path, anew=anew) as evidence:
            return await bisect(log, begun, live.ground, evidence)


async def steps(live: Live, *commands: str) -> list[int]:
    """The versions after each."""
    return [await live.bash(one) for one in commands]


def told(found: Bisected) -> dict[int, str]:
    return {one.version: one.told.verdict for one in found.probes}


async def test_the_one_call_is_found_and_only_the_evidence_is_written(new_live: NewLive) -> None:
    live = await new_live()
    snapshot_id = await live.snapshot()
    start = live.version
    versions = await steps(live, "mkdir sub && cd sub && export WHO=me", "echo 1 > a", "echo 2 > b")
    versions.append(await live.call("write", {"file_path": "sub/a", "content": "broken\n"}))
    await live.call("read", {"file_path": "sub/a"})
    versions += await steps(live, "echo 3 > c", "echo 4 > d")
    live.log.close()
    kept = live.driver.volumes.snapshots / snapshot_id
    tree = live.driver.tree(live.sandbox_id)
    assert tree is not None
    with SqliteLog(live.log.path, read_only=True) as log:
        before = [row.hash for row in log.rows()]
    parts = (kept / "image", kept / "snapshot.json", tree / "workspace")
    files = everything(*parts)
    assert len(files) > 5
    # In the sandbox's own shell: its folder, its variables. Quotes are nobody's syntax on the way.
    command = ("/bin/sh", "-c", """echo "it's $WHO; $(pwd)"; ! grep -qs 'bro'k"en" a""")
    found = await run(live, start, live.version, *command, path=live.log.path)
    [blamed] = found.blamed
    assert blamed.call is not None
    assert (found.exact, found.good, found.bad) == (True, versions[2], versions[3])
    assert (blamed.call.tool, blamed.edited, blamed.version) == ("write", "+broken", versions[3])
    assert len(found.probes) == 3
    assert found.probes[0].told.output == "it's me; /workspace/sub"
    assert everything(*parts) == files
    with SqliteLog(live.log.path, read_only=True) as log:
        rows = list(log.rows())
        assert [row.hash for row in rows][: len(before)] == before
        assert {row.stream for row in rows[len(before) :]} == {found.stream}
        assert log.verify() is None
        events = list(log.read(found.stream))
    assert {event.correlation_id for event in events} == {SESSION}
    first, *probed, last = (event.data for event in events)
    assert isinstance(first, BisectBegun)
    assert (first.command, first.good, first.bad) == (list(command), start, live.version)
    assert [one for one in probed if isinstance(one, BisectProbed)] == [one.told for one in found.probes]
    assert last == BisectFound(
        good=found.good,
        bad=found.bad,
        tool_use_ids=[blamed.call.tool_use_id],
        skipped=[],
        probes=3,
        seconds=found.seconds,
    )


async def test_several_at_once_find_the_same(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    start = live.version
    versions = await steps(live, *(f"echo {number} >> n" for number in range(7)))
    found = await run(live, start, live.version, "sh", "-c", "[ $(cat n | wc -l) -lt 4 ]", jobs=3)
    assert (found.good, found.bad) == (versions[2], versions[3])
    # The ones that split it in four, then at most one. What is claimed of the ends, the result does not rest on.
    assert {one.version for one in found.probes[:3]} == {versions[1], versions[3], versions[4]}
    assert len(found.probes) <= 4


async def test_what_cannot_be_told_is_skipped_and_the_answer_is_a_range(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    start = live.version
    versions = await steps(live, "echo 1 > n", "echo 2 > n", "echo 3 > n", "echo 4 > n", "echo 5 > n")
    command = ("bash", "-c", "n=$(cat n); [ $n = 3 ] && exit 125; [ $n = 2 ] && exit 125; [ $n -lt 4 ]")
    found = await run(live, versions[0], live.version, *command)
    assert (found.exact, found.good, found.bad) == (False, versions[0], versions[3])
    assert found.skipped == (versions[1], versions[2])
    assert [one.version for one in found.blamed] == versions[1:4]
    assert told(found)[versions[1]] == "skipped"
    # Not in the way: a neighbour tells.
    found = await run(live, versions[0], live.version, "bash", "-c", "n=$(cat n); [ $n = 3 ] && exit 125; [ $n -lt 5 ]")
    assert (found.exact, found.bad) == (True, versions[4])
    # An end that can't be told is no end.
    with pytest.raises(
        EndUntold, match=f"{live.stream}@{versions[2]}, which is called good, can't be told: exit code 125"
    ):
        await run(live, versions[2], live.version, *command)
    assert start < versions[0]


async def test_versions_that_do_not_come_back_are_skipped(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    [first] = await steps(live, "echo 1 > n")
    live.put(
        SandboxCrashed(reason="exited"),
        SandboxRecovered(machine_id=live.machine.machine_id, node="node-a", kept="files", seconds=0.1),
    )
    [lost] = await steps(live, "echo 2 > n")
    [there] = await steps(live, "echo 3 > n")
    await live.snapshot()
    [drawn] = await steps(live, "od -An -N8 -tu8 /dev/urandom; echo 4 > n")
    await steps(live, "echo 5 > n")
    await live.snapshot()
    found = await run(live, first, live.version, "sh", "-c", "[ $(cat n) -lt 3 ]")
    # What the crash left, and the call after it, no rebuild repeats; the snapshot after the next one has it.
    assert (found.good, found.bad, found.exact) == (first, there, False)
    assert found.skipped == (first + 1, lost)
    assert [one.call and one.call.ended for one in found.blamed] == [None, lost, there]
    # Judged by all the same, what is good without what the crash left acquits nothing of it.
    found = await run(live, first, live.version, "sh", "-c", "[ $(cat n) -lt 3 ]", anyway=True)
    assert (found.good, found.bad, found.exact, found.skipped) == (lost, there, False, ())
    assert [one.call and one.call.ended for one in found.blamed] == [None, lost, there]
    found = await run(live, there, live.version, "sh", "-c", "[ $(cat n) -lt 5 ]")
    skipped = next(one.told for one in found.probes if one.version == drawn)
    assert (skipped.verdict, found.exact) == ("skipped", False)
    assert f"it did not come back as it was: bash at {live.stream}@{drawn - 1} gave something else" in skipped.because
    found = await run(live, there, live.version, "sh", "-c", "[ $(cat n) -lt 5 ]", anyway=True)
    assert (found.exact, found.good) == (True, drawn)
    at = live.put(begin("open"))
    with pytest.raises(NotReproducible, match="had not ended"):
        await run(live, there, at, "true")


async def test_a_range_that_is_none_is_refused_with_what_was_seen(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    start = live.version
    last = (await steps(live, "echo broken > a", "echo b > b"))[-1]
    with pytest.raises(GoodIsBad, match=f"{live.stream}@{start}, .* exit code 3: it says why") as refused:
        await run(live, start, last, "sh", "-c", "echo 'it says\nwhy'; exit 3")
    assert "--good" in refused.value.advice
    with pytest.raises(BadIsGood, match=f"{live.stream}@{last}, .* succeeds: it printed nothing"):
        await run(live, start, last, "sh", "-c", "printf '  '")
    with pytest.raises(GoodIsBad, match=r"exit code 127: .*no-such-program.* not found"):
        await run(live, start, last, "no-such-program", "--help")
    with pytest.raises(RangeReversed):
        await run(live, last, start, "true")
    for command in ((), ("",), ("a", "b\0"), ("a", "\udcff")):
        with pytest.raises(CommandRefused):
            await run(live, start, last, *command)
    with pytest.raises(ValueError, match="one job or more"):
        await run(live, start, last, "true", seconds=float("nan"))


async def test_what_hangs_or_is_killed_ends_it_and_is_not_taken_for_bad(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    start = live.version
    versions = await steps(live, "echo 1 > n", "echo 2 > n", "echo 3 > n")
    live.log.close()
    with pytest.raises(CommandHung, match=f"At {live.stream}@{versions[1]} the command did not end within 0.7 s"):
        await run(
            live,
            start,
            live.version,
            *("bash", "-c", 'n=$(cat n); [ "$n" = 2 ] && sleep 60; [ ! -e n ] || [ $n -lt 3 ]'),
            path=live.log.path,
            seconds=0.7,
        )
    with SqliteLog(live.log.path, read_only=True) as log:
        [stream] = [one for one in log.streams() if one.startswith("bisect-")]
        *_, last = log.read_data(stream)
    assert isinstance(last, BisectProbed)
    assert (last.verdict, last.exit_code, last.because) == ("ended", None, "it did not end within its time")
    with pytest.raises(CommandDied, match=r"\(exit code 137\)"):
        await run(live, start, live.version, "sh", "-c", "kill -9 $$", jobs=2)
    with pytest.raises(CommandDied, match="the shell that it ran in ended"):
        await run(live, start, live.version, "sh", "-c", "kill -9 $(ps -o ppid= -p $$) $(pgrep bash)")


async def test_a_shell_that_the_agent_ended_is_started_again(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    start = live.version
    versions = await steps(live, "echo 1 > n; set -e", "echo 2 > n; exit 3")
    found = await run(live, start, live.version, "sh", "-c", "! grep -qs 2 n")
    assert (found.good, found.bad) == (versions[0], versions[1])
    # One that ends at the first failure outlives a command that fails.
    with pytest.raises(GoodIsBad, match="exit code 1"):
        await run(live, versions[0], live.version, "false")


async def test_what_was_found_before_is_known_and_two_at_once_are_fenced(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    start = live.version
    versions = await steps(live, "echo 1 > n", "echo 2 > n", "echo 3 > n")
    live.log.close()
    command = ("sh", "-c", "! grep -qs 2 n && ! grep -qs 3 n")
    first = await run(live, start, live.version, *command, path=live.log.path)
    assert first.bad == versions[1]
    again = await run(live, start, versions[1], *command, path=live.log.path)
    assert all(one.recorded for one in again.probes)
    assert (again.good, again.bad) == (first.good, first.bad)
    anew = await run(live, start, live.version, *command, path=live.log.path, anew=True)
    assert not any(one.recorded for one in anew.probes)
    other = await run(live, start, live.version, *command, path=live.log.path, anyway=True)
    assert other.stream != first.stream
    with SqliteLog(live.log.path, read_only=True) as log:
        begun = asked(log, live.stream, start, live.version, command, driver="gvisor")
        with (
            Evidence.opened(log, begun, live.log.path) as one,
            Evidence.opened(log, begun, live.log.path) as two,
        ):
            await one.begin()
            with pytest.raises(NotRecorded, match="and the writer expected"):
                await two.begin()


async def test_each_is_told_once_it_is_durable(new_live: NewLive) -> None:
    live = await new_live()
    await live.snapshot()
    start = live.version
    await steps(live, "echo 1 > n", "echo 2 > n")
    live.log.close()
    heard: list[tuple[int, bool]] = []
    with SqliteLog(live.log.path, read_only=True) as log:
        begun = asked(log, live.stream, start, live.version, ["sh", "-c", "[ ! -e n ]"], driver="gvisor")
        with Evidence.opened(log, begun, live.log.path) as evidence:

            def found(one: Probe) -> None:
                heard.append((one.version, one.told in list(log.read_data(evidence.stream))))

            await bisect(log, begun, live.ground, evidence, found=found)
    # One in between, and the end that the result rests on.
    assert len(heard) == 2
    assert all(durable for _, durable in heard)
