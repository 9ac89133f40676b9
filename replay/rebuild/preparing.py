"""What a rebuild needs to know before it begins: whether it may, what the log has of its calls, under which ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from events.errors import LogCorrupt
from events.sandbox_state import SandboxState
from events.types import ToolCallCompleted
from replay.history.planned import Fate
from replay.history.planning import plan
from replay.history.states import state_at
from replay.rebuild.checks import Recorded
from replay.rebuild.errors import NoSuchSnapshot, NothingLeft, NotReproducible, OtherDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from events.log import EventLog
    from events.sqlite_log import SqliteLog
    from replay.history.planned import Plan, PlannedCall
    from replay.history.presence import Where

_MOST_REASONS = 3


def checked(log: EventLog, made: Plan, driver: str, *, anyway: bool) -> SandboxState:
    """The state of the version, where its plan may be carried out.

    Raises `NotReproducible`, unless `anyway`; `NothingLeft`, `OtherDriver`.
    """
    target = str(made.target)
    if made.start.kind == "nothing":
        raise NothingLeft(target=target, because="; ".join(made.notes) or "nothing of it is left", near=near(made))
    if not made.reproducible and not anyway:
        raise NotReproducible(target=target, because=reasons(made), near=near(made))
    state = state_at(log, made.target.stream, version=made.target.version)
    assert isinstance(state, SandboxState)  # a plan is of a sandbox
    if state.driver != driver:
        raise OtherDriver(target=target, driver=state.driver, here=driver)
    return state


def reasons(made: Plan) -> str:
    """Why a plan is not reproducible, for people."""
    told = [f"{call.tool} at {call.at}: {call.because}" for call in made.of(Fate.LOST)]
    told += [f"{gap.what} ({gap.at})" for gap in made.gaps]
    more = [f"and {len(told) - _MOST_REASONS:,} more"] if len(told) > _MOST_REASONS else []
    return "; ".join(told[:_MOST_REASONS] + more)


def near(made: Plan) -> str:
    """Which versions near it can be rebuilt, for people."""
    ways = [f"{made.before} before it can be"] if made.before else []
    ways += [f"{made.after.at} after it can be, from {made.after.snapshot_id}"] if made.after else []
    return f"{'; '.join(ways)}." if ways else "No version near it can be."


def recorded(log: EventLog, call: PlannedCall) -> Recorded:
    """What the log has of a call that is to be run again. Raises `LogError`."""
    found = [event.data for event in log.read(call.at.stream, call.ended - 1, 1)] if call.ended else []
    if len(found) != 1 or not isinstance(found[0], ToolCallCompleted):
        # The plan was made of the very events: another log, or one that was changed under it.
        raise LogCorrupt(
            path=Path(getattr(log, "path", "log.db")), detail=f"{call.at.stream}@{call.ended} is no outcome of a call"
        )
    return Recorded(call, found[0].content, found[0].is_error, found[0].seconds)


def call_ids(made: Plan) -> list[str]:
    """Under which id each call runs again: its own, unless the memory may know an earlier call of that id."""
    seen: set[str] = set()
    found = []
    for number, call in enumerate(made.calls):
        if call.fate is Fate.AGAIN:
            # The guest answers a call that it knows with the result that it kept.
            found.append(call.tool_use_id if call.tool_use_id not in seen else f"{call.tool_use_id}-again-{number}")
        seen.add(call.tool_use_id)
    return found


def hiding(where: Callable[[str], tuple[Where, ...]], hidden: Collection[str]) -> Callable[[str], tuple[Where, ...]]:
    """As if some snapshots did not exist."""
    return lambda snapshot_id: () if snapshot_id in hidden else where(snapshot_id)


def existing(log: SqliteLog, names: Collection[str] | None) -> Collection[str]:
    """The snapshots that a person names. Raises `NoSuchSnapshot` for one that the log has not."""
    types = ("sandbox.snapshotted", "sandbox.suspended", "sandbox.branched")
    of_it = "SELECT 1 FROM events WHERE type IN (?, ?, ?) AND json_extract(data, '$.snapshot_id') = ? LIMIT 1"
    for name in names or ():
        if not log.query(of_it, (*types, name)):
            raise NoSuchSnapshot(name=name)
    return names or ()


def nearest_left(log: EventLog, made: Plan, where: Callable[[str], tuple[Where, ...]]) -> str:
    """What is nearest to a version where its plan's snapshot can't be had, and what it costs, for people."""
    gone = made.start.snapshot_id
    other = plan(log, made.target.stream, made.target.version, hiding(where, {gone}))
    if other.start.kind == "nothing":
        return f"Nothing else is left to begin from. {near(other)}"
    found = (
        f"{other.start.snapshot_id} of {other.start.at}" if other.start.at else f"the template {other.start.template}"
    )
    again = [recorded(log, call) for call in other.of(Fate.AGAIN)]
    cost = f"{len(again):,} calls to run again, which took {sum(one.seconds for one in again):.1f} s then"
    if other.reproducible:
        return f"The nearest that is left is {found}: {cost}. Add --without {gone} to begin from there."
    return f"The nearest that is left is {found}, and from there it can't be rebuilt as it was: {reasons(other)}."
