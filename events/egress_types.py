"""What a sandbox asked of the network, and what was decided: events of the stream `sandbox-<id>`.

They are no machine state: connections end after a suspend, and a list is changed while no machine runs. A storm of
connections or refusals that are alike is told in few events, by their counts.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from events.payload import Payload

Protocol = Literal["tcp", "udp", "dns"]

RefusalReason = Literal[
    "not_allowed",
    "private_address",
    "unresolvable",
    "unreachable",
    "malformed",
    "wrong_name",
    "no_name",
    "protocol",
    "too_many",
]
"""Why something was refused; `unresolvable` and `unreachable` were allowed, and not to be had."""


class EgressConnected(Payload):
    """A connection was allowed, and stood. Durable before its first byte passes.

    Others to the same place in the next seconds are no events of their own: `egress.closed` counts them.
    """

    type: Literal["egress.connected"] = "egress.connected"
    host: str
    """The name that the guest asked for, or a literal address."""
    port: int
    address: str
    """Where the host connected to."""
    rule: str
    """The entry of the allowlist that let it through."""


class EgressClosed(Payload):
    """Connections to one place ended, since the last such event of it."""

    type: Literal["egress.closed"] = "egress.closed"
    host: str
    port: int
    connections: int
    """How many ended; each was counted once, whether or not it had an event of its own."""
    bytes_sent: int
    """By the guest."""
    bytes_received: int
    """By the guest."""
    seconds: float
    """How long they stood, together."""


class EgressRefused(Payload):
    """A name was not resolved, or a connection not made, or ended for what was sent over it."""

    type: Literal["egress.refused"] = "egress.refused"
    host: str
    """What the guest asked for, as far as it could be read."""
    port: int | None = None
    """None where the name alone was refused."""
    protocol: Protocol = "tcp"
    reason: RefusalReason
    rule: str = ""
    """The entry of the allowlist that applied; "" where none does."""
    detail: str = ""
    count: int = 1
    """So many that are alike."""


class EgressPolicyChanged(Payload):
    """From here on, this is what the sandbox may reach."""

    type: Literal["egress.policy_changed"] = "egress.policy_changed"
    allow: list[str]
    """The whole list, each entry in its canonical text; empty: nothing."""
    settings: list[str] | None
    """What the settings give, be it in the list or taken out by a person since; None: it follows no settings."""
    by: str
    """Who changed it: `settings`, `fork`, or a person."""
    agent: list[str] = Field(default_factory=list)
    """Id and name of the agent for whose sessions the settings gave it; empty where none was known."""
