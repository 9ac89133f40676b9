"""What a sandbox asked of the network, and what was decided: events of the stream `sandbox-<id>`.

Reserved: nothing writes them yet, and a log that has them is read.
"""

from __future__ import annotations

from typing import Literal

from events.payload import Payload


class EgressConnected(Payload):
    """A connection was allowed, and stood."""

    type: Literal["egress.connected"] = "egress.connected"
    host: str
    """The name that the guest asked for."""
    port: int
    address: str
    """Where the host connected to."""
    rule: str
    """The entry of the allowlist that let it through."""


class EgressRefused(Payload):
    """A name was not resolved, or a connection not made."""

    type: Literal["egress.refused"] = "egress.refused"
    host: str
    port: int | None = None
    """None where the name alone was refused."""
    reason: Literal["not_allowed", "private_address", "unresolvable", "unreachable", "malformed"]
    detail: str = ""


class EgressPolicyChanged(Payload):
    """From here on, this is what the sandbox may reach."""

    type: Literal["egress.policy_changed"] = "egress.policy_changed"
    allow: list[str]
    """`name`, `*.name` or `name:port`; empty: nothing."""
    by: str
    """Who changed it: a setting, a command, a branch."""
