"""One probe: a version rebuilt in a throw-away machine, the command run in it, and what that says of the version."""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from events.types import BisectProbed
from replay.bisect.evidence import SKIP
from replay.rebuild.errors import CallHung, NothingLeft, NotReproducible, SnapshotUnusable
from replay.rebuild.preparing import reasons
from replay.rebuild.rebuilding import Step, rebuild

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actors.machines.protocol import Machine, ToolResult
    from events.log import EventLog
    from replay.bisect.changes import Point
    from replay.history.planned import Plan
    from replay.rebuild.ground import Ground
    from replay.rebuild.rebuilding import Rebuilt

_GRACE_S = 10.0
"""From the end of the command's time until its call is given up."""
_KILLED = 128
"""Exit codes from here on are a shell's for what was killed, as `git bisect run` has it."""
_SAID = 800
"""Characters of the output that are recorded."""
_GONE = "bash: bash session terminated; restart required"
_TIMED_OUT = re.compile(r"^(tool 'bash' timed out|bash: bash command timed out after [\d.]+s)$", re.MULTILINE)
"""What the guest agent says, see `actors.guest.toolbox`; believed only where there is no exit code."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found of one version."""

    told: BisectProbed
    hung: bool = False
    """Of one that ended the bisect: whether the command did not end."""
    recorded: bool = False
    """Found earlier, and not probed again."""

    @property
    def version(self) -> int:
        """Of the sandbox's stream."""
        return self.told.version

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**self.told.model_dump(exclude={"type"}), "recorded": self.recorded}


async def probe(
    log: EventLog,
    made: Plan,
    point: Point,
    command: Sequence[str],
    ground: Ground,
    *,
    seconds: float,
    anyway: bool,
    heard: Callable[[Step], None],
) -> Probe:
    """Run a command at a state, and judge.

    Args:
        made: the plan of the state.
        seconds: how long the command may run.
        anyway: judge by versions, too, that do not come back as they were.

    Raises:
        OtherDriver, MachineFailed: nothing can be said of any version.
        LogError, StoreError.
    """
    began = time.monotonic()
    results: list[ToolResult] = []

    async def then(machine: Machine, found: Rebuilt) -> None:
        if anyway or found.first is None:
            heard(Step("running the command", len(found.checks), len(found.checks)))
            results.append(await _run(machine, command, seconds))

    def told(verdict: Any, because: str = "") -> BisectProbed:
        took = round(time.monotonic() - began, 3)
        return BisectProbed(version=point.version, verdict=verdict, because=because, seconds=took)

    if not (made.reproducible or anyway):
        return Probe(told("skipped", reasons(made) or "; ".join(made.notes)))
    try:
        found = await rebuild(
            log, made, ground, anyway=anyway, stop_at_first=not anyway, trees=False, then=then, heard=heard
        )
    except (NotReproducible, NothingLeft, SnapshotUnusable, CallHung) as error:
        return Probe(told("skipped", str(error)))
    if not results:
        first = found.first
        what = f"{first.recorded.call.tool} at {first.recorded.call.at} gave something else" if first else "it differs"
        return Probe(told("skipped", f"it did not come back as it was: {what}"))
    return _judged(results[0], told)


async def _run(machine: Machine, command: Sequence[str], seconds: float) -> ToolResult:
    """The command, in the shell of the sandbox as it is: its folder, its variables."""
    # In a subshell, and by exec: no alias and no function of the shell is taken for the program. That it fails must not
    # end a shell in which the session has said `set -e`.
    given = {"command": f"set +e; (exec -- {shlex.join(command)})", "timeout_ms": max(1, round(seconds * 1000))}
    wait = seconds + _GRACE_S
    result = await machine.guest.run_tool("bisect-1", "bash", given, timeout=wait)
    if result.exit_code is None and _text(result).endswith(_GONE):
        # The last call ended it, and the agent would have had to start another.
        await machine.guest.run_tool("bisect-2", "bash", {"restart": True}, timeout=wait)
        result = await machine.guest.run_tool("bisect-3", "bash", given, timeout=wait)
    return result


def _judged(result: ToolResult, told: Callable[..., BisectProbed]) -> Probe:
    code, text = result.exit_code, _text(result)
    hung = code is None and _TIMED_OUT.search(text) is not None
    because = ""
    if code is None:
        because = "it did not end within its time" if hung else "the shell that it ran in ended"
    elif code < 0 or code >= _KILLED:
        because = f"exit code {code}"
    verdict = "ended" if because else {0: "good", SKIP: "skipped"}.get(code or 0, "bad")
    if code == SKIP:
        because = f"exit code {SKIP}"
    seen = {
        "exit_code": code,
        "output_digest": hashlib.sha256(text.encode()).hexdigest(),
        "output": text[-_SAID:],
    }
    return Probe(told(verdict, because).model_copy(update=seen), hung)


def _text(result: ToolResult) -> str:
    """What the command printed, as a result has it; what no log could store is replaced."""
    texts = [str(block.get("text", "")) for block in result.content]
    return "\n".join(texts).encode("utf-8", "replace").decode()
