"""Looking back: states of the past, timelines, and the server that plays recorded sessions over the real HTTP API."""

from replay.history.states import State, state_at

__all__ = ["State", "state_at"]
