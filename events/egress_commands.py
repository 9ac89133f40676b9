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
    agent: tuple[str, ...] = ()
    """Id and name of the agent that the settings were asked for; empty: as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditEgress:
    """Entries are added and taken out by a person; what is so already decides nothing."""

    add: tuple[str, ...] = ()
    """Canonical, as `remove`."""
    remove: tuple[str, ...] = ()
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowSettings:
    """The settings give this list; decides nothing where they gave the same before.

    What they add is added, and what they have no more is taken out, but for what a person allowed. What a person took
    out stays out, until the settings have dropped it and name it again. A branch and what was forked from one follow no
    settings: they reach what somebody allows them. Nor does what is over, or is not there.
    """

    settings: tuple[str, ...]
    agent: tuple[str, ...] = ()
    """Id and name of the agent that it is for; empty: as before."""


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


EgressCommand = ChangeEgress | EditEgress | FollowSettings | ConnectEgress | CloseEgress | RefuseEgress


def decide_egress(
    state: SandboxState, command: EgressCommand
) -> EgressPolicyChanged | EgressConnected | EgressClosed | EgressRefused | None:
    """The event that a command leads to; None where it is already so. Whether it may be is the transitions' matter."""
    match command:
        case ChangeEgress():
            return _changed(state, command.allow, command.settings, command.by, command.agent)
        case EditEgress():
            allow = dict.fromkeys((*state.egress, *command.add))
            kept = tuple(one for one in allow if one not in command.remove)
            return _changed(state, kept, state.egress_settings, command.by)
        case FollowSettings():
            return _followed(state, command)
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


def _changed(
    state: SandboxState, allow: tuple[str, ...], settings: tuple[str, ...] | None, by: str, agent: tuple[str, ...] = ()
) -> EgressPolicyChanged | None:
    if (allow, settings) == (state.egress, state.egress_settings):
        return None
    given = None if settings is None else list(settings)
    return EgressPolicyChanged(allow=list(allow), settings=given, by=by, agent=list(agent or state.egress_agent))


def _followed(state: SandboxState, command: FollowSettings) -> EgressPolicyChanged | None:
    if state.egress_settings is None or state.phase in ("absent", "killed"):
        return None
    before, now = set(state.egress_settings), set(command.settings)
    kept = [one for one in state.egress if one not in before or one in now or one in state.egress_own]
    added = [one for one in command.settings if one not in before and one not in kept]
    return _changed(state, (*kept, *added), command.settings, "settings", command.agent)
