"""What a person names: a sandbox, or a session for all the sandboxes that it has or had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from events import session_state
from events.errors import HourglassError

if TYPE_CHECKING:
    from events.sqlite_log import SqliteLog

_SESSION, _SANDBOX = "session-", "sandbox-"
_MOST_NAMED = 5


@dataclass(eq=False)
class NoSuchTarget(HourglassError):
    """{target} names no session and no sandbox of this home."""

    target: str
    next_step = "`hourglass sandboxes` and `hourglass sessions` show what there is."


@dataclass(eq=False)
class AmbiguousTarget(HourglassError):
    """{target} could be any of {found}."""

    target: str
    found: str
    next_step = "Write more of it."


def find(streams: list[str], target: str) -> tuple[str, str]:
    """`session` or `sandbox`, and the id, of what alone has this id or begins with it.

    Raises:
        NoSuchTarget, AmbiguousTarget: there is none, or several.
    """
    known = [name for name in streams if name.startswith((_SESSION, _SANDBOX))]
    exact = [name for name in (_SANDBOX + target, _SESSION + target, target) if name in known]
    found = exact[:1] or [name for name in known if target and name.partition("-")[2].startswith(target)]
    if not found:
        raise NoSuchTarget(target=target)
    if len(found) > 1:
        named = [name.partition("-")[2] for name in found[:_MOST_NAMED]]
        raise AmbiguousTarget(target=target, found=", ".join(named))
    kind, _, name = found[0].partition("-")
    return kind, name


def sandboxes(log: SqliteLog, target: str) -> list[str]:
    """The ids of the sandboxes that are meant: of a session, all that it has or had, in the order of their beginning.

    Raises:
        NoSuchTarget, AmbiguousTarget: as `find`.
    """
    kind, name = find(log.streams(), target)
    if kind == "sandbox":
        return [name]
    rows = log.query(
        "SELECT stream FROM events WHERE data ->> '$.session_id' = ? AND type IN "
        "('sandbox.created', 'sandbox.branched', 'sandbox.adopted') ORDER BY position",
        (name,),
    )
    return list(dict.fromkeys(str(stream).removeprefix(_SANDBOX) for (stream,) in rows))


def current(log: SqliteLog, target: str) -> str:
    """The id of the one sandbox that is meant: of a session, the one that it uses now.

    Raises:
        NoSuchTarget, AmbiguousTarget: as `find`; a session that has no sandbox yet is none either.
    """
    kind, name = find(log.streams(), target)
    if kind == "sandbox":
        return name
    used = session_state.load(log, name).sandbox_id or next(iter(sandboxes(log, target)), "")
    if not used:
        raise NoSuchTarget(target=target)
    return used
