"""A draft: the agent's and the user's side of a session, written by hand, with room for the worker's results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from replay.recording import FORMAT, Header, JsonObject, dump, parse

_TOOLSET = "agent_toolset_20260401"
_ROOM = [{"type": "text", "text": "(the worker's result belongs here)"}]


@dataclass
class Draft:
    """Each method adds what happens next; calls of one `calls` are one batch."""

    name: str
    description: str
    agent_name: str = "Coder"
    tools: list[JsonObject] = field(default_factory=list)
    events: list[JsonObject] = field(default_factory=list)

    def agent(self) -> JsonObject:
        """The agent that the recording's header names."""
        return {
            "name": self.agent_name,
            "model": {"id": "claude-opus-4-8"},
            "system": "You work in /workspace.",
            "tools": [{"type": _TOOLSET}, *self.tools],
        }

    def recording(self) -> Any:
        """The draft as a recording."""
        header = Header(recording=FORMAT, name=self.name, agent=self.agent(), description=self.description)
        return parse(dump(header, self.events), self.name)

    def event(self, kind: str, **fields: Any) -> str:
        """Any event; returns its id."""
        name = f"{self.name}-{len(self.events) + 1}"
        self.events.append({"id": name, "type": kind} | fields)
        return name

    def user(self, text: str) -> Self:
        """A message of the user's."""
        self.event("user.message", content=[{"type": "text", "text": text}])
        return self

    def says(self, text: str) -> Self:
        """A message of the agent's."""
        self.event("agent.message", content=[{"type": "text", "text": text}])
        return self

    def rests(self, reason: str = "end_turn") -> Self:
        """The end of a turn."""
        self.event("session.status_idle", stop_reason={"type": reason})
        return self

    def call(self, name: str, /, **arguments: Any) -> str:
        """A call that nothing answers yet; returns its id."""
        return self.event("agent.tool_use", name=name, input=arguments, evaluated_permission="allow")

    def answered(self, *calls: str) -> Self:
        """Wait for the worker's results of these calls."""
        self.event("session.status_idle", stop_reason={"type": "requires_action", "event_ids": list(calls)})
        for call in calls:
            self.event("user.tool_result", tool_use_id=call, content=_ROOM)
        return self

    def custom(self, name: str, /, **arguments: Any) -> Self:
        """One call of a custom tool and its result."""
        call = self.event("agent.custom_tool_use", name=name, input=arguments)
        self.event("session.status_idle", stop_reason={"type": "requires_action", "event_ids": [call]})
        self.event("user.custom_tool_result", custom_tool_use_id=call, content=_ROOM)
        return self

    def bash(self, command: str, **more: Any) -> Self:
        """One bash call and its result."""
        return self.answered(self.call("bash", command=command, **more))

    def uses(self, name: str, /, **arguments: Any) -> Self:
        """One call of any tool and its result."""
        return self.answered(self.call(name, **arguments))
