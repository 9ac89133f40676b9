"""What can be asked of a sandbox about the network, and the events that it leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from events.egress_types import EgressClosed, EgressConnected, EgressPolicyChanged, EgressRefused

if TYPE_CHECKING:
    from events.egress_types import Protocol, RefusalReason
    from events.sandbox_state import SandboxState

MOST_HOST, MOST_DETAIL = 253, 500
"""Characters of what a guest asked for, and of what is said of it, that go into the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEgress:
    """The sandbox may reach what this list has, from now on; decides nothing where it is so already."""

    allow: tuple[str, ...]
    """The whole list, canonical (`Policy.texts`)."""
    settings: tuple[str, ...] | None
    """What the settings give, likewise; None: it follows no settings."""
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectEgress:
    """A connection stands, and its first byte is about to pass."""

    host: str
    port: int
    address: str
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseEgress:
    """Connections to one place ended."""

    host: str
    port: int
    connections: int
    bytes_sent: int
    bytes_received: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseEgress:
    """A name was not resolved, or a connection not made; so often, in one way."""

    host: str
    port: int | None
    protocol: Protocol
    reason: RefusalReason
    rule: str = ""
    detail: str = ""
    count: int = 1


EgressCommand = ChangeEgress | ConnectEgress | CloseEgress | RefuseEgress


def decide_egress(
    state: SandboxState, command: EgressCommand
) -> EgressPolicyChanged | EgressConnected | EgressClosed | EgressRefused | None:
    """The event that a command leads to; None where it is already so. Whether it may be is the transitions' matter."""
    match command:
        case ChangeEgress():
            if (command.allow, command.settings) == (state.egress, state.egress_settings):
                return None
            settings = None if command.settings is None else list(command.settings)
            return EgressPolicyChanged(allow=list(command.allow), settings=settings, by=command.by)
        case ConnectEgress():
            return EgressConnected(
                host=command.host[:MOST_HOST], port=command.port, address=command.address, rule=command.rule
            )
        case CloseEgress():
            return EgressClosed(
                host=command.host[:MOST_HOST],
                port=command.port,
                connections=command.connections,
                bytes_sent=command.bytes_sent,
                bytes_received=command.bytes_received,
                seconds=command.seconds,
            )
        case RefuseEgress():
            return EgressRefused(
                host=command.host[:MOST_HOST],
                port=command.port,
                protocol=command.protocol,
                reason=command.reason,
                rule=command.rule,
                detail=command.detail[:MOST_DETAIL],
                count=command.count,
            )


def settings_changed(state: SandboxState, settings: tuple[str, ...]) -> ChangeEgress | None:
    """What follows from what the settings give now; None where they gave the same before.

    What they add is added, and what they have no more is taken out, but for what a person allowed. What a person took
    out stays out, until the settings have dropped it and name it again. A branch and what was forked from one follow no
    settings: they reach what somebody allows them.
    """
    if state.egress_settings is None or settings == state.egress_settings:
        return None
    before, now = set(state.egress_settings), set(settings)
    kept = [one for one in state.egress if one not in before or one in now or one in state.egress_own]
    added = [one for one in settings if one not in before and one not in kept]
    return ChangeEgress(allow=(*kept, *added), settings=settings, by="settings")
