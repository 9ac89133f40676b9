"""What `hourglass rebuild` and `hourglass rebuilds` print for people."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from events.console import clean, console, duration, first_line, table
from replay.rebuild.checks import Verdict
from replay.rebuild.trees import some
from replay.rebuild.verifying import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType

    from replay.rebuild.checks import Check
    from replay.rebuild.rebuilding import Rebuilt, Step
    from replay.rebuild.throwaway import KeptRebuild
    from replay.rebuild.trees import TreeCheck
    from replay.rebuild.verifying import Outcome

STYLES = {Verdict.EQUAL: "green", Verdict.ASIDE: "cyan", Verdict.DIFFERS: "red"}
_STATUS = {
    Status.VERIFIED: ("verified", "green"),
    Status.DIVERGED: ("differs", "bold red"),
    Status.NOTHING: ("nothing to run", "dim"),
    Status.FAILED: ("could not be verified", "red"),
}
_INPUT = 60
_SHORT = 16


@contextmanager
def progress(what: str, *, hidden: bool = False) -> Iterator[Callable[[Step], None]]:
    """A bar on stderr, where that is a terminal and it is not to be hidden."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    silent = hidden or not sys.stderr.isatty()
    with Progress(*columns, console=console(sys.stderr), transient=True, disable=silent) as bar:
        task = bar.add_task(clean(what), total=None)

        def heard(step: Step) -> None:
            # Markup means nothing in a description that is escaped; what a tool is called comes from the log.
            shown = clean(f"{what}: {step.doing}").replace("[", r"\[")
            bar.update(task, description=shown, completed=step.done, total=step.total)

        yield heard


def drawn(found: Rebuilt) -> RenderableType:
    """What came of a rebuild."""
    parts: list[RenderableType] = []
    if found.checks:
        rows = [_row(one, found.plan.target.stream) for one in found.checks]
        parts.append(table([">version", "tool", "input", ">then", ">now", "result"], rows))
    first = found.first
    if first is not None:
        parts += [
            Text(clean(f"first that differs: {first.recorded.call.tool} at {first.recorded.call.at}"), "bold red")
        ]
        parts += diff_lines(first.diff)
    parts += tree_lines(found.tree)
    parts.append(Text(f"restored in {duration(found.restore_seconds)}, done in {duration(found.seconds)}", "dim"))
    parts += [kept_line(found.kept)] if found.kept is not None else []
    parts.append(_verdict(found))
    return Group(*parts)


def diff_lines(diff: str) -> list[Text]:
    """A diff, coloured."""
    styles = {"+": "green", "-": "red", "@": "cyan"}
    return [Text(clean(line), styles.get(line[:1], "")) for line in diff.splitlines()]


def tree_lines(tree: TreeCheck) -> list[Text]:
    """What there is to say of the work tree."""
    short = tree.digest[:_SHORT]
    if tree.verdict is None:
        return [Text(f"work tree {short}; no snapshot is of this version, to compare it with")]
    aside = [Text(clean(f"  {path}"), "cyan") for path in some(tree.aside)]
    if tree.verdict is Verdict.EQUAL:
        return [Text(clean(f"work tree {short}, as in {tree.of}"), "green")]
    if tree.verdict is Verdict.ASIDE:
        return [Text(clean(f"work tree {short}, as in {tree.of} but for these files:"), "cyan"), *aside]
    told = [Text(clean(f"work tree {short}, and in {tree.of} it is {tree.expected[:_SHORT]}"), "red")]
    return [*told, *(Text(clean(f"  {path}"), "red") for path in some(tree.changed)), *aside]


def kept_line(kept: KeptRebuild) -> Text:
    """That it stays, and how it goes."""
    return Text(clean(f"kept as {kept.sandbox_id}: `hourglass rebuilds rm {kept.sandbox_id}` removes it"))


def kept_table(kept: Sequence[KeptRebuild]) -> RenderableType:
    """The rebuilds that stay."""
    rows = [(one.sandbox_id, f"{one.stream}@{one.version}", one.snapshot_id, one.verdict) for one in kept]
    return table(["rebuild", "of", "snapshot", "result"], rows)


def outcomes(found: Sequence[tuple[Outcome, str]]) -> RenderableType:
    """What came of verifications, and why one could not be recorded."""
    rows = [
        (
            f"{one.stream}@{one.version}",
            one.calls,
            one.lost or "",
            _but(one),
            duration(one.seconds),
            Text(_STATUS[one.status][0], _STATUS[one.status][1]),
        )
        for one, _ in found
    ]
    parts: list[RenderableType] = [table(["sandbox", ">calls", ">not repeated", "equal", ">took", "result"], rows)]
    for one, lost in found:
        if one.status in (Status.DIVERGED, Status.FAILED):
            where = f" at {one.at}" if one.at else ""
            parts.append(Text(clean(f"{one.stream} {_STATUS[one.status][0]}{where}"), "bold red"))
            parts += diff_lines(one.detail)
        parts += [Text(clean(f"{one.stream}: not repeated: {because}"), "yellow") for because in one.because]
        parts += [Text(clean(lost), "red")] if lost else []
    return Group(*parts)


def _but(one: Outcome) -> str:
    told = [f"{count} but for {kind}" for kind, count in one.aside.items()]
    return ", ".join([*told, f"{len(one.files_aside)} files by nature"] if one.files_aside else told)


def _row(one: Check, stream: str) -> tuple[object, ...]:
    call = one.recorded.call
    at = str(call.at.version) if call.at.stream == stream else str(call.at)
    given = next((value for value in call.input.values() if isinstance(value, str)), "")
    return (
        at,
        call.tool,
        first_line(given, _INPUT),
        duration(one.recorded.seconds),
        duration(one.seconds),
        Text(one.words, STYLES[one.verdict]),
    )


def _verdict(found: Rebuilt) -> Text:
    target = clean(str(found.plan.target))
    if not found.plan.reproducible:
        return Text(f"{target} was rebuilt without what can't be repeated: it is not what it was.", "yellow")
    if found.verdict is Verdict.DIFFERS:
        return Text(f"{target} did not come back as it was.", "bold red")
    kinds = dict.fromkeys(kind for one in found.checks for kind in one.aside)
    kinds |= {"files": None} if found.tree.verdict is Verdict.ASIDE else {}
    but = f", but for {', '.join(kinds)}" if kinds else ""
    if found.tree.verdict is None:
        return Text(f"{target}: every result is as it was{but}; nothing tells what its work tree was.", "green")
    return Text(f"{target} came back as it was{but}.", "green")
