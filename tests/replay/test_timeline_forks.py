"""A timeline of an agent that tried in parallel."""

from __future__ import annotations

from events import types
from replay.timeline import Status
from tests.replay import timeline_stories as stories
from tests.replay.test_timeline import built, drawn


def test_what_variants_do_in_forks_is_owed_to_nobody() -> None:
    variants = {"variants": [{"name": "a", "command": "true"}, {"command": "sleep 9"}]}
    tried = stories.call(1, "t1", "try_in_parallel", variants, "{}", seconds=3)
    bash = {"tool": "bash", "input": {"command": "true"}}
    in_fork: list[stories.Step] = [
        (2.0, stories.FORKED, types.ToolCallStarted(tool_use_id="f-1", **bash)),
        (2.1, stories.FORKED, types.ToolCallCompleted(tool_use_id="f-1", content=[], is_error=False, seconds=0.1)),
        (2.2, stories.FORKED, types.ToolCallStarted(tool_use_id="f-2", **bash)),
        (2.3, stories.FORKED, types.SandboxKilled(reason="not_kept")),
    ]
    start: list[stories.Step] = [
        (0.0, stories.STREAM, stories.claimed(1)),
        (0.1, stories.BOX, stories.created()),
        (0.2, stories.STREAM, stories.attached(1)),
    ]
    kept = stories.call(5, "k1", "keep", {"variant": "a"}, "{}")
    idle: list[stories.Step] = [(6.0, stories.STREAM, types.SessionIdled(stop_reason="end_turn"))]
    timeline = built([*start, *tried[:2], *in_fork, *tried[2:], *kept, *idle])
    assert [call.status for call in timeline.calls] == [Status.OK, Status.OK, Status.INTERRUPTED, Status.OK]
    # The second was cut off with its fork, and following the session does not wait for it.
    assert timeline.is_at_rest
    assert (timeline.totals.open, timeline.totals.unposted, timeline.totals.posted) == (0, 0, 2)
    shown = drawn(timeline)
    assert "try     a, variant-2" in shown
    assert f"{stories.FORK}: true" in shown
    assert "sandbox removed" in shown
    assert "not posted" not in shown
