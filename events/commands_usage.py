"""`hourglass usage`: what sandboxes and sessions have used, from the log alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from events.commands_entities import AsJson, Home, LogFile
from events.console import clean, duration, print_json, print_table, size
from events.errors import NothingThere
from events.home import log_path
from events.sqlite_log import SqliteLog
from events.usage import Usage, by_session, usage_of

if TYPE_CHECKING:
    from events.usage import SandboxUsage

_STREAM = "sandbox-"
_FIGURES = (">running", ">frozen", ">on disk", ">CPU time", ">most memory", ">calls", ">snapshots")


def usage(
    target: Annotated[
        str | None, typer.Argument(help="A session's or a sandbox's id, or a beginning of it; default: all.")
    ] = None,
    home: Home = None,
    log: LogFile = None,
    as_json: AsJson = False,
    sessions: Annotated[bool, typer.Option("--sessions", help="One row for each session.")] = False,
) -> None:
    """Show what each sandbox has used: time running, frozen and on disk, CPU, memory, snapshots.

    CPU and memory of a machine are counted whenever it rests or ends; `hourglass top` shows what they are now.
    """
    path = log_path(home, log)
    now_us = time.time_ns() // 1000
    with SqliteLog(path, read_only=True) as opened:
        streams = [stream for stream in opened.streams() if stream.startswith(_STREAM)]
        found = [usage_of(stream.removeprefix(_STREAM), opened.read(stream), now_us) for stream in streams]
    if target is not None:
        found = _named(found, target)
        if not found:
            raise NothingThere(path=path, what=f"sandbox or session {target}")
    total = Usage()
    for one in found:
        total = total.plus(one.usage)
    if as_json:
        print_json(
            {
                "sandboxes": [_as_json(one) for one in found],
                "sessions": [{"session_id": name, **used.as_json()} for name, used in by_session(found).items()],
                "total": total.as_json(),
            }
        )
    elif sessions:
        rows = [(clean(name or "(none)"), *_figures(used)) for name, used in by_session(found).items()]
        print_table(("session", *_FIGURES), [*rows, ("in all", *_figures(total))])
    else:
        print_table(
            ("sandbox", "phase", "session", *_FIGURES), [*map(_row, found), ("in all", "", "", *_figures(total))]
        )


def _named(found: list[SandboxUsage], target: str) -> list[SandboxUsage]:
    """Those whose id, or whose session's, is the target; else those where it begins so."""
    exact = [one for one in found if target in (one.sandbox_id, one.session_id)]
    return exact or [one for one in found if one.sandbox_id.startswith(target) or one.session_id.startswith(target)]


def _as_json(one: SandboxUsage) -> dict[str, object]:
    return {
        "sandbox_id": one.sandbox_id,
        "session_id": one.session_id,
        "phase": one.phase.value,
        **one.usage.as_json(),
    }


def _row(one: SandboxUsage) -> tuple[object, ...]:
    return (clean(one.sandbox_id), one.phase.value, clean(one.session_id), *_figures(one.usage))


def _figures(used: Usage) -> tuple[object, ...]:
    return (
        duration(used.seconds_running or None),
        duration(used.seconds_frozen or None),
        duration(used.seconds_suspended or None),
        duration(used.cpu_seconds or None),
        size(used.memory_high_bytes or None),
        f"{used.tool_calls:,}",
        f"{used.snapshots} ({size(used.snapshot_bytes)})" if used.snapshots else "",
    )
