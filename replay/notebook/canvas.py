"""What all pictures share: colours, axes of time, bars, and text that is safe to draw.

A guest chooses names of files and an app those of tools; matplotlib would read what stands between two dollars as
mathematics, and fail or draw for ever. So text goes through `label`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from events.console import clean
from replay.notebook.extra import needed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes

PHASE_COLOURS = {
    "created": "#d9d9d9",
    "running": "#59a14f",
    "frozen": "#9ecae1",
    "suspended": "#4e79a7",
    "stopped": "#bab0ac",
    "crashed": "#e15759",
}
AGENT_COLOURS = {"attaching": "#d7b5a6", "thinking": "#b07aa1"}
TOOL_COLOURS = {
    "bash": "#f28e2b",
    "read": "#76b7b2",
    "write": "#edc948",
    "edit": "#b6992d",
    "glob": "#9c755f",
    "grep": "#499894",
    "try_in_parallel": "#d37295",
    "keep": "#a0546f",
}
OTHER_COLOUR = "#79706e"
FAILED_COLOUR = "#c81e1e"
_LONGEST_LABEL = 40
_MOST_TICKS = 8
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Seconds between two ticks."""
_MICROSECONDS = 1e6


def label(text: object, limit: int = _LONGEST_LABEL) -> str:
    """Text that any font has and that is drawn as it is; what is longer ends in `...`."""
    shown = clean(text).encode("ascii", "backslashreplace").decode()
    shown = shown if len(shown) <= limit else shown[: limit - 3] + "..."
    # A legend leaves out what begins with an underscore.
    return (f" {shown}" if shown.startswith("_") else shown).replace("$", r"\$")


def axes(given: Axes | None, width: float, height: float) -> Axes:
    """The axes to draw on: those that are given, or those of a new figure of a size in inches.

    Raises `ExtraMissing`.
    """
    if given is not None:
        return given
    _, made = needed("matplotlib.pyplot").subplots(figsize=(width, height), layout="constrained")
    return made  # type: ignore[no-any-return]


def bars(ax: Axes, y: float, height: float, spans: Iterable[tuple[float, float]], colour: str, **more: Any) -> None:
    """Bars in a row, from their beginnings to their ends; however short, each can be seen."""
    ranges = [(began, ended - began) for began, ended in spans]
    if ranges:
        # One collection for a colour: a hundred thousand calls are drawn in a second.
        ax.broken_barh(ranges, (y - height / 2, height), facecolors=colour, edgecolors=colour, linewidth=0.6, **more)


def legend(ax: Axes, entries: Sequence[tuple[str, str]], columns: int = 7) -> None:
    """What the colours mean, beneath the axes."""
    patch = needed("matplotlib.patches").Patch
    handles = [patch(facecolor=colour, label=label(name)) for name, colour in entries]
    if not handles:
        return
    figure: Any = ax.figure
    more = {"handles": handles, "ncols": min(columns, len(handles)), "frameon": False, "fontsize": "small"}
    if figure.get_layout_engine() is not None:
        figure.legend(loc="outside lower center", **more)
    else:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), **more)


def tidy(ax: Axes, *, grid: str = "x") -> None:
    """No frame, a light grid."""
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis=grid, color="#e6e6e6", linewidth=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)


def seconds_axis(ax: Axes, name: str) -> None:
    """Ticks of the x axis as people say durations; its unit is seconds."""
    ticker = needed("matplotlib.ticker")
    low, high = ax.get_xlim()
    step = next((one for one in _STEPS if (high - low) / one <= _MOST_TICKS), 0)
    fits = step > 1 or high - low > _MOST_TICKS / 2
    ax.xaxis.set_major_locator(ticker.MultipleLocator(step) if step and fits else ticker.MaxNLocator(_MOST_TICKS))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: said(value, high - low)))
    ax.set_xlabel(name)


def said(seconds: float, span: float) -> str:
    """A tick: with a unit that fits an axis of `span` seconds."""
    if seconds == 0:
        return "0"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if span >= 3 * length:
            return f"{seconds / length:.4g} {unit}"
    return f"{seconds:.4g} s" if span >= 0.5 else f"{seconds * 1000:.4g} ms"


def relative(us: int, began_us: int) -> float:
    """Seconds since the beginning."""
    return (us - began_us) / _MICROSECONDS


def tool_colour(tool: str | None) -> str:
    """The colour of a tool; those that nobody here knows have one together."""
    return TOOL_COLOURS.get(tool or "", OTHER_COLOUR)
