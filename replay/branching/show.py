"""What `hourglass branch` and `hourglass branches` print for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from events.console import clean, duration, first_line, table
from replay.rebuild.show import STYLES, diff_lines
from replay.rebuild.show import drawn as drawn_rebuild

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from replay.branching.branching import Branch
    from replay.branching.family import Member
    from replay.branching.running import Run
    from replay.branching.what_if import NextCall, WhatIf

_INPUT = 60
_FIELDS = ("command", "file_path", "path", "pattern")
_PHASES = {"running": "green", "frozen": "cyan", "suspended": "blue", "stopped": "yellow", "crashed": "red"}


def drawn_what_if(planned: WhatIf) -> RenderableType:
    """The calls that are to be run as the branch's own."""
    rows: list[tuple[object, ...]] = [
        (
            one.recorded.call.at.version,
            one.tool,
            _asked(one),
            Text("instead", "magenta") if one.replaced else Text("will be run", "green"),
            "",
        )
        for one in planned.calls
    ]
    rows += [(one.at.version, one.tool, "", Text("left out", "red"), one.because) for one in planned.left_out]
    rows += [(gap.at.version, "", "", Text("not repeated", "red"), gap.what) for gap in planned.gaps]
    rows.sort(key=lambda row: int(str(row[0])))
    head = Text(clean(f"and then, as a sandbox of its own, the calls up to {planned.target}"), "bold")
    return Group(head, table([">version", "tool", "input", "", "why"], rows))


def drawn(made: Branch) -> RenderableType:
    """What was made."""
    parts: list[RenderableType] = []
    if made.rebuilt is not None:
        parts.append(drawn_rebuild(made.rebuilt))
    if made.runs:
        parts.append(_runs(made))
    if made.not_stored:
        parts.append(Text(clean(f"its snapshot is on this node alone: {made.not_stored}"), "yellow"))
    whole = f"{made.sandbox_id}@{made.version} is a branch of {made.begin}, and lies suspended"
    parts.append(Text(clean(f"{whole} ({duration(made.seconds)})"), "bold"))
    parts.append(Text(clean(f"`hourglass continue {made.sandbox_id} -m …` has an agent go on in it"), "dim"))
    return Group(*parts)


def _runs(made: Branch) -> RenderableType:
    rows = [
        (
            one.check.recorded.call.at.version,
            one.call.tool,
            _asked(one.call),
            duration(one.check.recorded.seconds),
            duration(one.check.seconds),
            Text("instead, " if one.call.replaced else "") + Text(one.check.words, STYLES[one.check.verdict]),
        )
        for one in made.runs
    ]
    parts: list[RenderableType] = [table([">version", "tool", "input", ">then", ">now", "result"], rows)]
    for one in made.runs:
        if one.call.replaced and one.diverged:
            parts += _difference(f"instead of {_place(one)}:", one)
    where = made.diverged
    if where is not None:
        parts += _difference(f"the results part at {_place(where)}:", where)
    elif len(made.runs) > sum(one.call.replaced for one in made.runs):
        parts.append(Text("every later result is as it was", "green"))
    return Group(*parts)


def _place(one: Run) -> str:
    call = one.check.recorded.call
    return f"{call.tool} at {call.at}"


def _difference(head: str, one: Run) -> list[Text]:
    return [Text(clean(head), "bold red"), *diff_lines(one.check.diff)]


def _asked(one: NextCall) -> str:
    found = next((one.input[name] for name in _FIELDS if isinstance(one.input.get(name), str)), None)
    return first_line(found if found is not None else str(one.input), _INPUT)


def drawn_family(members: Sequence[Member], named: str) -> RenderableType:
    """The trees, one for each sandbox that came from none in the log; `named` is set off."""
    trees: list[Tree] = []
    above: list[Tree] = []
    for one in members:
        del above[one.depth :]
        label = _label(one, one.sandbox_id == named)
        if above:
            above.append(above[-1].add(label))
        else:
            above.append(Tree(label))
            trees.append(above[0])
    return Group(*trees)


def _label(one: Member, named: bool) -> Text:
    told = Text(clean(one.sandbox_id), "bold" if named else "")
    told.append(f"@{one.version} ", "dim")
    told.append(clean(one.phase), _PHASES.get(one.phase, "dim"))
    if one.parent:
        # One whose parent the log does not have stands by itself.
        of = f" {clean(one.parent)}" if not one.depth else ""
        told.append(f", {one.how} from{of} version {one.parent_version}")
    calls = f", {one.calls:,} call{'' if one.calls == 1 else 's'}"
    told.append(calls + (f", session {clean(one.session_id)}" if one.session_id and not one.parent else ""), "dim")
    return told
