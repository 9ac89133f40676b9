"""What a session's events say of its tool calls: which may run, which never will, and whether the turn is over.

Pure: events in, answers out, so that every rule of contract §8 and §11 is tested without a server. The same object
takes the history and the live stream, in any overlap, since it knows each event by its id.

It differs from the SDK's runner where that one goes wrong: a call that the server closed with `agent.tool_result`
counts as answered (contract §11.2), so it is neither run again nor waited for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from events.types import JsonObject

BUILT_IN_TOOLS = frozenset({"bash", "read", "write", "edit", "glob", "grep"})
"""The tools that run here; `web_search` and `web_fetch` run at Anthropic, most custom tools at whoever made them up."""

NEUTRAL = frozenset({"user.tool_confirmation", "session.thread_status_terminated"})
"""Events that do not disturb the countdown after a turn (contract §11.6)."""
_ANSWERS = {
    "user.tool_result": "tool_use_id",
    "agent.tool_result": "tool_use_id",
    "user.custom_tool_result": "custom_tool_use_id",
}

DeniedBy = Literal["policy", "user", "thread_terminated", "server"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one of the six tools, or of a custom tool of ours, as the agent asked for it."""

    tool_use_id: str
    tool: str
    input: JsonObject
    thread_id: str = ""
    permission: str = "allow"
    """`allow`, `ask` or `deny`; anything that we do not know is held like `ask` (contract §11.3)."""
    custom: bool = False
    """Whether it came as `agent.custom_tool_use`, and is answered as such."""


@dataclass(slots=True)
class Conversation:
    """Everything that the events of one session have said so far."""

    custom_tools: frozenset[str] = frozenset()
    """Names of the custom tools that we serve; calls of all others are somebody else's to answer."""
    calls: dict[str, ToolCall] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    """Calls that have an answer at the server, ours or not."""
    verdicts: dict[str, str] = field(default_factory=dict)
    terminated_threads: set[str] = field(default_factory=set)
    interrupts: int = 0
    """How many `user.interrupt` events there were."""
    turn_ended: str = ""
    """The stop reason of the idle that ended the turn; "" while the turn goes on."""
    ended: Literal["", "terminated", "deleted"] = ""
    """Set by the live stream alone: a history may hold the end of an earlier life."""
    _seen: set[str] = field(default_factory=set)

    def observe(self, event: Any, *, live: bool) -> bool:
        """Take one event of the SDK; unknown types are let through. Returns whether it was new."""
        event_id = getattr(event, "id", None)
        if not isinstance(event_id, str):
            return False  # previews of deltas carry no id and change nothing
        if event_id in self._seen:
            return False
        self._seen.add(event_id)
        kind = str(event.type)
        if kind == "agent.tool_use" and event.name in BUILT_IN_TOOLS:
            self._tool_use(event, str(getattr(event, "evaluated_permission", None) or "allow"))
        elif kind == "agent.custom_tool_use" and event.name in self.custom_tools:
            # Policies do not apply to custom tools.
            self._tool_use(event, "allow", custom=True)
        elif kind in _ANSWERS:
            self.answered.add(str(getattr(event, _ANSWERS[kind])))
        elif kind == "user.tool_confirmation":
            self.verdicts.setdefault(str(event.tool_use_id), str(event.result))
        elif kind == "user.interrupt":
            self.interrupts += 1
        elif kind == "session.thread_status_terminated":
            self.terminated_threads.add(str(event.session_thread_id))
        elif live and kind in ("session.status_terminated", "session.deleted"):
            self.ended = "deleted" if kind == "session.deleted" else "terminated"
        if kind not in NEUTRAL:
            self.turn_ended = _stop_reason(event) if kind == "session.status_idle" else ""
        return True

    def _tool_use(self, event: Any, permission: str, *, custom: bool = False) -> None:
        self.calls[event.id] = ToolCall(
            tool_use_id=event.id,
            tool=event.name,
            input=_storable(event.input if isinstance(event.input, dict) else {"input": event.input}),
            thread_id=getattr(event, "session_thread_id", None) or "",
            permission=permission,
            custom=custom,
        )

    def denied_by(self, call: ToolCall) -> DeniedBy | None:
        """Who saw to it that `call` never runs; None if nobody did."""
        if call.permission == "deny":
            return "policy"
        verdict = self.verdicts.get(call.tool_use_id)
        if verdict is not None and verdict != "allow":
            return "user"
        if call.thread_id and call.thread_id in self.terminated_threads:
            return "thread_terminated"
        if call.tool_use_id in self.answered:
            return "server"
        return None

    def may_run(self, call: ToolCall) -> bool:
        """Whether `call` may start now. Only an explicit `allow` releases a call that is held."""
        if self.denied_by(call) is not None:
            return False
        return call.permission == "allow" or self.verdicts.get(call.tool_use_id) == "allow"

    def unanswered(self) -> Iterator[ToolCall]:
        """Calls without an answer at the server, in the order in which they were asked for."""
        return (call for call in self.calls.values() if call.tool_use_id not in self.answered)

    def turn_is_over(self) -> bool:
        """Whether the agent's turn ended and nothing that could still be run or confirmed is open."""
        return bool(self.turn_ended) and all(self.denied_by(call) is not None for call in self.unanswered())


def _storable(given: JsonObject) -> JsonObject:
    """The input as the log can hold it: a model may write half of a surrogate pair, which is no text."""
    try:
        orjson.dumps(given)
    except TypeError:
        text = json.dumps(given, ensure_ascii=False).encode("utf-8", "replace")
        cleaned: JsonObject = json.loads(text)
        return cleaned
    return given


def _stop_reason(event: Any) -> str:
    """The stop reason of an idle that ends the turn; "" for `requires_action`, the parked state (contract §6.3)."""
    reason = str(getattr(getattr(event, "stop_reason", None), "type", None) or "unknown")
    return "" if reason == "requires_action" else reason
