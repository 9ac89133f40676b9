"""What can be made to go wrong with requests: each fault meets the next matching requests, and is then used up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from replay.server.errors import ApiError, invalid

if TYPE_CHECKING:
    from typing import Any

    from replay.recording import JsonObject


class Wrong(StrEnum):
    """How a request goes wrong."""

    STATUS = "status"
    """An error is answered; nothing is applied."""
    REFUSED = "refused"
    """The connection is cut; nothing is applied."""
    LOST_RESPONSE = "lost_response"
    """The request is applied, then the connection is cut before the reply."""
    SLOW = "slow"
    """The request is applied after `seconds`."""
    EMPTY = "empty"
    """`null` is answered, as by a poll of an empty queue; nothing is applied."""


@dataclass
class Fault:
    """One fault."""

    wrong: Wrong
    path: str = ".*"
    """A regular expression that is found in the request's path."""
    method: str = "*"
    times: int = 1
    """How many requests it meets."""
    status: int = 503
    seconds: float = 0.0
    retry: bool | None = None
    """What the header `x-should-retry` says; None: it is not sent."""

    def meets(self, method: str, path: str) -> bool:
        """Whether this request is one of its."""
        return self.times > 0 and self.method in ("*", method) and re.search(self.path, path) is not None

    def error(self) -> ApiError:
        """What a STATUS fault answers; a 412 is the heartbeat's own (contract §3.2)."""
        if self.status != 412:
            return ApiError(self.status, "This error was injected")
        state = {"state": "queued", "last_heartbeat": None, "lease_extended": False, "ttl_seconds": 0}
        return ApiError(
            412,
            "Heartbeat precondition failed: expected NO_HEARTBEAT, actual was NULL",
            details={
                "error_code": "heartbeat_precondition_failed",
                "error_visibility": "user_facing",
                "current_state": state,
            },
        )


class Faults:
    """The faults that wait for their requests."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Let a fault wait for its requests."""
        self._waiting.append(fault)

    def clear(self) -> None:
        """Forget every waiting fault."""
        self._waiting.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that meets this request, if any; it is used up by one."""
        for fault in self._waiting:
            if fault.meets(method, path):
                fault.times -= 1
                if not fault.times:
                    self._waiting.remove(fault)
                return fault
        return None


def from_json(body: JsonObject) -> Fault:
    """A fault as the admin endpoint takes it. Raises ApiError (400)."""
    known: dict[str, Any] = {key: value for key, value in body.items() if key != "fault"}
    try:
        fault = Fault(Wrong(body["fault"]), **known)
        re.compile(fault.path)
    except (TypeError, ValueError, KeyError, re.error) as error:
        kinds = ", ".join(Wrong)
        raise invalid(f"fault: not a fault ({error}); `fault` is one of {kinds}") from None
    return fault
