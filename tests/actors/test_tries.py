"""An agent fans out: `try_in_parallel` and `keep`, with real machines, the real log and the unmodified SDK."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from actors import tries
from actors.custom_tools import TOOLS
from actors.operations import Operations
from replay.server.recorded import has_ended
from tests.replay.draft import Draft

if TYPE_CHECKING:
    from tests.actors.conftest import Service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

THREE: list[dict[str, Any]] = [
    {"name": "a", "files": {"answer.txt": "41\n"}, "command": "grep -q 42 answer.txt"},
    {"name": "b", "files": {"answer.txt": "42\n"}, "command": "grep 42 answer.txt; echo $mine; echo b > made.txt"},
    {"name": "c", "command": "sleep 60"},
]


def draft(name: str, *, tools: Any = TOOLS) -> Draft:
    made = Draft(name, "An agent that tries in parallel.", tools=list(tools))
    made.user("Try it.").bash("mine=hello; echo before > made.txt")
    return made


async def play(service: Service, made: Draft) -> str:
    """A session that plays a draft."""
    recording = made.says("Done.").rests().recording()
    session = await service.app.beta.sessions.create(
        agent=service.server.create_agent(recording),
        environment_id=service.environment.id,
        initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Go."}]}],
    )
    return session.id


async def served(service: Service, made: Draft) -> str:
    """The id of a session that played a draft to its end."""
    session_id = await play(service, made)
    await service.until(has_ended(session_id), "the session to end")
    await service.recorded(f"session-{session_id}", "session.released")
    return session_id


def answers(service: Service, session_id: str) -> list[tuple[str, bool]]:
    """Text and failure of each result of a custom tool."""
    return [
        (one["content"][0]["text"], one["is_error"])
        for one in service.server.events(session_id)
        if one["type"] == "user.custom_tool_result"
    ]


def results(service: Service, session_id: str) -> list[str]:
    return [one["content"][0]["text"] for one in service.server.events(session_id) if one["type"] == "user.tool_result"]


async def test_three_variants_are_tried_and_one_is_kept(service: Service) -> None:
    made = draft("try-keep").custom("try_in_parallel", variants=THREE, seconds=2)
    made.bash("cat made.txt").custom("keep", variant="b").bash("cat answer.txt made.txt; echo $mine")
    async with service.up():
        session_id = await served(service, made)
    (tried, failed), (kept, _) = answers(service, session_id)
    assert not failed
    a, b, c = json.loads(tried)["variants"]
    assert (a["name"], a["exit_code"], a["is_error"], a["timed_out"]) == ("a", 1, True, False)
    assert (b["exit_code"], b["is_error"], b["output"]) == (0, False, "42\nhello")
    assert (c["timed_out"], c["is_error"], c["exit_code"]) == (True, True, None)
    assert c["seconds"] >= 2
    # The session's own sandbox was not touched, and then the one that was kept is its sandbox.
    assert results(service, session_id)[1:] == ["before", "42\nb\nhello"]
    parent = service.sandbox_of(session_id).removeprefix("sandbox-")
    assert json.loads(kept) == {
        "kept": b["sandbox"],
        "sandbox": b["sandbox"],
        "ended": [parent, a["sandbox"], c["sandbox"]],
    }
    for one in json.loads(kept)["ended"]:
        assert service.kinds(f"sandbox-{one}")[-1] == "sandbox.killed"
    of_b = service.kinds(f"sandbox-{b['sandbox']}")
    assert of_b[:3] == ["sandbox.created", "sandbox.suspended", "sandbox.resumed"]
    assert of_b.count("tool_call.completed") == 3
    of_parent = service.kinds(f"sandbox-{parent}")
    assert of_parent.count("sandbox.forked") == 3
    assert of_parent[-2:] == ["tool_call.completed", "sandbox.killed"]
    posted = [one.data for one in service.history(f"session-{session_id}") if one.type == "session.result_posted"]
    assert [one.outcome for one in posted] == ["posted"] * 5  # type: ignore[union-attr]


def phases(service: Service, parent: str) -> dict[str, str]:
    """The last event of each fork of a sandbox."""
    children = [one.data.child for one in service.history(parent) if one.type == "sandbox.forked"]  # type: ignore[union-attr]
    return {child: service.kinds(f"sandbox-{child}")[-1] for child in children}


TWO = [{"command": "echo one"}, {"command": "echo two"}]


async def test_forks_end_with_the_next_try_or_when_none_is_kept(service: Service) -> None:
    made = draft("try-again").custom("try_in_parallel", variants=TWO)
    made.custom("try_in_parallel", variants=[{"name": "x", "command": "exit 3"}])
    made.custom("keep", variant="variant-1").custom("keep", none=True).custom("keep", none=True)
    made.bash("cat made.txt; echo $mine")
    async with service.up():
        session_id = await served(service, made)
    first, second, gone, none, nothing = answers(service, session_id)
    one, two = json.loads(first[0])["variants"]
    assert (one["name"], one["output"], two["name"], two["output"]) == ("variant-1", "one", "variant-2", "two")
    (again,) = json.loads(second[0])["variants"]
    # The shell of the fork ended, so nobody learnt its status.
    assert (again["is_error"], again["exit_code"], again["timed_out"]) == (True, None, False)
    # The name is of the try before: its forks are over.
    assert gone == ("keep: there is no variant 'variant-1' to keep. There are: x", True)
    assert json.loads(none[0])["ended"] == [again["sandbox"]]
    assert json.loads(nothing[0])["ended"] == []
    assert results(service, session_id)[-1] == "before\nhello"
    forks = phases(service, service.sandbox_of(session_id))
    assert len(forks) == 3
    assert set(forks.values()) == {"sandbox.killed"}


async def test_a_persons_fork_is_not_the_agents_to_end(service: Service) -> None:
    made = draft("try-person").custom("try_in_parallel", variants=TWO)
    made.says("Waiting.").rests().user("Go on.")
    made.custom("try_in_parallel", variants=TWO)
    async with service.up():
        session_id = await play(service, made)
        await service.recorded(f"session-{session_id}", "session.released")
        (forked,) = (await Operations(service.hosts[0]).fork(session_id, 1))["children"]
        await service.app.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Go on."}]}]
        )
        await service.recorded(f"session-{session_id}", "session.released", count=2)
        living = {one for one, last in phases(service, service.sandbox_of(session_id)).items() if "killed" not in last}
    (_, _), (again, _) = answers(service, session_id)
    assert living == {forked["sandbox_id"], *(one["sandbox"] for one in json.loads(again)["variants"])}


async def test_bad_input_is_an_answer_and_the_session_goes_on(service: Service) -> None:
    made = draft("try-badly").custom("try_in_parallel", variants=[{"command": ""}])
    made.custom("keep", variant="a").custom("keep").bash("echo $mine")
    async with service.up():
        session_id = await served(service, made)
    told = answers(service, session_id)
    assert all(failed for _, failed in told)
    assert "variants.0.command" in told[0][0]
    assert told[1][0].endswith("There are: none; call try_in_parallel first")
    assert "say either" in told[2][0]
    assert results(service, session_id)[-1] == "hello"
    assert "session.failed" not in service.kinds(f"session-{session_id}")


async def test_a_file_that_can_not_be_written_is_the_variants_failure(service: Service) -> None:
    variants = [{"name": "bad", "files": {"/proc/x": "x"}, "command": "echo ran"}, {"name": "ok", "command": "true"}]
    async with service.up():
        session_id = await served(service, draft("try-file").custom("try_in_parallel", variants=variants))
    ((told, failed),) = answers(service, session_id)
    bad, ok = json.loads(told)["variants"]
    assert (failed, bad["is_error"], ok["is_error"]) == (False, True, False)
    assert "ran" not in bad["output"].split()


async def test_an_interrupt_ends_the_forks_and_the_sandbox_goes_on(service: Service) -> None:
    made = draft("try-stop").custom("try_in_parallel", variants=[THREE[2], THREE[2] | {"name": "d"}])
    made.rests().user("Never mind.").bash("cat made.txt; echo $mine")
    async with service.up():
        session_id = await play(service, made)
        await service.recorded(f"session-{session_id}", "session.result_posted")
        sandbox = service.sandbox_of(session_id)
        for fork in await service.recorded(sandbox, "sandbox.forked", count=2):
            await service.recorded(f"sandbox-{fork.data.child}", "tool_call.started")  # type: ignore[union-attr]
        await service.app.beta.sessions.events.send(session_id, events=[{"type": "user.interrupt"}])
        (interrupted,) = await service.recorded(sandbox, "tool_call.interrupted")
        assert interrupted.data.reason == "user"  # type: ignore[union-attr]
        assert set(phases(service, sandbox).values()) == {"sandbox.killed"}
        await service.app.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Never mind."}]}]
        )
        await service.until(has_ended(session_id), "the session to end")
        await service.recorded(f"session-{session_id}", "session.released")
    posted = [one.data for one in service.history(f"session-{session_id}") if one.type == "session.result_posted"]
    assert [one.outcome for one in posted] == ["posted", "already_answered", "posted"]  # type: ignore[union-attr]
    assert results(service, session_id)[-1] == "before\nhello"


async def test_a_tool_of_the_same_name_that_is_not_ours_is_left_alone(service: Service) -> None:
    theirs = {"type": "custom", "name": "keep", "description": "Keeps a note.", "input_schema": {"type": "object"}}
    made = draft("try-theirs", tools=[TOOLS[0], theirs]).custom("keep", note="x")
    async with service.up():
        session_id = await play(service, made)
        await service.recorded(f"session-{session_id}", "session.result_posted")
        (use,) = [one for one in service.server.events(session_id) if one["type"] == "agent.custom_tool_use"]
        assert answers(service, session_id) == []
        await service.app.beta.sessions.events.send(
            session_id,
            events=[
                {
                    "type": "user.custom_tool_result",
                    "custom_tool_use_id": use["id"],
                    "content": [{"type": "text", "text": "Noted."}],
                }
            ],
        )
        await service.recorded(f"session-{session_id}", "session.released")
    assert use["id"] not in str([one.data for one in service.history(f"session-{session_id}")])


async def test_on_a_node_with_little_room_variants_take_turns(service: Service) -> None:
    service.settings = service.settings.model_copy(update={"max_sandboxes": 2})
    variants = [{"name": name, "command": f"echo {name} > made.txt"} for name in "abc"]
    made = draft("try-turns").custom("try_in_parallel", variants=variants)
    made.custom("keep", variant="a").bash("cat made.txt")
    async with service.up():
        session_id = await served(service, made)
    assert not any(one["is_error"] for one in json.loads(answers(service, session_id)[0][0])["variants"])
    assert results(service, session_id)[-1] == "a"
    # It was put to disk for the others, and came back to be kept.
    kept = json.loads(answers(service, session_id)[1][0])["kept"]
    assert service.kinds(f"sandbox-{kept}").count("sandbox.resumed") >= 2


async def test_a_node_that_is_full_says_so(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "_START_S", 0.1)
    service.settings = service.settings.model_copy(update={"max_sandboxes": 1})
    made = draft("try-full").custom("try_in_parallel", variants=TWO, seconds=0.1).bash("echo $mine")
    async with service.up():
        session_id = await served(service, made)
    ((told, failed),) = answers(service, session_id)
    assert failed
    for one in json.loads(told)["variants"]:
        assert one["sandbox"] is None
        assert "no room" in one["output"] or "time of the whole call" in one["output"]
    assert set(phases(service, service.sandbox_of(session_id)).values()) == {"sandbox.killed"}
    assert results(service, session_id)[-1] == "hello"


@pytest.mark.parametrize("tool", ["try_in_parallel", "keep"])
async def test_an_outcome_that_is_recorded_is_posted_and_nothing_runs_again(service: Service, tool: str) -> None:
    made = draft(f"try-lost-{tool}").custom("try_in_parallel", variants=TWO)
    made.custom("keep", variant="variant-2").bash("echo $mine")
    async with service.up():
        session_id = await play(service, made)
        await service.recorded(
            f"session-{session_id}", "session.result_posted", count=1 if tool == "try_in_parallel" else 2
        )
        service.server.inject("status", r"/sessions/[^/]+/events$", method="POST", times=1000)
        sandbox = service.sandbox_of(session_id)
        # Of the first bash call, of the try, and of keep.
        await service.recorded(sandbox, "tool_call.completed", count=2 if tool == "try_in_parallel" else 3)
        service.server.expire_lease(session_id)
        await service.recorded(f"session-{session_id}", "session.claimed", count=2)
        service.server.clear_faults()
        await service.until(has_ended(session_id), "the session to end")
        await service.recorded(f"session-{session_id}", "session.released")
    assert len(answers(service, session_id)) == 2
    kinds = service.kinds(sandbox)
    assert (kinds.count("sandbox.forked"), kinds.count("tool_call.started"), kinds.count("sandbox.killed")) == (2, 3, 1)
    assert results(service, session_id)[-1] == "hello"


async def test_a_try_that_was_cut_off_is_run_again_in_new_forks(service: Service) -> None:
    variants = [{"name": "slow", "command": "sleep 3; echo slow"}, {"name": "quick", "command": "echo quick"}]
    async with service.up():
        session_id = await play(service, draft("try-cut").custom("try_in_parallel", variants=variants))
        await service.recorded(f"session-{session_id}", "session.result_posted")
        sandbox = service.sandbox_of(session_id)
        first = await service.recorded(sandbox, "sandbox.forked", count=2)
        await service.recorded(f"sandbox-{first[0].data.child}", "tool_call.started")  # type: ignore[union-attr]
        service.server.expire_lease(session_id)
        await service.recorded(f"session-{session_id}", "session.claimed", count=2)
        await service.until(has_ended(session_id), "the session to end")
        await service.recorded(f"session-{session_id}", "session.released")
    ((told, failed),) = answers(service, session_id)
    assert not failed
    assert [one["output"] for one in json.loads(told)["variants"]] == ["slow", "quick"]
    kinds = service.kinds(sandbox)
    assert (kinds.count("sandbox.forked"), kinds.count("tool_call.started"), kinds.count("tool_call.completed")) == (
        4,
        2,
        2,
    )
    forks = phases(service, sandbox)
    assert [forks[one.data.child] for one in first] == ["sandbox.killed"] * 2  # type: ignore[union-attr]


async def test_forks_end_with_their_session(service: Service) -> None:
    async with service.up():
        session_id = await play(service, draft("try-over").custom("try_in_parallel", variants=[*TWO, THREE[2]]))
        await service.recorded(f"session-{session_id}", "session.result_posted")
        sandbox = service.sandbox_of(session_id)
        await service.recorded(sandbox, "sandbox.forked", count=3)
        await service.app.beta.sessions.archive(session_id)
        await service.recorded(f"session-{session_id}", "session.terminated")
        await service.recorded(f"session-{session_id}", "session.released")
        assert service.hosts[0].lent == {}
    assert set(phases(service, sandbox).values()) == {"sandbox.killed"}
    assert service.kinds(sandbox)[-1] == "sandbox.killed"
