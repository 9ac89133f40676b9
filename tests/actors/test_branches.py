"""A session goes on in a branch: real machines, the real log, the unmodified SDK; branches are made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from actors import branches
from actors.operations import Operations, SandboxRefused
from events.continuing import BRANCH_KEY, branch_named
from replay.server.recorded import has_ended
from tests.actors.branches import branch
from tests.replay.draft import Draft

if TYPE_CHECKING:
    from tests.actors.conftest import Service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

BEFORE = (
    "mine=hello; echo before > made.txt; (while echo -n . >> beat; do sleep 0.1; done) & echo $! > pid; "
    "until [ -s beat ]; do sleep 0.1; done"
)
LOOK = (
    "cat made.txt; a=$(wc -c < beat); sleep 0.5; "
    '[ "$a" != "$(wc -c < beat)" ] && kill -0 $(cat pid) && echo beats; echo $mine'
)


async def play(service: Service, made: Draft, **options: Any) -> str:
    """A session that plays a draft."""
    session = await service.app.beta.sessions.create(
        agent=service.server.create_agent(made.says("Done.").rests().recording()),
        environment_id=options.pop("environment_id", service.environment.id),
        initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}],
        **options,
    )
    return session.id


def looks(name: str) -> Draft:
    return Draft(name, "It looks around.").user("Look.").bash(LOOK)


async def parent(service: Service) -> tuple[str, str]:
    """A session whose turn is over, and its sandbox."""
    session_id = await play(service, Draft("before", "It leaves files and a process.").user("Begin.").bash(BEFORE))
    await service.recorded(f"session-{session_id}", "session.released")
    return session_id, service.sandbox_of(session_id).removeprefix("sandbox-")


async def branch_of(service: Service, sandbox_id: str, *, whole: bool = True) -> str:
    """A branch of a sandbox as it is now."""
    host = service.hosts[-1]
    snapshot_id = (await Operations(host).snapshot(sandbox_id))["snapshot_id"]
    name, write = branch(sandbox_id, len(service.history(f"sandbox-{sandbox_id}")) - 1, snapshot_id, whole=whole)
    await host.journal.append(write)
    return name


async def continued(service: Service, name: object, **options: Any) -> str:
    """A session on that branch."""
    return await play(service, looks("after"), metadata={BRANCH_KEY: name}, **options)


def results(service: Service, session_id: str) -> list[tuple[str, bool]]:
    return [
        (one["content"][0]["text"], one["is_error"])
        for one in service.server.events(session_id)
        if one["type"] == "user.tool_result"
    ]


async def test_a_session_goes_on_in_a_branch_where_its_parent_was(service: Service) -> None:
    async with service.up():
        _, sandbox = await parent(service)
        name = await branch_of(service, sandbox)
        began = service.history(f"sandbox-{name}")
        untouched = service.kinds(f"sandbox-{sandbox}")
        session_id = await continued(service, name)
        await service.until(has_ended(session_id), "the session to end")
        await service.recorded(f"session-{session_id}", "session.released")
        assert results(service, session_id) == [("before\nbeats\nhello", False)]
        assert service.kinds(f"sandbox-{sandbox}")[: len(untouched)] == untouched
        assert "sandbox.killed" not in service.kinds(f"sandbox-{sandbox}")
        # A person may give its forks up: what it was branched from is none of its family.
        assert (await Operations(service.hosts[-1]).keep(name))["ended"] == []
        assert "sandbox.killed" not in service.kinds(f"sandbox-{sandbox}")
    kinds = service.kinds(f"session-{session_id}")
    assert kinds[:3] == ["session.claimed", "session.sandbox_kept", "session.attached"]
    assert service.sandbox_of(session_id) == f"sandbox-{name}"
    own = service.history(f"sandbox-{name}")
    assert [one.type for one in own[len(began) :]][:4] == [
        "sandbox.adopted",
        "sandbox.resumed",
        "tool_call.started",
        "tool_call.completed",
    ]
    (kept,) = [one.data for one in service.history(f"session-{session_id}") if one.type == "session.sandbox_kept"]
    # The sandbox that it would have had was never started.
    assert service.kinds(f"sandbox-{kept.previous}") == ["sandbox.created", "sandbox.killed"]  # type: ignore[union-attr]


async def test_what_is_no_free_branch_is_refused_and_both_sides_are_told(service: Service) -> None:
    async with service.up():
        _, sandbox = await parent(service)
        operations = Operations(service.hosts[-1])
        fork = (await operations.fork(sandbox, 1))["children"][0]["sandbox_id"]
        taken, killed = await branch_of(service, sandbox), await branch_of(service, sandbox)
        half = await branch_of(service, sandbox, whole=False)
        fork_of_branch = (await operations.fork(killed, 1))["children"][0]["sandbox_id"]
        await operations.kill(killed)
        user = await continued(service, taken)
        await service.recorded(f"session-{user}", "session.released")
        # The last that its turn leads to, in its own time.
        await service.recorded(f"sandbox-{taken}", "sandbox.snapshotted")
        before = {one: service.kinds(f"sandbox-{one}") for one in (taken, killed, half)}
        wanted = {
            "sbx-0000000000000000": "there is no sandbox sbx-0000000000000000 in this log",
            "../../etc/passwd": "which is no sandbox's id",
            "x" * 512: "which is no sandbox's id",
            sandbox: "is no branch",
            fork: "is no branch",
            fork_of_branch: "is no branch",
            killed: f"branch {killed} was killed",
            taken: f"branch {taken} is in use by session {user}",
            half: f"branch {half} is not made to its end",
        }
        sessions = {named: await continued(service, named) for named in wanted}
        for named, because in wanted.items():
            session_id = sessions[named]
            await service.recorded(f"session-{session_id}", "session.released")
            ((told, failed),) = results(service, session_id)
            assert failed
            assert because in told
            assert len(told) < 600
            kinds = service.kinds(f"session-{session_id}")
            assert kinds[-5:] == [
                "tool_call.requested",
                "tool_call.denied",
                "session.result_posted",
                "session.failed",
                "session.released",
            ]
            (recorded,) = [one.data for one in service.history(f"session-{session_id}") if one.type == "session.failed"]
            assert recorded.reason == "branch_refused"  # type: ignore[union-attr]
            assert because in recorded.detail  # type: ignore[union-attr]
            assert service.kinds(service.sandbox_of(session_id)) == ["sandbox.created"]
        assert {one: service.kinds(f"sandbox-{one}") for one in before} == before
        # As the error says: without the name it gets a sandbox of its own.
        last = sessions[half]
        await service.given_back()
        await service.app.beta.sessions.update(last, metadata={BRANCH_KEY: None})
        await service.app.beta.sessions.events.send(
            last, events=[{"type": "user.message", "content": [{"type": "text", "text": "Again."}]}]
        )
        await service.recorded(service.sandbox_of(last), "sandbox.started")


async def test_a_branch_of_another_environment_is_refused(service: Service) -> None:
    async with service.up():
        _, sandbox = await parent(service)
        name = await branch_of(service, sandbox)
    elsewhere = service.environment
    service.environment = service.server.create_environment()
    async with service.up():
        session_id = await continued(service, name)
        await service.recorded(f"session-{session_id}", "session.released")
    ((told, _),) = results(service, session_id)
    assert f"comes from another environment, {elsewhere.id}" in told
    assert "sandbox.adopted" not in service.kinds(f"sandbox-{name}")


async def test_a_session_keeps_the_sandbox_in_which_something_ran(service: Service) -> None:
    async with service.up():
        _, sandbox = await parent(service)
        name = await branch_of(service, sandbox)
        made = Draft("twice", "Two turns.").user("Go.").bash("echo own > mine.txt").rests().user("On.")
        session_id = await play(service, made.bash("cat mine.txt"))
        await service.recorded(f"session-{session_id}", "session.released")
        await service.given_back()
        await service.app.beta.sessions.update(session_id, metadata={BRANCH_KEY: name})
        await service.app.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "On."}]}]
        )
        await service.recorded(f"session-{session_id}", "session.released", count=2)
    assert results(service, session_id)[-1] == ("own", False)
    assert "sandbox.adopted" not in service.kinds(f"sandbox-{name}")


async def test_two_sessions_that_want_one_branch(service: Service) -> None:
    async with service.up():
        _, sandbox = await parent(service)
        name = await branch_of(service, sandbox)
        both = [await continued(service, name) for _ in range(2)]
        for one in both:
            await service.recorded(f"session-{one}", "session.released")
    told = sorted(results(service, one)[0] for one in both)
    assert ("before\nbeats\nhello", False) in told
    assert sum(failed for _, failed in told) == 1
    assert service.kinds(f"sandbox-{name}").count("sandbox.adopted") == 1


async def test_a_host_that_dies_after_it_gave_the_branch(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    record = branches._record

    async def dies(*arguments: Any) -> None:
        await record(*arguments)
        raise MemoryError("the host is gone")

    async with service.up():
        _, sandbox = await parent(service)
        name = await branch_of(service, sandbox)
    with monkeypatch.context() as patch:
        patch.setattr(branches, "_record", dies)
        async with service.up():
            session_id = await continued(service, name)
            await service.recorded(f"session-{session_id}", "session.failed")
        assert service.kinds(f"sandbox-{name}")[-1] == "sandbox.adopted"
    async with service.up():
        await service.until(has_ended(session_id), "the session to end")
        await service.recorded(f"session-{session_id}", "session.released")
    assert results(service, session_id) == [("before\nbeats\nhello", False)]
    assert service.kinds(f"sandbox-{name}").count("sandbox.adopted") == 1


async def test_a_visitor_uses_a_branch_and_a_session_goes_on_in_it_as_it_runs(service: Service) -> None:
    async with service.up():
        _, sandbox = await parent(service)
        name = await branch_of(service, sandbox)
        operations = Operations(service.hosts[-1])
        assert (await operations.resume(name))["phase"] == "running"
        with pytest.raises(SandboxRefused, match="no session"):
            await operations.keep(name)
        session_id = await continued(service, name)
        await service.recorded(f"session-{session_id}", "session.released")
        assert (await operations.find(session_id))["sandbox_id"] == name
        await service.hosts[-1].bury(session_id)
        # The session's end is the branch's, and not its parent's.
        assert service.kinds(f"sandbox-{name}")[-1] == "sandbox.killed"
        assert "sandbox.killed" not in service.kinds(f"sandbox-{sandbox}")
    assert results(service, session_id) == [("before\nbeats\nhello", False)]


def test_what_the_metadata_may_name() -> None:
    assert branch_named(None) is None
    assert branch_named({"other": "sbx-1"}) is None
    assert branch_named({BRANCH_KEY: "sbx-0123456789abcdef"}) == "sbx-0123456789abcdef"
    for bad in ("", "sbx-", "sbx-1\n", "sbx-../x", "SBX-1", "sbx-" + "1" * 61, 7, ["sbx-1"]):
        with pytest.raises(ValueError, match="no sandbox's id"):
            branch_named({BRANCH_KEY: bad})
