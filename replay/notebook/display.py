"""How values of `replay` show in Jupyter: as on a terminal, in colour. Everything that a guest wrote is escaped.

IPython is told by the types' names, so that what computes them knows nothing of it.
"""

from __future__ import annotations

import sys
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from rich.console import Console

from events.console import clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from events.sqlite_log import SqliteLog

_WIDTH = 110
_PAGE = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:normal;'
    "font-family:Menlo,'DejaVu Sans Mono',Consolas,monospace\">{code}</pre>"
)
_COUNTS = """
SELECT count(*), count(DISTINCT CASE WHEN stream LIKE 'session-%' THEN stream END),
       count(DISTINCT CASE WHEN stream LIKE 'sandbox-%' THEN stream END),
       strftime('%Y-%m-%d %H:%M:%S', min(recorded_at) / 1e6, 'unixepoch'),
       strftime('%Y-%m-%d %H:%M:%S', max(recorded_at) / 1e6, 'unixepoch')
FROM events
"""


def html(shown: RenderableType) -> str:
    """What a terminal would show, as HTML in which nothing but colours has a meaning."""
    # Else rich would show it by itself, too.
    console = Console(
        record=True,
        file=StringIO(),
        width=_WIDTH,
        highlight=False,
        emoji=False,
        color_system="truecolor",
        force_jupyter=False,
    )
    console.print(shown)
    return console.export_html(inline_styles=True, code_format=_PAGE)


def summary(log: SqliteLog) -> str:
    """A log in one line. Raises `LogError`."""
    [(events, sessions, sandboxes, first, last)] = log.query(_COUNTS)
    span = f", {first} to {last} UTC" if events else ""
    told = f"{events:,} events of {sessions:,} sessions and {sandboxes:,} sandboxes{span}"
    return f"<p><b>{escape(clean(log.path))}</b><br>{escape(told)}</p>"


def teach() -> None:
    """Tell the IPython that runs this, if one does, how to show plans, diffs and timelines; again is harmless."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return
    formatter = shell.display_formatter.formatters["text/html"]
    for module, name, show in _SHOWN:
        formatter.for_type_by_name(module, name, show)
    pandas = sys.modules.get("pandas")
    if pandas is None:
        from replay.notebook.extra import ExtraMissing, needed

        try:
            pandas = needed("pandas")
        except ExtraMissing:
            return  # whoever asks for a DataFrame is told
    # Cells hold what guests wrote, and MathJax would typeset what stands between dollars, links included.
    pandas.set_option("display.html.use_mathjax", False)


def _plan(value: Any) -> str:
    from replay.history.show_plan import drawn

    return html(drawn(value, every=False))


def _comparison(value: Any) -> str:
    from replay.history.show_diff import drawn

    return html(drawn(value, every=False))


def _timeline(value: Any) -> str:
    from replay.timeline.view import View

    return html(View(_WIDTH).whole(value))


def _state(value: Any) -> str:
    from rich.console import Group

    from replay.history.show_state import drawn

    return html(Group(*(one for one in drawn(value) if one is not None)))


_SHOWN: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("replay.history.planned", "Plan", _plan),
    ("replay.history.comparing", "Comparison", _comparison),
    ("replay.timeline.model", "Timeline", _timeline),
    ("events.sandbox_state", "SandboxState", _state),
    ("events.session_state", "SessionState", _state),
)
