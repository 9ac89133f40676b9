"""What a person does to the sandboxes of a running service, by the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic

if TYPE_CHECKING:
    from tests.service import Installed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def test_a_sandbox_is_paused_forked_and_one_fork_is_kept(installed: Installed) -> None:
    with installed.up():
        session_id, parent = served(installed)
        assert installed.kinds(f"sandbox-{parent}")[-2:].count("sandbox.frozen") == 1

        assert installed.json("pause", session_id)["phase"] == "suspended"
        assert installed.json("pause", parent)["phase"] == "suspended"
        assert installed.json("resume", session_id[:12])["phase"] == "running"
        assert installed.json("pause", parent, "--freeze")["phase"] == "frozen"
        snapshot_id = installed.json("snapshot", parent)["snapshot_id"]
        assert snapshot_id.startswith("snap-")

        # In any state, by the service; a fork has its parent's list.
        assert installed.json("egress", "allow", session_id, "a.example", "b.example")["phase"] == "frozen"
        assert installed.json("egress", "deny", parent, "b.example")["allow"] == ["a.example"]

        # From frozen, in one call, and the parent is as it was.
        forked = installed.json("fork", session_id, "-n", "3")
        children = [child["sandbox_id"] for child in forked["children"]]
        assert forked["phase"] == "frozen"
        assert len(set(children)) == 3
        assert not [child for child in forked["children"] if "error" in child]
        shown = {one["sandbox_id"]: one for one in installed.json("top")}
        assert {shown[child]["parent"] for child in children} == {parent}
        assert {shown[child]["phase"] for child in children} == {"running"}
        # From suspended as well.
        installed.json("pause", children[0])
        assert installed.json("egress", "show", children[0])["allow"] == ["a.example"]
        (grandchild,) = installed.json("fork", children[0])["children"]
        assert installed.json("kill", grandchild["sandbox_id"])["phase"] == "killed"

        kept = installed.json("keep", children[0])
        assert kept["ended"] == [parent, *children[1:]]
        for one in (parent, *children[1:]):
            assert installed.kinds(f"sandbox-{one}")[-1] == "sandbox.killed"
        second_turn(installed, session_id)
        refusals_are_clear(installed, children)
    # The shell's variable went from the parent into the fork, to disk, and back.
    assert installed.results(session_id)[-1]["content"] == [{"type": "text", "text": "42\n41"}]
    kinds = installed.kinds(f"sandbox-{children[0]}")
    assert kinds[:4] == ["sandbox.created", "egress.policy_changed", "sandbox.suspended", "sandbox.resumed"]
    assert "tool_call.completed" in kinds
    assert installed.command("log", "verify").returncode == 0
    assert "kept" in installed.command("timeline", session_id).stdout


def test_with_an_actor_for_each_sandbox_one_is_paused_forked_and_kept_too(installed: Installed) -> None:
    installed.options = ["--isolation", "process"]
    with installed.up():
        session_id, parent = served(installed)
        assert installed.json("pause", parent)["phase"] == "suspended"
        children = [child["sandbox_id"] for child in installed.json("fork", parent, "-n", "2")["children"]]
        assert installed.json("keep", children[0])["ended"] == [parent, children[1]]
        second_turn(installed, session_id)
    assert installed.results(session_id)[-1]["content"] == [{"type": "text", "text": "42\n41"}]


def served(installed: Installed) -> tuple[str, str]:
    """A session whose first turn is over, and its sandbox."""
    session_id = installed.session("two-turns")
    installed.wait_for(f"session-{session_id}", "session.released")
    return session_id, installed.sandbox_of(session_id).removeprefix("sandbox-")


def second_turn(installed: Installed, session_id: str) -> None:
    with Anthropic(api_key=installed.server.api_key, base_url=installed.server.base_url) as app:
        app.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": "Add one."}]}]
        )
    installed.wait_for(f"session-{session_id}", "session.released", count=2)


def refusals_are_clear(installed: Installed, children: list[str]) -> None:
    for arguments, said in (
        (("pause", "nobody"), "names no session and no sandbox"),
        (("pause", "s"), "could be any of"),
        (("resume", children[1]), "was killed"),
        (("egress", "allow", children[0], "*"), "would allow everything"),
        (("keep", children[1]), "nothing to keep"),
        (("fork", children[0], "-n", "1000"), "1000 forks are more than the 64"),
    ):
        done = installed.command(*arguments)
        assert done.returncode == 1, arguments
        assert said in " ".join(done.stderr.split()), (arguments, done.stderr)


def test_without_a_service_the_commands_say_so(installed: Installed) -> None:
    done = installed.command("pause", "sesn_1")
    assert done.returncode == 1
    assert "no service runs on the home" in done.stderr
    assert "hourglass up" in done.stderr
