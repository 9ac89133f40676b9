"""Changing what a sandbox may reach: by the service that serves its log, or in the log itself where nobody does."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from events import sandbox as fold
from events import targets
from events.egress_policy import Policy
from events.egress_view import egress_view
from events.envelope import new_events
from events.errors import HourglassError, LogLocked, LogMissing
from events.home import LOG_NAME
from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.settings import Settings

_WAIT_S = 10.0
"""A service is starting or stopping, or another command holds the log for an append."""
_AGAIN_S = 0.2


@dataclass(eq=False)
class EntryNotListed(HourglassError):
    """{entry} is not in the list of sandbox {sandbox_id}{instead}."""

    entry: str
    sandbox_id: str
    instead: str = ""
    """What allows it all the same, with a leading ": ", or ""."""
    next_step = "`hourglass egress show {sandbox_id}` shows the list; deny takes out an entry as it is written there."


@dataclass(frozen=True, slots=True)
class Edit:
    """Entries to add to a list, and to take out of it; canonical. Made by `of`."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    @classmethod
    def of(cls, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Edit:
        """Of entries as people write them. Raises `EntryInvalid`."""
        return cls(Policy.parse(add).texts, Policy.parse(remove).texts)

    def check(self, state: fold.SandboxState) -> None:
        """Raises `EntryNotListed` where an entry is to be taken out that is not there."""
        for entry in self.remove:
            if entry not in state.egress:
                wider = _wider(state.egress, entry)
                instead = f": what allows it is {wider}" if wider else ""
                raise EntryNotListed(entry=entry, sandbox_id=state.sandbox_id, instead=instead)

    def applied(self, allow: Sequence[str]) -> tuple[str, ...]:
        """The list that it makes of a list."""
        return tuple(one for one in dict.fromkeys((*allow, *self.add)) if one not in self.remove)


def _wider(allow: Sequence[str], entry: str) -> str:
    """An entry of the list that allows what a single name names, at some port; "" where none does."""
    wanted = Policy.parse([entry]).entries[0]
    if not wanted.name:
        return ""
    name = f"x.{wanted.name}" if wanted.below else wanted.name
    found = Policy.parse(allow).name_allowed(name)
    return found.text if found is not None else ""


def change(settings: Settings, target: str, edit: Edit, by: str) -> dict[str, Any]:
    """Change the list of one sandbox, of a session its present one; what it is then (`egress_view`).

    In force, and durable, when it returns. With a service the service does it, since a log has one writer.

    Raises:
        HourglassError: there is no such sandbox, it was killed, or an entry is not in its list.
        CannotServe: somebody else holds the log, and no service answers.
    """
    path = settings.home / LOG_NAME
    if not path.exists():
        raise LogMissing(path=path)
    for attempt in Retrying(
        retry=retry_if_exception_type(LogLocked),
        wait=wait_fixed(_AGAIN_S),
        stop=stop_after_delay(_WAIT_S),
        reraise=True,
    ):
        with attempt:
            return _change(settings, target, edit, by)
    raise AssertionError("unreachable: the last attempt raises")


def _change(settings: Settings, target: str, edit: Edit, by: str) -> dict[str, Any]:
    try:
        with SqliteLog(settings.home / LOG_NAME, durability=settings.durability) as log:
            return _write(log, target, edit, by)
    except LogLocked:
        from actors.service import operate
        from actors.up import CannotServe

        try:
            found: dict[str, Any] = operate(settings, "change_egress", target, list(edit.add), list(edit.remove), by)
        except CannotServe as error:
            if (settings.home / LOG_NAME).exists() and not _is_served(settings):
                raise LogLocked(path=settings.home / LOG_NAME, holder="unknown") from error
            raise
        return found


def _is_served(settings: Settings) -> bool:
    from actors.up import ADDRESS_FILE

    return (settings.home / ADDRESS_FILE).exists()


def _write(log: SqliteLog, target: str, edit: Edit, by: str) -> dict[str, Any]:
    sandbox_id = targets.current(log, target)
    state = fold.load(log, sandbox_id)
    edit.check(state)
    decided = fold.decide(state, fold.EditEgress(add=edit.add, remove=edit.remove, by=by))
    if decided:
        # As a host of its own: one that wrote before, and was only thought dead, must not go on with the list it knew.
        events = new_events(
            f"{state.stream}/egress-{secrets.token_hex(8)}", decided, correlation_id=state.session_id, metadata={}
        )
        log.append(state.stream, events, expected=state.version, epoch=log.next_epoch("host"))
        for data in decided:
            state = fold.evolve(state, data)
    return egress_view(state)
