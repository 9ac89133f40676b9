"""Pictures: what is drawn where, and that hostile text is drawn as text."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pytest

from events import types
from replay import History
from replay.notebook.canvas import FAILED_COLOUR, PHASE_COLOURS, TOOL_COLOURS, label, said
from replay.notebook.lanes import packed
from replay.timeline.source import NotInLog
from tests.replay.notebook.logs import written
from tests.replay.timeline_stories import (
    FORK,
    HOSTILE,
    SANDBOX,
    SESSION,
    STREAM,
    call,
    hostile,
    paused,
    plain,
    troubled,
)

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

MATHS = r"$\frac{1}{$ ^_{} $x$ \$ $$"


def rows(ax: Axes) -> list[str]:
    return [one.get_text() for one in ax.get_yticklabels()]


def bars(ax: Axes) -> dict[tuple[str, str], int]:
    """How many bars there are, by row and colour."""
    from matplotlib.colors import to_hex

    found: dict[tuple[str, str], int] = {}
    for collection in ax.collections:
        path: Any
        colours: Any = collection.get_facecolor()
        for path in collection.get_paths():
            middle = path.vertices[:, 1].mean()
            key = (rows(ax)[round(float(middle) - 0.2)], to_hex(colours[0]))
            found[key] = found.get(key, 0) + 1
    return found


def drawn(ax: Axes) -> bytes:
    out = BytesIO()
    figure: Any = ax.figure
    figure.savefig(out, format="png", dpi=60)
    return out.getvalue()


def test_a_timeline_has_the_agent_the_calls_and_each_sandbox(home: Path) -> None:
    written(home / "log.db", paused())
    with History(home) as history:
        ax = history.plot.timeline("sesn_01")
        assert rows(ax) == ["agent", "calls", SANDBOX, FORK]
        found = bars(ax)
        assert found["calls", TOOL_COLOURS["bash"]] == 4
        assert found[SANDBOX, PHASE_COLOURS["frozen"]] == 5
        assert found[SANDBOX, PHASE_COLOURS["suspended"]] == 1
        assert found[FORK, PHASE_COLOURS["running"]] == 1
        assert FAILED_COLOUR not in {colour for _, colour in found}
        low, high = ax.get_xlim()
        assert (low, high) == pytest.approx((-0.8, 80.8))
        assert drawn(ax)


def test_calls_at_once_have_rows_of_their_own_and_failures_are_marked(home: Path) -> None:
    steps = [*troubled(), *call(40, "a", "bash", {}, "", seconds=5), *call(42, "b", "read", {}, "", seconds=5)]
    written(home / "log.db", sorted(steps, key=lambda one: one[0]))
    with History(home) as history:
        ax = history.plot.timeline(SESSION)
        assert rows(ax)[:3] == ["agent", "calls", "calls (2)"]
        assert bars(ax)["calls", FAILED_COLOUR] == 1
        assert drawn(ax)
    assert packed([(0, 5), (1, 2), (2, 3), (5, 6)]) == [0, 1, 1, 0]


def test_a_tree_draws_forks_from_their_parents(home: Path) -> None:
    written(home / "log.db", paused())
    with History(home) as history:
        ax = history.plot.tree()
        assert rows(ax) == [SANDBOX, FORK]
        words = [one.get_text() for one in ax.texts]
        assert "forked at 24" in words
        assert "8 versions, kept" in words
        lines: list[Any] = list(ax.lines)
        verticals = [line for line in lines if list(line.get_ydata()) == [0, 1]]
        assert len(verticals) == 1
        assert drawn(ax)


def test_time_by_tool_and_running_against_idle(home: Path) -> None:
    written(home / "log.db", plain())
    with History(home) as history:
        ax = history.plot.tools()
        assert rows(ax)[0] == "bash"
        assert "12.7 s  (3 calls, 1 failed; median 200 ms)" in [one.get_text() for one in ax.texts]
        assert drawn(ax)
        ax = history.plot.usage("sesn_01")
        assert rows(ax) == [SANDBOX]
        running = sum(patch.get_width() for patch in ax.patches)  # type: ignore[attr-defined]
        assert running == pytest.approx(81.0 - 0.41)
        assert drawn(ax)


def test_a_picture_is_drawn_on_axes_that_are_given(home: Path) -> None:
    written(home / "log.db", paused())
    figure, given = plt.subplots(2, 2)
    with History(home) as history:
        assert history.plot.timeline(SESSION, ax=given[0][0]) is given[0][0]
        assert history.plot.tree(SESSION, ax=given[0][1]) is given[0][1]
        assert history.plot.tools(ax=given[1][0]) is given[1][0]
        assert history.plot.usage(ax=given[1][1]) is given[1][1]
    assert plt.get_fignums() == [figure.number]
    assert drawn(given[0][0])


def test_hostile_text_is_drawn_as_text(home: Path) -> None:
    steps = hostile()
    for number, name in enumerate((MATHS, "_hidden", "日本語", "<script>")):
        steps += call(10 + number, f"m{number}", name, {}, "", seconds=1)
    steps.append((20.0, f"sandbox-{MATHS}", types.SandboxFileCopied(path=MATHS, direction="out", bytes=1)))
    written(home / "log.db", steps)
    with History(home) as history:
        for ax in (history.plot.timeline(SESSION), history.plot.tree(), history.plot.tools(), history.plot.usage()):
            # A warning, for a letter that the font lacks or a label that is left out, would be an error here.
            assert drawn(ax)
        assert label(HOSTILE, 500).isascii()
        assert rows(history.plot.tools())[-1]


def test_nothing_to_draw_is_said(home: Path) -> None:
    released = types.SessionIdled(stop_reason="end_turn")
    written(home / "log.db", [(0.0, STREAM, released)])
    with History(home) as history:
        with pytest.raises(NotInLog, match="anything to draw"):
            history.plot.timeline(SESSION)
        with pytest.raises(NotInLog):
            history.plot.tree()
        assert drawn(history.plot.tools())
        assert drawn(history.plot.usage())


def test_ticks_are_said_as_people_say_them() -> None:
    assert said(0, 100) == "0"
    assert said(30, 100) == "30 s"
    assert said(90, 600) == "1.5 min"
    assert said(7200, 20000) == "2 h"
    assert said(172800, 500_000) == "2 d"
    assert said(0.02, 0.1) == "20 ms"
