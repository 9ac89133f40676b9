"""What `hourglass diff` prints. All of it may be a guest's: shown, never obeyed."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from events.console import clean, first_line, size, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from replay.history.comparing import CallResult, Comparison, Files
    from replay.history.packages import Packages
    from replay.history.planned import Version
    from replay.history.tree_diff import FileChange

_MARKS = {"added": ("A", "green"), "removed": ("D", "red"), "changed": ("M", "yellow")}
_STYLES = {"+": "green", "-": "red", "@": "cyan"}
_MOST_HUNK_LINES = 60
_MOST_LINE = 400
_MOST_ROWS = 60
_VALUE = 80


def drawn(found: Comparison, *, every: bool) -> RenderableType:
    """Both versions' files, calls and states; without `every`, long diffs of a file are cut."""
    parts: list[RenderableType] = [Text(clean(f"{found.a} and {found.b}"), "bold")]
    if found.common is None:
        parts.append(Text("They have no version in common.", "yellow"))
    elif found.common not in (found.a, found.b):
        parts.append(Text(clean(f"They part after {found.common}."), "dim"))
    if found.files is not None:
        parts += _files(found.files, every=every)
        parts += _packages(found.files.packages, every=every)
    for side, calls in ((found.a, found.only_a), (found.b, found.only_b)):
        parts += _calls(side, calls)
    if found.state:
        rows = [(name.replace("_", " "), _short(a), _short(b)) for name, (a, b) in found.state.items()]
        parts += [Text(), table(["state", clean(found.a), clean(found.b)], rows)]
    return Group(*parts)


def _files(files: Files, *, every: bool) -> Iterator[RenderableType]:
    for tree in (files.a, files.b):
        if tree.of != tree.asked:
            may = f"; {tree.changed_by} may have changed them since" if tree.changed_by else ""
            yield Text(clean(f"files of {tree.asked}: those of {tree.of}, the nearest snapshot{may}"), "dim")
    counts = {kind: sum(one.change == kind for one in files.changes) for kind in _MARKS}
    told = ", ".join(f"{number:,} {kind}" for kind, number in counts.items() if number)
    yield Text()
    yield Text(f"files: {told or 'no difference'}", "bold")
    for one in files.changes:
        yield from _file(one, every=every)


def _file(one: FileChange, *, every: bool) -> Iterator[Text]:
    mark, style = _MARKS[one.change]
    yield Text(f"{mark} ", style).append(clean(one.path), "bold").append(clean(f"  {_how(one)}"), "dim")
    lines = one.diff or ()
    for line in lines if every else islice(lines, _MOST_HUNK_LINES):
        yield Text(f"  {clean(line.expandtabs(), _MOST_LINE)}", _STYLES.get(line[:1], "dim"))
    if not every and len(lines) > _MOST_HUNK_LINES:
        yield Text(f"  … {len(lines) - _MOST_HUNK_LINES:,} more lines; --all shows them", "dim")


def _packages(found: Packages, *, every: bool) -> Iterator[RenderableType]:
    rows = [
        (Text(_MARKS[one.change][0], _MARKS[one.change][1]), one.name, one.before, one.after, one.manager, one.where)
        for one in found.changes
    ]
    if rows:
        yield Text()
        yield table(["", "package", "before", "after", "of", "where"], rows if every else rows[:_MOST_ROWS])
    if not every and len(rows) > _MOST_ROWS:
        yield Text(f"  … {len(rows) - _MOST_ROWS:,} more; --all shows them", "dim")
    if found.left_out:
        yield Text(f"{found.left_out:,} files of package managers could not be read, and are left out", "yellow")


def _how(one: FileChange) -> str:
    a, b = one.before, one.after
    if a is None or b is None:
        side = a or b
        assert side is not None
        return " ".join([side.mode, *([size(side.size)] if side.size is not None else []), _arrow(side.target)])
    parts = []
    if "kind" in one.what:
        parts.append(f"{a.kind} to {b.kind}")
    if "content" in one.what and one.diff is None:
        parts.append(f"content, {size(a.size)} to {size(b.size)}")
    if "mode" in one.what:
        parts.append(f"{a.mode} to {b.mode}")
    if "uid" in one.what or "gid" in one.what:
        parts.append(f"{a.uid}:{a.gid} to {b.uid}:{b.gid}")
    if "target" in one.what:
        parts.append(f"-> {a.target} to -> {b.target}")
    return ", ".join([*parts, *(name for name in ("device", "attributes") if name in one.what)])


def _arrow(target: str) -> str:
    return f"-> {target}" if target else ""


def _calls(side: Version, calls: Sequence[CallResult]) -> Iterator[RenderableType]:
    if not calls:
        return
    rows = [
        (
            one.at.version if one.at.stream == side.stream else str(one.at),
            one.tool,
            first_line(_asked(one), 60),
            Text("error" if one.is_error and one.status == "completed" else one.status, "red" if one.is_error else ""),
            first_line(_said(one), 80),
        )
        for one in calls
    ]
    yield Text()
    yield table([">version", "tool", "input", "", "result"], rows, clean(f"calls of {side} alone"))


def _asked(one: CallResult) -> str:
    named = (one.input.get(name) for name in ("command", "file_path", "path", "pattern"))
    return next((value for value in named if isinstance(value, str)), str(one.input))


def _said(one: CallResult) -> str:
    return "\n".join(str(block.get("text", block.get("type", ""))) for block in one.content)


def _short(value: Any) -> str:
    return clean("" if value is None else str(value), _VALUE)
