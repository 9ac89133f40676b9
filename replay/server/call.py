"""One call of the agent's, from asked for to answered, and how its answer compares with the recorded one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.recording import JsonObject


@dataclass
class Call:
    """A call event, as this session sent it."""

    event: JsonObject
    recorded_id: str
    """The id the call had when it was recorded."""
    recorded_answer: JsonObject | None
    is_clients: bool
    """Whether a client has to answer it (contract §8.1)."""
    verdict: str | None = None
    """`allow` or `deny`, once a confirmation came."""
    answer: JsonObject | None = None
    """The event that answered it here."""
    refused: int = 0
    """How many more results were posted for it, and refused."""

    @property
    def id(self) -> str:
        """The call event's id."""
        return str(self.event["id"])

    @property
    def asks(self) -> bool:
        """Whether it needs a confirmation first."""
        return self.event.get("evaluated_permission") == "ask"

    @property
    def thread_id(self) -> str | None:
        """The child thread that made it; None: the primary one."""
        return self.event.get("session_thread_id")

    @property
    def is_open(self) -> bool:
        """Whether a client still has to answer it."""
        return self.is_clients and self.answer is None

    def comparison(self) -> JsonObject:
        """What was answered now beside what was recorded; `equal` is None where one of them is missing."""
        now, then = result_of(self.answer), result_of(self.recorded_answer)
        return {
            "tool_use_id": self.id,
            "recorded_id": self.recorded_id,
            "type": self.event["type"],
            "name": self.event["name"],
            "input": self.event["input"],
            "session_thread_id": self.thread_id,
            "posted": now,
            "recorded": then,
            "equal": None if now is None or then is None else now == then,
            "refused": self.refused,
        }


def result_of(answer: JsonObject | None) -> JsonObject | None:
    """The part of an answer that is compared: the type, what it says, and whether it is an error."""
    if answer is None:
        return None
    content: list[Any] = answer.get("content") or []
    return {"type": answer["type"], "is_error": bool(answer.get("is_error")), "content": content}
