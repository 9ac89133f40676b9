"""What `hourglass plan` prints."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from events.console import clean, first_line, table
from replay.history.planned import Fate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from replay.history.planned import Gap, Plan, PlannedCall, Version

_STYLES = {Fate.IN_SNAPSHOT: "dim", Fate.AGAIN: "green", Fate.SKIPPED: "cyan", Fate.LOST: "red"}
_INPUT = 60
_FIELDS = ("command", "file_path", "path", "pattern")
_PLACES = {"node": "on this node", "store": "in the store"}


def drawn(plan: Plan, *, every: bool) -> RenderableType:
    """The plan, for people; without `every`, calls that are in the snapshot are one row."""
    parts: list[RenderableType] = [Text(clean(f"{plan.target}, from {_start(plan)}"), "bold")]
    parts += [Text(clean(f"gone: {one.snapshot_id} of {one.at}"), "yellow") for one in plan.gone]
    rows = list(_rows(plan, every=every))
    if rows:
        parts.append(table([">version", "tool", "input", "", "why"], rows))
    parts += [Text(clean(f"note: {one}"), "dim") for one in plan.notes]
    parts.append(_verdict(plan))
    return Group(*parts)


def _start(plan: Plan) -> str:
    start = plan.start
    if start.kind == "snapshot":
        where = " and ".join(_PLACES[one] for one in start.where)
        return f"snapshot {start.snapshot_id} of {start.at} ({where})"
    return f"the template {start.template}" if start.kind == "template" else "nothing that is left"


def _rows(plan: Plan, *, every: bool) -> Iterator[tuple[object, ...]]:
    order = {one.stream: number for number, one in enumerate(plan.line)}
    happened: list[PlannedCall | Gap] = [*plan.calls, *plan.gaps]
    happened.sort(key=lambda one: (order[one.at.stream], one.at.version))
    for folded, some in groupby(happened, key=lambda one: getattr(one, "fate", None) is Fate.IN_SNAPSHOT):
        if folded and not every:
            number = len(list(some))
            what = f"{number:,} call{'s' if number > 1 else ''}"
            yield "", "", Text(what, "dim"), Text(Fate.IN_SNAPSHOT.words, "dim"), ""
            continue
        yield from (_row(one, plan.target) for one in some)


def _row(one: PlannedCall | Gap, target: Version) -> tuple[object, ...]:
    at = str(one.at.version) if one.at.stream == target.stream else str(one.at)
    fate = getattr(one, "fate", None)
    if fate is None:
        return at, "", "", Text("not repeated", "red"), getattr(one, "what", "")
    return at, one.tool, _asked(one), Text(fate.words, _STYLES[fate]), one.because  # type: ignore[union-attr,arg-type]


def _asked(call: PlannedCall) -> str:
    found = next((call.input[name] for name in _FIELDS if isinstance(call.input.get(name), str)), None)
    return first_line(found if found is not None else str(call.input), _INPUT)


def _verdict(plan: Plan) -> Text:
    counts = {fate: len(plan.of(fate)) for fate in Fate}
    if plan.reproducible:
        again = f"{counts[Fate.AGAIN]:,} to run again" if counts[Fate.AGAIN] else "nothing to run again"
        return Text(f"It can be rebuilt: {again}, {counts[Fate.SKIPPED]:,} skipped.", "green")
    ways = [f"{plan.before} before it can"] if plan.before else []
    ways += [f"{plan.after.at} after it can, from {plan.after.snapshot_id}"] if plan.after else []
    rest = "; ".join(ways) or "no version near it can"
    return Text(clean(f"It can't be rebuilt as it was; {rest}."), "yellow")
