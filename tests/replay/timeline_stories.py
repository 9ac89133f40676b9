"""Histories for the timeline's tests: what a log can hold, the hostile included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from events import types
from events.envelope import new_events
from events.log import Expect
from events.sqlite_log import SqliteLog
from replay.timeline.build import Entry, Unreadable

if TYPE_CHECKING:
    from pathlib import Path

    from events.types import EventData

SESSION = "sesn_01story"
SANDBOX = "sbx-00000000000000aa"
FORK = "sbx-00000000000000bb"
FORKED = f"sandbox-{FORK}"
STREAM, BOX = f"session-{SESSION}", f"sandbox-{SANDBOX}"
T0_US = 1_790_000_000_000_000

Step = tuple[float, str, "EventData | Unreadable"]
"""Seconds since the beginning, stream, what happened."""


def text(words: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": words}]


def claimed(number: int) -> types.SessionClaimed:
    return types.SessionClaimed(
        environment_id="env_1",
        work_id=SESSION,
        claim_id=f"claim_{number}",
        worker_id="node-a",
        credential="session_token",
    )


def created() -> types.SandboxCreated:
    return types.SandboxCreated(session_id=SESSION, driver="gvisor", template="base", limits=types.Limits())


def attached(number: int, history: int = 1) -> types.SessionAttached:
    return types.SessionAttached(claim_id=f"claim_{number}", sandbox_id=SANDBOX, history_events=history)


def call(
    at: float,
    id_: str,
    tool: str,
    input_: dict[str, Any],
    printed: str,
    *,
    seconds: float = 0.2,
    is_error: bool = False,
    posted: bool = True,
) -> list[Step]:
    steps: list[Step] = [
        (at, STREAM, types.ToolCallRequested(tool_use_id=id_, tool=tool, input=input_)),
        (at + 0.01, BOX, types.ToolCallStarted(tool_use_id=id_, tool=tool, input=input_)),
        (
            at + 0.01 + seconds,
            BOX,
            types.ToolCallCompleted(
                tool_use_id=id_,
                content=text(printed),
                is_error=is_error,
                seconds=seconds,
                output_bytes=len(printed),
            ),
        ),
    ]
    if posted:
        steps.append((at + 0.03 + seconds, STREAM, types.SessionResultPosted(tool_use_id=id_)))
    return steps


def plain() -> list[Step]:
    """A turn that goes well, with each of the tools."""
    return [
        (0.0, STREAM, claimed(1)),
        (0.01, BOX, created()),
        (
            0.41,
            BOX,
            types.SandboxStarted(machine_id="hg-0000000000000001", node="node-a", seconds=0.38, agent_version="1"),
        ),
        (0.42, STREAM, attached(1)),
        *call(1, "toolu_1", "bash", {"command": "git init -q\nls -A"}, ".git\n"),
        *call(2, "toolu_2", "write", {"file_path": "a.py", "content": "x = 1\ny = 2\n"}, "wrote 12 bytes to a.py"),
        *call(
            3,
            "toolu_3",
            "bash",
            {"command": "python3 -m unittest"},
            "\n".join(f"line {n}" for n in range(40)) + "\nFAILED (failures=2)\n",
            is_error=True,
            seconds=12.3,
        ),
        *call(16, "toolu_4", "grep", {"pattern": "total", "path": "a.py"}, "a.py:1:total"),
        *call(17, "toolu_5", "read", {"file_path": "a.py", "view_range": [8, 13]}, "x = 1\ny = 2"),
        *call(
            18,
            "toolu_6",
            "edit",
            {"file_path": "a.py", "old_string": "x = 1", "new_string": "x = 3\nz = 4", "replace_all": True},
            "edited a.py (3 replacement(s))",
        ),
        *call(19, "toolu_7", "glob", {"pattern": "*.py"}, "a.py"),
        *call(20, "toolu_8", "bash", {"restart": True}, "bash session restarted"),
        (21.0, STREAM, types.SessionIdled(stop_reason="end_turn")),
        (81.0, STREAM, types.SessionReleased(claim_id="claim_1", reason="idle")),
    ]


def troubled() -> list[Step]:
    """Everything that goes wrong: a crash, an interrupt, a denial, refused posts, a lost lease, a second claim."""
    long = {"command": "make -j64"}
    return [
        (0.0, STREAM, claimed(1)),
        (0.01, BOX, created()),
        (0.3, BOX, types.SandboxStarted(machine_id="hg-1", node="a", seconds=0.28, agent_version="1")),
        (0.31, STREAM, attached(1, 5)),
        (1.0, STREAM, types.ToolCallRequested(tool_use_id="t1", tool="bash", input=long)),
        (1.0, BOX, types.ToolCallStarted(tool_use_id="t1", tool="bash", input=long)),
        (9.0, BOX, types.SandboxCrashed(reason="out_of_memory", detail="exit 137")),
        (9.4, BOX, types.SandboxRecovered(machine_id="hg-2", node="a", kept="files", seconds=0.35)),
        (
            9.5,
            BOX,
            types.ToolCallInterrupted(
                tool_use_id="t1", reason="out_of_memory", content=text("The sandbox ran out of memory.")
            ),
        ),
        (9.6, STREAM, types.SessionResultPosted(tool_use_id="t1")),
        (
            10.0,
            STREAM,
            types.ToolCallRequested(tool_use_id="t2", tool="bash", input={"command": "rm -rf /"}, permission="ask"),
        ),
        (12.0, STREAM, types.ToolCallDenied(tool_use_id="t2", by="user", message="Not that.")),
        *call(13, "t3", "bash", {"command": "cat big"}, "x", posted=False),
        (
            14.0,
            STREAM,
            types.SessionResultPosted(tool_use_id="t3", outcome="refused", detail="400: too large"),
        ),
        (15.0, STREAM, types.ToolCallRequested(tool_use_id="t4", tool="read", input={"file_path": "/etc/passwd"})),
        (
            16.0,
            STREAM,
            types.SessionLeaseLost(claim_id="claim_1", reason="precondition_failed", detail="another worker has it"),
        ),
        (20.0, BOX, types.EgressRefused(host="evil.example", port=443, reason="not_allowed")),
        (30.0, STREAM, claimed(2)),
        (30.1, BOX, types.SandboxRecovered(machine_id="hg-2", node="a", kept="memory_and_files", seconds=0.02)),
        (30.2, STREAM, attached(2, 9)),
        (30.3, BOX, types.ToolCallStarted(tool_use_id="t4", tool="read", input={"file_path": "/etc/passwd"})),
        (
            30.4,
            BOX,
            types.ToolCallCompleted(
                tool_use_id="t4",
                content=[{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 400}}],
                is_error=False,
                seconds=0.1,
            ),
        ),
        (31.0, STREAM, Unreadable("written by a newer Hourglass")),
        (
            32.0,
            STREAM,
            types.SessionFailed(reason="api_error", detail="503 for ten minutes", next_step="see the status page"),
        ),
        (32.1, STREAM, types.SessionReleased(claim_id="claim_2", reason="not_served")),
    ]


def paused() -> list[Step]:
    """Frozen between calls, put to disk and brought back; a fork that is kept; a shell, a forward, a copy."""
    used = {"cpu_seconds": 1.5, "memory_high_bytes": 50_000_000}
    steps: list[Step] = [
        (0.0, STREAM, claimed(1)),
        (0.01, BOX, created()),
        (0.3, BOX, types.SandboxStarted(machine_id="hg-1", node="a", seconds=0.28, agent_version="1")),
        (0.31, STREAM, attached(1)),
    ]
    for turn in range(1, 5):
        steps += call(turn * 10, f"t{turn}", "bash", {"command": f"make {turn}"}, "ok\n")
        steps.append((turn * 10 + 0.3, BOX, types.SandboxFrozen(reason="call")))
        steps.append((turn * 10 + 9.9, BOX, types.SandboxThawed(seconds=0.001)))
    steps += [
        (50.0, STREAM, types.SessionIdled(stop_reason="end_turn")),
        (50.1, BOX, types.SandboxFrozen(reason="idle")),
        (60.0, BOX, snapshotted("rest-1", "suspend")),
        (60.1, BOX, types.SandboxSuspended(reason="pressure", snapshot_id="rest-1", seconds=0.2, **used)),
        (70.0, BOX, types.SandboxResumed(machine_id="hg-2", node="a", snapshot_id="rest-1", seconds=0.1)),
        (71.0, BOX, snapshotted("fork-2", "fork")),
        (71.1, BOX, types.SandboxForked(child=FORK, snapshot_id="fork-2")),
        (71.1, FORKED, forked()),
        (71.1, FORKED, types.SandboxSuspended(reason="fork", snapshot_id="fork-2")),
        (71.2, FORKED, types.SandboxResumed(machine_id="hg-3", node="a", snapshot_id="fork-2", seconds=0.1)),
        (72.0, FORKED, types.SandboxProcessStarted(process_id="p1", command="bash -l", terminal=True, by="shell")),
        (73.0, FORKED, types.SandboxForwardOpened(forward_id="f1", port=8000)),
        (74.0, FORKED, types.SandboxFileCopied(path="/workspace/a.csv", direction="in", bytes=1200)),
        (75.0, FORKED, types.SandboxProcessEnded(process_id="p1", exit_code=130, seconds=3.0, bytes_out=900)),
        (76.0, FORKED, types.SandboxForwardClosed(forward_id="f1", seconds=3.0, bytes_in=400, bytes_out=90_000)),
        (77.0, STREAM, types.SessionSandboxKept(sandbox_id=FORK, previous=SANDBOX, ended=[SANDBOX])),
        (77.0, BOX, types.SandboxKilled(reason="replaced", **used)),
        (80.0, STREAM, types.SessionReleased(claim_id="claim_1", reason="idle")),
    ]
    return steps


def forked() -> types.SandboxCreated:
    return created().model_copy(update={"parent": SANDBOX, "parent_version": 24})


def snapshotted(snapshot_id: str, reason: Any) -> types.SandboxSnapshotted:
    return types.SandboxSnapshotted(
        snapshot_id=snapshot_id, node="a", image_bytes=9_000_000, tree_bytes=4096, seconds=0.06, reason=reason
    )


HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m \x9b5m c1 \u202eeverse \u200bzero [bold]markup[/bold] "
    ":smile: {0} %s \x00nul \r\roverwritten\x7f\u2028sep"
)


def hostile() -> list[Step]:
    """Text that would like to be obeyed, wherever a guest or an agent can put some."""
    return [
        (0.0, STREAM, claimed(1)),
        (0.01, BOX, created()),
        (0.3, STREAM, attached(1)),
        *call(1, f"toolu_{HOSTILE}", "bash", {"command": HOSTILE}, f"{HOSTILE}\n{'z' * 1_000_000}\n{HOSTILE}"),
        *call(2, "t2", HOSTILE, {HOSTILE: HOSTILE}, "\u0301" * 100_000),
        *call(3, "t3", "write", {"file_path": HOSTILE, "content": HOSTILE}, HOSTILE),
        *call(4, "t4", "edit", {"file_path": HOSTILE, "old_string": HOSTILE, "new_string": ["\x1b[2J"]}, HOSTILE),
        *call(5, "t5", "bash", {"command": ["\x1b[2J"], "restart": "\x1b[2J"}, "\n" * 5000),
        *call(6, "t6", "read", {"file_path": {"\x1b[2J": 1}, "view_range": ["\x1b[2J", HOSTILE]}, HOSTILE),
        (7.0, BOX, types.SandboxCrashed(reason="protocol_violation", detail=HOSTILE)),
        (7.1, BOX, types.EgressRefused(host=HOSTILE, reason="malformed", detail=HOSTILE)),
        (7.2, BOX, types.SandboxProcessStarted(process_id=HOSTILE, command=HOSTILE, terminal=False, by=HOSTILE)),
        (7.3, f"sandbox-{HOSTILE}", types.SandboxFileCopied(path=HOSTILE, direction="out", bytes=1)),
        (8.0, STREAM, types.SessionFailed(reason="internal", detail=HOSTILE, next_step=HOSTILE)),
    ]


def entries(steps: list[Step]) -> list[Entry]:
    versions: dict[str, int] = {}
    found = []
    for position, (at, stream, data) in enumerate(steps, start=1):
        versions[stream] = versions.get(stream, 0) + 1
        kind = data.type if not isinstance(data, Unreadable) else "session.teleported"
        found.append(
            Entry(
                position=position,
                stream=stream,
                version=versions[stream],
                at_us=T0_US + round(at * 1e6),
                type=kind,
                causation_id="",
                data=data,
            )
        )
    return found


def write(path: Path, steps: list[Step]) -> SqliteLog:
    """The same in a log file, with the times of now."""
    log = SqliteLog(path)
    for number, (_, stream, data) in enumerate(steps):
        if not isinstance(data, Unreadable):
            log.append(
                stream,
                new_events(
                    f"{path}-{number}",
                    [data],
                    correlation_id=SESSION,
                    causation_id=getattr(data, "tool_use_id", ""),
                ),
                expected=Expect.ANY,
            )
    return log
