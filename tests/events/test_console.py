from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import console
from events.errors import LogMissing
from events.home import default_home, log_path
from events.summary import content_text, input_line, summarize


@given(st.text(st.characters(), max_size=50))
def test_cleaned_text_moves_no_cursor(text: str) -> None:
    assert console.clean(text).isprintable()
    assert console.first_line(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünï ✓ 漢字", "plain ünï ✓ 漢字"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\tb\nc", "a\\tb\\nc"),
        ("\u202eevil", "\\u202eevil"),
        ("\ud800", "\\ud800"),
        ("\x9b2J", "\\u009b2J"),
    ],
)
def test_what_is_not_printable_is_shown(text: str, shown: str) -> None:
    assert console.clean(text) == shown


def test_long_text_is_cut() -> None:
    assert console.clean("x" * 10, 4) == "xxx…"
    assert console.clean("x" * 4, 4) == "xxxx"


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("\n\n  one  \n", "one"), ("one\ntwo\nthree", "one  (+2 lines)"), ("a\tb", "a b")]
)
def test_the_first_line_that_says_something(text: str, line: str) -> None:
    assert console.first_line(text) == line


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, ""), (0.0004, "0 ms"), (0.34, "340 ms"), (12.44, "12.4 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float | None, said: str) -> None:
    assert console.duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (None, ""),
        (812, "812 B"),
        (4096, "4.0 KiB"),
        (int(2.5 * 2**20), "2.5 MiB"),
        (2**30, "1.0 GiB"),
        (2**41, "2.0 TiB"),
    ],
)
def test_sizes(count: int | None, said: str) -> None:
    assert console.size(count) == said


def test_cells_are_no_markup() -> None:
    stream = io.StringIO()
    console.console(stream).print(console.table(("a", ">b"), [("[red]x[/]", None), ("\x1b[1m", 3)]))
    assert "[red]x[/]" in stream.getvalue()
    assert "\\x1b[1m" in stream.getvalue()


def test_errors_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    error = LogMissing(path=Path("/x/log.db"))
    console.report(error, as_json=False)
    captured = capsys.readouterr()
    assert captured.err.startswith("error: There is no log at /x/log.db.\nnext: ")
    assert captured.out == ""
    console.report(error, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == {"error": str(error), "next": error.advice, "type": "LogMissing"}


def test_errors_of_other_packages_may_bring_a_next_step() -> None:
    error = ValueError("x")
    assert not console.is_ours(error)
    assert console.advice(error) == ""
    error.next_step = "do this"  # type: ignore[attr-defined]
    assert console.advice(error) == "do this"


def test_where_the_log_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOURGLASS_HOME", str(tmp_path))
    assert log_path() == tmp_path / "log.db"
    assert log_path(Path("/h")) == Path("/h/log.db")
    assert log_path(Path("/h"), Path("/l.db")) == Path("/l.db")
    monkeypatch.delenv("HOURGLASS_HOME")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_home() == Path("/var/lib/hourglass")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_home() == Path("/state/hourglass")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_home() == Path.home() / ".local/state/hourglass"


def test_summaries_take_any_shape() -> None:
    assert summarize("tool_call.started", {"tool": "glob", "input": {"pattern": "*.py"}}) == "glob *.py"
    assert summarize("tool_call.started", {}) == ""
    assert summarize("tool_call.completed", {}) == "ok in ?: "
    assert summarize("tool_call.completed", {"content": "x", "seconds": "y"}) == "ok in ?: "
    assert summarize("any.thing", ["x"]) == "['x']"
    assert input_line("custom", ["x"]) == "custom ['x']"
    assert input_line("custom", {"a": 1}) == "custom {'a': 1}"
    assert content_text([{"type": "image"}, {"type": "text", "text": "x"}, 3]) == "[image]\nx"
