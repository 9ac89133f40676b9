"""What there is to say of what a sandbox may reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from events.sandbox_state import SandboxState


def egress_view(state: SandboxState) -> dict[str, Any]:
    """The list in force, and where it comes from, for people and for JSON."""
    settings = state.egress_settings
    return {
        "sandbox_id": state.sandbox_id,
        "session_id": state.session_id,
        "phase": state.phase.value,
        "allow": list(state.egress),
        "from_settings": [one for one in settings or () if one in state.egress and one not in state.egress_own],
        "from_people": [one for one in state.egress if one in state.egress_own],
        "taken_out": [one for one in settings or () if one not in state.egress],
        "follows_settings": settings is not None,
        "agent": list(state.egress_agent),
    }
