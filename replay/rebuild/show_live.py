"""What `hourglass diff --live` prints of processes and environments. All of it is a guest's: shown, never obeyed."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from events.console import clean, table
from replay.rebuild.checks import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from replay.rebuild.differing import Live, ProcessChange
    from replay.rebuild.processes import Process
    from replay.rebuild.rebuilding import Rebuilt

_MARKS = {"added": ("A", "green"), "removed": ("D", "red"), "changed": ("M", "yellow")}
_COMMAND = 100
_VALUE = 60
_MOST_ROWS = 60


def drawn(found: Live, *, every: bool) -> RenderableType:
    """Processes, and the shells' environments; without `every`, long tables are cut."""
    parts: list[RenderableType] = [one for rebuilt in (found.a, found.b) for one in _exactness(rebuilt)]
    parts += [Text(), Text("processes: " + ("" if found.processes else "no difference"), "bold")]
    parts += _table(["", ">pid", "command", "what"], [_row(one) for one in found.processes], every=every)
    if found.environment is None:
        parts.append(Text(clean(f"the environments can't be compared: {found.because}"), "yellow"))
        return Group(*parts)
    parts += [Text(), Text("environment of the shell: " + ("" if found.environment else "no difference"), "bold")]
    rows = [(clean(name, _VALUE), _value(a), _value(b)) for name, (a, b) in found.environment.items()]
    parts += _table(["variable", clean(found.a.plan.target), clean(found.b.plan.target)], rows, every=every)
    return Group(*parts)


def _exactness(found: Rebuilt) -> Iterator[Text]:
    """Where it is not what it was, that is said before anything else."""
    target = clean(str(found.plan.target))
    if not found.plan.reproducible:
        yield Text(f"{target} was rebuilt without what can't be repeated: it is not what it was.", "yellow")
    elif found.verdict is Verdict.DIFFERS:
        yield Text(f"{target} did not come back as it was: `hourglass rebuild {target}` shows how.", "red")


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, every: bool) -> Iterator[RenderableType]:
    if rows:
        yield table(columns, rows if every else rows[:_MOST_ROWS])
    if not every and len(rows) > _MOST_ROWS:
        yield Text(f"  … {len(rows) - _MOST_ROWS:,} more; --all shows them", "dim")


def _row(one: ProcessChange) -> tuple[object, ...]:
    process = one.after or one.before
    assert process is not None
    return Text(*_MARKS[one.change]), _pids(one), _command(process), _what(one)


def _pids(one: ProcessChange) -> str:
    return " to ".join(dict.fromkeys(str(side.pid) for side in (one.before, one.after) if side is not None))


def _command(process: Process) -> str:
    return clean(shlex.join(process.command) if process.command else f"[{process.name}]", _COMMAND)


def _what(one: ProcessChange) -> str:
    a, b = one.before, one.after
    if a is None or b is None:
        return ""
    told = []
    if "command" in one.what:
        told.append(f"was {_command(a)}")
    if "state" in one.what:
        told.append(f"{a.state} to {b.state}")
    told += [
        clean(f"{name}: {_value(before)} to {_value(after)}", _COMMAND)
        for name, (before, after) in one.environment.items()
    ]
    return ", ".join(told)


def _value(value: str | None) -> str:
    return "-" if value is None else clean(value, _VALUE)
