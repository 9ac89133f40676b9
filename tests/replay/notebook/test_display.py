"""What Jupyter shows: values of replay as HTML, in which a guest's text means nothing."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from events.snapshots import SnapshotStore
from events.sqlite_log import SqliteLog
from replay import History
from replay.history.errors import FileRefused, NoSuchFile
from replay.notebook.display import html, teach
from tests.replay.history.boxes import A
from tests.replay.history.worlds import EVIL, FIRST, SECOND, world
from tests.replay.notebook.logs import written
from tests.replay.timeline_stories import SESSION, call, plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;"


class Tags(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(f"{tag}.{name}" for name, _ in attrs)}


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    made = InteractiveShell.instance()
    yield made
    InteractiveShell.clear_instance()
    pd.reset_option("display.html.use_mathjax")


def shown(shell: InteractiveShell, value: object) -> str:
    formatter: Any = shell.display_formatter
    page: str = formatter.format(value)[0]["text/html"]
    return page


def test_plans_diffs_states_and_timelines_show_as_on_a_terminal(
    home: Path, tmp_path: Path, shell: InteractiveShell
) -> None:
    with SqliteLog(home / "log.db", durability="normal") as log:
        last = world(log, SnapshotStore.open(str(home / "snapshots")), tmp_path)
    with History(home) as history:
        plan = history.plan(f"{A}@{last}")
        assert "will be run again" in shown(shell, plan)
        diff = history.diff(f"{A}@{FIRST}", f"{A}@{SECOND}")
        page = shown(shell, diff)
        assert "+changed" in page
        assert Tags(page).found <= {"pre", "pre.style", "span", "span.style"}
        assert "running" in shown(shell, history.state(A, version=3))
        assert "2 snapshots" in shown(shell, history.timeline(A)) or "turn-1" in shown(shell, history.timeline(A))
        listed = history.ls(f"{A}@{FIRST}:/workspace")
        assert set(listed["kind"]) == {"file", "link", "pipe"}
        assert listed.set_index("path").loc["/workspace/same.txt"]["size"] == 9
        page = shown(shell, listed)
        assert EVIL not in page
        assert history.cat(f"{A}@{SECOND}:/workspace/new/file.txt") == b"hello\n"
        with pytest.raises(FileRefused):
            history.cat(f"{A}@{FIRST}:/workspace")
        with pytest.raises(NoSuchFile):
            history.cat(f"{A}@{FIRST}:/workspace/escape/../../../../etc/passwd")


def test_what_a_guest_wrote_is_no_html(home: Path, shell: InteractiveShell) -> None:
    maths = r"$\href{javascript:alert(1)}{click}$"
    steps = [
        *plain()[:-2],
        *call(30, SCRIPT, SCRIPT, {SCRIPT: SCRIPT}, SCRIPT),
        *call(40, "maths", "bash", {"command": maths}, maths),
    ]
    written(home / f"{SCRIPT.replace('/', '')}.db", steps)
    with History(home / f"{SCRIPT.replace('/', '')}.db") as history:
        for value in (
            history,
            history.tool_calls(),
            history.events(),
            history.timeline(SESSION),
            history.state(SESSION),
            history.sessions(),
        ):
            page = shown(shell, value)
            found = Tags(page).found
            assert "script" not in found
            assert "img" not in found
            if isinstance(value, pd.DataFrame):
                # MathJax lets these be.
                assert "mathjax_ignore" in page


def test_markup_of_rich_and_links_mean_nothing() -> None:
    from rich.text import Text

    assert Tags(html(Text("[link=javascript:alert(1)]x[/link]"))).found == {"pre", "pre.style"}
    teach()  # without IPython: nothing to do, and nothing fails
