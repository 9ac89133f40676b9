"""What a recorded-session server can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class ServerSettings:
    """Every knob; the defaults imitate production as the contract knows it."""

    ttl_seconds: int = 300
    """A lease's length (contract §4.2)."""
    ping_seconds: float = 15.0
    """A ping on a stream that was silent for so long."""
    pace_seconds: float = 0.0
    """The agent's time between two of its events; 0: as fast as it goes."""
    default_recording: str | None = None
    """What a session plays that names no recording, itself or through its agent; None: such a session is refused."""
    mint_secrets: bool = True
    """Whether a claim carries a `secret`; without one a worker needs its environment key."""
    skills_refuse_sessions_token: bool = False
    """Whether the skills endpoints refuse a sessions token, as one public record has it (contract §19)."""
    interrupted_result: Literal["user.tool_result", "agent.tool_result"] = "user.tool_result"
    """The family of the result that closes an interrupted call: not publicly known. With `agent.tool_result` a worker
    of the SDK that attaches later runs the call again (contract §11.2)."""
    queue_empty_sessions: bool = False
    """Whether a session created without events is queued at once (contract §4.4 does not settle it)."""
    max_request_bytes: int = 32 * 1024 * 1024
    """A longer request body is refused with 413."""
    seed: int | None = None
    """Mint the same ids in every run. Without one, no two servers share an id."""
