"""Random programs of tool calls, a random version: the rebuilt work tree is the one that was there, every time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.machines.gvisor import GvisorDriver
from actors.template.build import ensure_agent
from events.sqlite_log import SqliteLog
from replay.rebuild.checks import Verdict
from replay.rebuild.rebuilding import rebuild
from tests.conformance import drivers
from tests.replay.rebuild.live import Live

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)

NAMES = st.sampled_from(["a.txt", "b.txt", "sub/c.txt"])
WORDS = st.text("abc\n é", max_size=12)
COMMANDS = st.one_of(
    st.builds("echo {} >> {}".format, st.sampled_from(["one", "$n", "$PWD"]), st.sampled_from(["a.txt", "b.txt"])),
    st.sampled_from(
        [
            "n=$((n + 1)); echo $n",
            "cd sub || mkdir sub && cd sub; pwd",
            "cd /workspace",
            "rm -f a.txt; ls -A",
            "ln -sf /etc/passwd link; ln -f b.txt hard; stat -c %h b.txt",
            "truncate -s 300000 b.txt; printf x >> b.txt; chmod 640 b.txt",
            "cat a.txt b.txt 2>&1",
            "mv b.txt sub/c.txt",
            "exit 3",
        ]
    ),
)
CALLS: st.SearchStrategy[tuple[str, dict[str, Any]]] = st.one_of(
    st.tuples(st.just("write"), st.builds(lambda path, content: {"file_path": path, "content": content}, NAMES, WORDS)),
    st.tuples(
        st.just("edit"),
        st.builds(
            lambda path, old, new: {"file_path": path, "old_string": old, "new_string": new},
            NAMES,
            st.sampled_from("abco"),
            WORDS,
        ),
    ),
    st.tuples(st.just("bash"), COMMANDS.map(lambda command: {"command": command})),
    st.tuples(st.just("read"), NAMES.map(lambda path: {"file_path": path})),
    st.tuples(st.just("snapshot"), st.just({})),
)
PROGRAMS = st.lists(CALLS, min_size=4, max_size=9)
EXAMPLES = 6


@pytest.fixture(scope="module")
def bench() -> Iterator[tuple[asyncio.Runner, GvisorDriver]]:
    """A driver and its event loop, for all programs."""
    volumes = drivers.node_volumes()
    volumes.prepare()
    ensure_agent(volumes, "base")
    with asyncio.Runner() as runner:
        driver = GvisorDriver(volumes.storage, volumes=volumes)
        yield runner, driver
        runner.run(driver.close())


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=PROGRAMS, share=st.floats(0, 1))
def test_the_work_tree_of_any_version_comes_back(
    bench: tuple[asyncio.Runner, GvisorDriver],
    tmp_path_factory: pytest.TempPathFactory,
    program: list[tuple[str, dict[str, Any]]],
    share: float,
) -> None:
    runner, driver = bench
    runner.run(_check(driver, tmp_path_factory.mktemp("home"), program, share))


async def _check(driver: GvisorDriver, home: Path, program: list[tuple[str, dict[str, Any]]], share: float) -> None:
    with SqliteLog(home / "log.db", durability="normal") as log:
        live = await Live.begin(log, driver)
        try:
            await live.look()
            for tool, given_ in program:
                if tool == "snapshot":
                    digest = live.digests[live.version]
                    await live.snapshot()
                    live.digests[live.version] = digest
                else:
                    await live.call(tool, given_)
                    await live.look()
            versions = sorted(live.digests)
            drawn = versions[min(int(share * len(versions)), len(versions) - 1)]
            # The last one, too: the longest way that there is.
            for version in dict.fromkeys((drawn, versions[-1])):
                found = await rebuild(log, live.plan(version), live.ground)
                assert found.tree.digest == live.digests[version]
                assert found.verdict is Verdict.EQUAL, [one.plain() for one in found.checks]
        finally:
            await live.end()
