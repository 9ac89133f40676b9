"""What `hourglass bisect` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from events.console import clean, duration, first_line, table
from replay.rebuild.show import diff_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from replay.bisect.bisecting import Bisected
    from replay.bisect.changes import Change
    from replay.bisect.probing import Probe

_STYLES = {"good": "green", "bad": "red", "skipped": "yellow", "ended": "bold red"}
_SAID = 60
_INPUT = 2000


def drawn(found: Bisected) -> RenderableType:
    """What came of a bisect: every probe, then what is to blame."""
    stream = found.begun.stream
    parts: list[RenderableType] = [_probes(found.probes)]
    parts += [Text(clean(line), "yellow") for line in _unsteady(found)]
    parts.append(Text(clean(f"good at {stream}@{found.good}, bad at {stream}@{found.bad}")))
    if found.exact:
        parts += _blamed(found.blamed[0], stream)
    else:
        why = f"{len(found.skipped)} versions in between can't be told" if found.skipped else "nothing tells them apart"
        parts.append(Text(f"{len(found.blamed)} changes may be to blame, since {why}:", "bold yellow"))
        parts += [line for one in found.blamed for line in _blamed(one, stream, style="yellow")]
    if found.stream:
        parts.append(Text(clean(f"`hourglass log show {found.stream}` has the evidence"), "dim"))
    return Group(*parts)


def _probes(probes: Sequence[Probe]) -> RenderableType:
    rows = []
    for one in probes:
        told = one.told
        said = told.because or next((line for line in reversed(told.output.splitlines()) if line.strip()), "")
        code = "" if told.exit_code is None else told.exit_code
        verdict = Text(told.verdict, _STYLES[told.verdict])
        took = "recorded" if one.recorded else duration(told.seconds)
        rows.append((told.version, verdict, code, took, first_line(said, _SAID)))
    return table([">version", "verdict", ">exit", ">took", "said"], rows)


def _blamed(one: Change, stream: str, style: str = "bold red") -> list[RenderableType]:
    if one.call is None:
        what = one.gap.what if one.gap is not None else ""
        return [Text(clean(f"version {one.version}: {what}"), style)]
    call = one.call
    head = f"version {one.version}: {call.tool} ({call.tool_use_id}), begun at {stream}@{one.begun}"
    lines: list[RenderableType] = [Text(clean(head), style)]
    lines += [Text(clean(f"  {call.because}"), "yellow")] if call.because else []
    edited = one.edited
    hidden = {"old_string", "new_string", "content"} if edited else set()
    for name, value in call.input.items():
        if name not in hidden:
            given = str(value)
            more = f" … {len(given) - _INPUT:,} more characters" if len(given) > _INPUT else ""
            told = "\n      ".join((given[:_INPUT] + more).splitlines())
            lines.append(Text(f"  {clean(name)}: " + "\n".join(clean(line) for line in told.split("\n"))))
    return [*lines, *diff_lines(edited)]


def _unsteady(found: Bisected) -> list[str]:
    if not found.good_after_bad:
        return []
    some = ", ".join(map(str, found.good_after_bad))
    return [
        f"It is good again after {found.bad}, at {some}: it breaks more than once, and this is the first place seen."
    ]
