"""Pictures of a log: the timeline of a session, sandboxes and their forks, time by tool, running against idle."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING

from events.console import duration
from replay.notebook import canvas, lanes
from replay.notebook.calls import tool_calls
from replay.notebook.canvas import bars, label, relative
from replay.notebook.extra import needed
from replay.notebook.family import family
from replay.notebook.reading import scope
from replay.notebook.tables import Tables
from replay.timeline.source import NotInLog, find

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from events.sqlite_log import SqliteLog
    from replay.notebook.calls import ToolCall
    from replay.notebook.family import Member
    from replay.notebook.lanes import Span

_WIDTH = 11.0
_ROW = 0.42
"""Inches for a row."""
_MOST_ROWS = 60
_WORDS_FROM = 0.045
"""Of the width of the axes: a bar that is longer says what it is."""
_GOOD = ("ok", "requested", "running")
_USAGE = {
    "in calls": ("in_calls", "#f28e2b"),
    "running, no call": ("", canvas.PHASE_COLOURS["running"]),
    "frozen": ("frozen", canvas.PHASE_COLOURS["frozen"]),
    "on disk": ("suspended", canvas.PHASE_COLOURS["suspended"]),
    "stopped": ("stopped", canvas.PHASE_COLOURS["stopped"]),
}


class Plots:
    """The pictures of one log. Each method draws on new axes, or on those that are given, and returns them.

    Each raises `LogError` where the log can't be read, and `NotInLog` or `Ambiguous` for a name that does not fit.
    """

    def __init__(self, log: SqliteLog) -> None:
        """Raises `ExtraMissing`."""
        needed("matplotlib")
        self._log = log

    # --- the timeline of a session ----------------------------------------------------------------------------------

    def timeline(self, session: str, *, ax: Axes | None = None) -> Axes:
        """What a session's agent, its calls and its sandboxes did when; a row for each, and more for calls at once."""
        within = scope(self._log, session)
        until = self._until(within.streams or ())
        calls = [one for one in tool_calls(self._log, within) if one.started_us is not None]
        agent, phases = lanes.agent(self._log, within), lanes.phases(self._log, within)
        agent = [one for one in agent if one.session_id == find(self._log, session).session_id]
        moments = [one.began_us for one in (*agent, *phases)] + [one.started_us or 0 for one in calls]
        if not moments:
            raise NotInLog(path=str(self._log.path), name=f"anything to draw of {session}")
        drawing = _Timeline(min(moments), max(until, *moments))
        drawing.agent(agent)
        drawing.calls(calls)
        drawing.sandboxes(phases)
        return drawing.draw(ax, session)

    def _until(self, streams: tuple[str, ...]) -> int:
        asked = ", ".join("?" * len(streams))
        [(last,)] = self._log.query(f"SELECT max(recorded_at) FROM events WHERE stream IN ({asked})", streams)
        return int(last or 0)

    # --- sandboxes and their forks ----------------------------------------------------------------------------------

    def tree(self, session: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Which sandbox came from which, and when: forks and branches leave their parent's line at their version."""
        within = scope(self._log, session)
        members = family(self._log, within)[:_MOST_ROWS]
        if not members:
            raise NotInLog(path=str(self._log.path), name="a sandbox")
        began = min(one.began_us for one in members)
        axes = canvas.axes(ax, _WIDTH, 1.3 + _ROW * len(members))
        rows = {one.sandbox_id: number for number, one in enumerate(members)}
        for one in members:
            _branch(axes, one, rows, began)
        axes.set_yticks(range(len(members)), [label(one.sandbox_id) for one in members])
        axes.set_ylim(len(members) - 0.4, -0.7)
        axes.margins(x=0.08)
        canvas.tidy(axes)
        canvas.seconds_axis(axes, f"since {_clock(began)}")
        axes.set_title("sandboxes: o snapshot, | call, x ended", loc="left", fontsize="medium")
        return axes

    # --- where the time goes ----------------------------------------------------------------------------------------

    def tools(self, session: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Time by tool, all calls together, the longest first."""
        took: dict[str, list[float]] = defaultdict(list)
        failed: Counter[str] = Counter()
        for one in tool_calls(self._log, scope(self._log, session)):
            if one.duration_us is not None:
                took[one.tool or "?"].append(one.duration_us / 1e6)
                failed[one.tool or "?"] += one.status not in _GOOD
        names = sorted(took, key=lambda name: -sum(took[name]))[:_MOST_ROWS]
        axes = canvas.axes(ax, _WIDTH * 0.75, 1.0 + _ROW * max(len(names), 1))
        sums = [sum(took[name]) for name in names]
        axes.barh(range(len(names)), sums, height=0.62, color=[canvas.tool_colour(name) for name in names])
        for row, (name, total) in enumerate(zip(names, sums, strict=True)):
            wrong = f", {failed[name]:,} failed" if failed[name] else ""
            calls = f"{len(took[name]):,} call{'s' if len(took[name]) > 1 else ''}{wrong}"
            words = f"{duration(total)}  ({calls}; median {duration(median(took[name]))})"
            axes.annotate(words, (total, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize="small")
        axes.set_yticks(range(len(names)), [label(name) for name in names])
        axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
        # Room for the words.
        axes.set_xlim(0, max(sums, default=1.0) * 1.6)
        canvas.tidy(axes)
        canvas.seconds_axis(axes, "in tools")
        return axes

    def usage(self, session: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Running against idle: how long each sandbox ran calls, waited for one, was frozen, or lay on disk."""
        rows = Tables(self._log).usage(session=session).to_pylist()[:_MOST_ROWS]
        axes = canvas.axes(ax, _WIDTH, 1.4 + _ROW * max(len(rows), 1))
        left = [0.0] * len(rows)
        seen = []
        for name, (column, colour) in _USAGE.items():
            spans = [one[column] if column else one["running"] - one["in_calls"] for one in rows]
            widths = [max(one.total_seconds(), 0.0) for one in spans]
            if any(widths):
                axes.barh(range(len(rows)), widths, left=left, height=0.62, color=colour)
                seen.append((name, colour))
            left = [one + more for one, more in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(rows)), [label(one["sandbox_id"]) for one in rows])
        axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        canvas.tidy(axes)
        canvas.seconds_axis(axes, "")
        canvas.legend(axes, seen)
        return axes


class _Timeline:
    """Rows from the top: agent, calls, sandboxes."""

    def __init__(self, began_us: int, until_us: int) -> None:
        self._began, self._until = began_us, until_us
        self._rows: list[str] = []
        self._bars: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
        self._words: list[tuple[int, float, float, str]] = []
        self._failed: list[tuple[int, float, float]] = []
        self._colours: dict[str, str] = {}

    def agent(self, spans: list[Span]) -> None:
        self._rows.append("agent")
        for one in spans:
            self._bar(0, one.what, canvas.AGENT_COLOURS[one.what], one.began_us, one.ended_us)

    def calls(self, calls: list[ToolCall]) -> None:
        spans = sorted((one.started_us or 0, one.ended_us or self._until, number) for number, one in enumerate(calls))
        places = lanes.packed((began, ended) for began, ended, _ in spans)
        places = [min(one, _MOST_ROWS) for one in places]
        first = len(self._rows)
        self._rows += [f"calls{f' ({row + 1})' if row else ''}" for row in range(max(places, default=0) + 1)]
        for (_, _, number), place in zip(spans, places, strict=True):
            one = calls[number]
            known = one.tool in canvas.TOOL_COLOURS
            name = one.tool or "?"
            self._bar(first + place, name, canvas.tool_colour(one.tool), one.started_us or 0, one.ended_us, known=known)
            if one.status not in _GOOD:
                began, ended = self._span(one.started_us or 0, one.ended_us)
                self._failed.append((first + place, began, ended))

    def sandboxes(self, spans: list[Span]) -> None:
        names = list(dict.fromkeys(one.lane for one in sorted(spans, key=lambda one: one.began_us)))[:_MOST_ROWS]
        rows = {name: len(self._rows) + number for number, name in enumerate(names)}
        self._rows += names
        for one in spans:
            if one.lane in rows:
                self._bar(rows[one.lane], one.what, canvas.PHASE_COLOURS[one.what], one.began_us, one.ended_us)

    def _bar(self, row: int, name: str, colour: str, began: int, ended: int | None, *, known: bool = True) -> None:
        span = self._span(began, ended)
        self._bars[row, colour].append(span)
        self._colours.setdefault(name if known else "other tools", colour)
        self._words.append((row, *span, name))

    def _span(self, began: int, ended: int | None) -> tuple[float, float]:
        return relative(began, self._began), relative(ended if ended is not None else self._until, self._began)

    def draw(self, given: Axes | None, title: str) -> Axes:
        axes = canvas.axes(given, _WIDTH, 1.5 + _ROW * len(self._rows))
        for (row, colour), spans in self._bars.items():
            bars(axes, row, 0.72, spans, colour)
        for row, began, ended in self._failed:
            bars(axes, row + 0.42, 0.1, [(began, ended)], canvas.FAILED_COLOUR)
        width = max(relative(self._until, self._began), 1e-3)
        axes.set_xlim(-0.01 * width, 1.01 * width)
        for row, began, ended, name in self._words:
            if ended - began > _WORDS_FROM * width + 0.008 * len(name) * width:
                axes.text(
                    (began + ended) / 2, row, label(name), ha="center", va="center", fontsize="x-small", clip_on=True
                )
        axes.set_yticks(range(len(self._rows)), [label(one) for one in self._rows])
        axes.set_ylim(len(self._rows) - 0.4, -0.6)
        canvas.tidy(axes)
        canvas.seconds_axis(axes, f"since {_clock(self._began)}")
        axes.set_title(label(title), loc="left", fontsize="medium")
        failed = [("failed", canvas.FAILED_COLOUR)] if self._failed else []
        canvas.legend(axes, [*self._colours.items(), *failed])
        return axes


def _branch(axes: Axes, one: Member, rows: dict[str, int], began: int) -> None:
    row, from_ = rows[one.sandbox_id], relative(one.began_us, began)
    colour = canvas.PHASE_COLOURS["suspended"] if one.ended_us is None else "#9a9a9a"
    axes.plot([from_, relative(one.last_us, began)], [row, row], color=colour, linewidth=2.2, zorder=2)
    if one.parent in rows:
        above = rows[one.parent]
        axes.plot([from_, from_], [above, row], color=colour, linewidth=1.4, zorder=1)
        words = f"{one.how} at {one.parent_version:,}"
        axes.annotate(words, (from_, row), xytext=(5, 5), textcoords="offset points", fontsize="x-small")
    axes.plot(
        [relative(at, began) for at in one.calls_us], [row] * len(one.calls_us), "|", color=colour, ms=7, zorder=3
    )
    snapshots = [relative(at, began) for at in one.snapshots_us]
    axes.plot(snapshots, [row] * len(snapshots), "o", color=colour, ms=5, mfc="white", zorder=4)
    if one.ended_us is not None:
        axes.plot([relative(one.ended_us, began)], [row], "x", color=canvas.FAILED_COLOUR, ms=7, mew=2, zorder=5)
    words = f"{one.version:,} versions{', kept' if one.kept else ''}"
    axes.annotate(
        words, (relative(one.last_us, began), row), xytext=(8, -3), textcoords="offset points", fontsize="x-small"
    )


def _clock(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
