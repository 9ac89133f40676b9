"""The timeline: golden histories in and text out, the hostile one unobeyed, and the same from a log file."""

from __future__ import annotations

import io
import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from events import types
from events.cli import build
from events.codec import CODEC
from events.envelope import new_events
from events.errors import LogMissing
from events.sqlite_log import SqliteLog
from replay.timeline import Ambiguous, Builder, NotInLog, Status, Subject, find, plain, read
from replay.timeline.build import CallEvent
from replay.timeline.describe import _SAYERS
from replay.timeline.follow import follow, follow_json
from replay.timeline.live import spool, tail
from replay.timeline.model import Call
from replay.timeline.pauses import folded
from replay.timeline.source import Source
from replay.timeline.text import excerpt, line
from replay.timeline.view import View
from tests.replay import timeline_stories as stories

if TYPE_CHECKING:
    from replay.timeline import Timeline

GOLDEN = Path(__file__).parent / "timelines"


def built(steps: list[stories.Step]) -> Timeline:
    builder = Builder(stories.SESSION)
    for entry in stories.entries(steps):
        builder.add(entry)
    return builder.timeline


def drawn(timeline: Timeline, width: int = 100, lines: int = 6) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, emoji=False).print(View(width, lines).whole(timeline))
    return "\n".join(one.rstrip() for one in out.getvalue().splitlines()) + "\n"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.delenv("HOURGLASS_HOME", raising=False)
    return CliRunner()


# Drawn


@pytest.mark.parametrize("story", ["plain", "troubled", "paused", "hostile"])
def test_a_golden_history_is_drawn_as_it_was(story: str) -> None:
    assert drawn(built(getattr(stories, story)())) == (GOLDEN / f"{story}.txt").read_text()


@pytest.mark.parametrize("width", [20, 40, 100, 300])
@pytest.mark.parametrize("lines", [0, 1, 6, 1000])
def test_hostile_text_is_shown_and_never_obeyed(width: int, lines: int) -> None:
    shown = drawn(built(stories.hostile()), width, lines)
    assert all(char.isprintable() for char in shown.replace("\n", ""))
    assert max(cell_len(one) for one in shown.splitlines()) <= width
    assert len(shown) < 100_000


def test_hostile_text_is_plain_ascii_in_json() -> None:
    text = plain.dumps(plain.timeline(built(stories.hostile())))
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["claims"][0]["items"][2]["input"]["command"] == stories.HOSTILE


def test_markup_in_output_is_not_markup() -> None:
    steps = stories.call(0, "t", "bash", {"command": "[red]echo[/red]"}, "[link=file:///]x[/link] [/] :smile:")
    shown = drawn(built(steps))
    assert "[red]echo[/red]" in shown
    assert "[link=file:///]x[/link] [/] :smile:" in shown


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(), max_size=300), st.integers(2, 60), st.integers(0, 9))
def test_any_text_fits_its_place(text: str, width: int, lines: int) -> None:
    found = [line(text, width), *excerpt(text, lines, width)]
    assert all(one.isprintable() for one in found)
    assert all(cell_len(one) <= width or one.startswith("…") for one in found)
    assert len(found) <= lines + 2


# Built


def test_totals_count_every_call_once() -> None:
    totals = built(stories.troubled()).totals
    assert (totals.calls, totals.ok, totals.interrupted, totals.denied, totals.unposted) == (4, 2, 1, 1, 1)
    assert (totals.claims, totals.crashes, totals.posted) == (2, 1, 1)
    assert totals.held_seconds == pytest.approx(18.0)


def test_a_call_that_waited_for_the_next_claim_is_listed_where_it_ran() -> None:
    first, second = built(stories.troubled()).claims
    assert [call.tool_use_id for call in first.calls] == ["t1", "t2", "t3"]
    assert [call.tool_use_id for call in second.calls] == ["t4"]


def test_a_claim_that_was_never_given_back_is_said_to_be_abandoned() -> None:
    timeline = built([(0.0, stories.STREAM, stories.claimed(1)), (9.0, stories.STREAM, stories.claimed(2))])
    assert [claim.abandoned for claim in timeline.claims] == [True, False]
    assert "never given back" in drawn(timeline)


def test_every_event_type_has_words_of_its_own() -> None:
    said = {str(model.model_fields["type"].default) for model in _SAYERS}
    calls = {str(model.model_fields["type"].default) for model in CallEvent.__args__}
    assert set(CODEC.models) == said | calls | {"session.claimed"}


def test_nothing_is_at_rest_while_a_call_runs() -> None:
    timeline = built(stories.plain()[:8])
    [call] = timeline.calls
    assert call.status is Status.OK
    assert not timeline.is_at_rest
    assert built(stories.plain()[:-1]).is_at_rest


def pauses(*moments: tuple[float, str]) -> list[stories.Step]:
    """Frozen (`f`), thawed (`t`), a call (`c`) or anything else, at these seconds."""
    steps: list[stories.Step] = [(0.0, stories.STREAM, stories.claimed(1))]
    for number, (at, what) in enumerate(moments):
        match what:
            case "f":
                steps.append((at, stories.BOX, types.SandboxFrozen(reason="call")))
            case "t":
                steps.append((at, stories.BOX, types.SandboxThawed(seconds=0.001)))
            case "c":
                steps += stories.call(at, f"t{number}", "bash", {"command": "true"}, "")
            case _:
                steps.append((at, stories.STREAM, types.SessionIdled(stop_reason=what)))
    return steps


@pytest.mark.parametrize(
    ("moments", "shown"),
    [
        ([(1, "f"), (2, "t"), (3, "idle")], ["frozen until the next call", "thawed in 1 ms", "turn over: idle"]),
        (
            [(1, "f"), (2, "t"), (3, "c"), (4, "f"), (6, "t"), (7, "c"), (8, "f"), (9, "t"), (10, "idle")],
            [
                "frozen until the next call",
                "thawed in 1 ms",
                "CALL",
                "CALL",
                "frozen 2 more times between calls, 3.0 s in all",
                "turn over: idle",
            ],
        ),
        # One that goes on is shown, since it says how things stand.
        (
            [(1, "f"), (2, "t"), (3, "f"), (4, "t"), (5, "f")],
            [
                "frozen until the next call",
                "thawed in 1 ms",
                "frozen 1 more time between calls, 1.0 s in all",
                "frozen until the next call",
            ],
        ),
        # A clock that was set back is no time.
        (
            [(1, "f"), (2, "t"), (9, "f"), (4, "t")],
            ["frozen until the next call", "thawed in 1 ms", "frozen 1 more time between calls, 0 ms in all"],
        ),
        ([(1, "t"), (2, "idle"), (3, "t")], ["thawed in 1 ms", "turn over: idle", "thawed in 1 ms"]),
    ],
)
def test_many_pauses_are_one_line(moments: list[tuple[float, str]], shown: list[str]) -> None:
    timeline = built(pauses(*moments))
    [claim] = timeline.claims
    assert ["CALL" if isinstance(one, Call) else one.text for one in folded(claim.items)] == shown
    in_json = [one["type"] for one in plain.timeline(timeline)["claims"][0]["items"] if one["kind"] == "note"]
    assert len(in_json) == sum(what != "c" for _, what in moments)


def test_pauses_of_two_sandboxes_are_told_apart() -> None:
    steps = pauses((1, "f"), (2, "t"), (3, "f"), (4, "t"))
    steps += [(at, stories.FORKED, data) for at, _, data in steps[1:]]
    [claim] = built(steps).claims
    assert [(one.of, one.text) for one in list(folded(claim.items))[-2:] if not isinstance(one, Call)] == [
        ("", "frozen 1 more time between calls, 1.0 s in all"),
        (stories.FORK, "frozen 1 more time between calls, 1.0 s in all"),
    ]


# From a file


def test_a_log_gives_the_same_as_its_history(tmp_path: Path) -> None:
    stories.write(tmp_path / "log.db", stories.plain()).close()
    with SqliteLog(tmp_path / "log.db", read_only=True) as log:
        found = read(log, find(log, stories.SESSION))
    expected = built(stories.plain())
    assert found.sandboxes == [stories.SANDBOX]
    assert [(call.tool_use_id, call.status, call.posted, call.content) for call in found.calls] == [
        (call.tool_use_id, call.status, call.posted, call.content) for call in expected.calls
    ]


@pytest.mark.parametrize(
    "name", [stories.SESSION, stories.STREAM, "sesn_01s", "session_01story", stories.SANDBOX, stories.BOX, "sbx-00"]
)
def test_any_name_of_it_finds_it(tmp_path: Path, name: str) -> None:
    with stories.write(tmp_path / "log.db", stories.plain()) as log:
        assert find(log, name).session_id == stories.SESSION


def test_a_sandbox_that_no_session_uses_has_a_timeline(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.append(stories.BOX, new_events("c", [stories.created()]), expected=0)
        assert find(log, "sbx") == Subject("", stories.SANDBOX)
        assert "sandbox created" in drawn(read(log, find(log, "sbx")))


def test_names_that_mean_nothing_or_too_much_are_refused(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        for number in range(8):
            log.append(f"session-sesn_{number}", new_events(f"c{number}", [stories.claimed(1)]), expected=0)
        with pytest.raises(NotInLog, match=r"Nothing in .*log.db is called 'nobody'"):
            find(log, "nobody")
        with pytest.raises(NotInLog):
            find(log, "")
        with pytest.raises(Ambiguous, match=r"'sesn_' could be sesn_0, .*, 3 more") as error:
            find(log, "sesn_")
        assert error.value.advice == "Give more of the id."


def test_rows_that_cannot_be_read_hide_nothing_else(tmp_path: Path) -> None:
    """A row of a newer Hourglass, one whose blob is gone, one whose data is not what its type promises."""
    big = "z" * 100_000
    steps = [*stories.plain()[:4], *stories.call(1, "big", "bash", {"command": "x"}, big)]
    stories.write(tmp_path / "log.db", steps).close()
    for blob in (tmp_path / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    db = sqlite3.connect(tmp_path / "log.db")
    db.execute("DROP TRIGGER events_no_update")
    db.execute("UPDATE events SET type = 'session.teleported' WHERE type = 'session.attached'")
    db.execute("UPDATE events SET data = '{}' WHERE type = 'sandbox.started'")
    db.commit()
    db.close()
    with SqliteLog(tmp_path / "log.db", read_only=True) as log:
        found = read(log, Subject(stories.SESSION))
    shown = drawn(found)
    assert [call.status for call in found.calls] == [Status.UNREADABLE]
    assert "session.teleported: written by a newer Hourglass" in shown
    assert "sandbox.started: its data is not what its type promises" in shown
    assert "tool_call.completed: the file is missing" in shown
    assert "sandbox created" in shown


def test_the_command_prints_json_and_text(tmp_path: Path, runner: CliRunner) -> None:
    stories.write(tmp_path / "log.db", stories.plain()).close()
    args = ["timeline", "sesn_01", "--home", str(tmp_path)]
    text = runner.invoke(build(), args)
    assert text.exit_code == 0, text.output
    assert "python3 -m unittest" in text.output
    found = json.loads(runner.invoke(build(), [*args, "--json"]).output)
    assert found["session_id"] == stories.SESSION
    assert found["totals"]["calls"] == 8
    assert [item["kind"] for item in found["claims"][0]["items"]].count("call") == 8


def test_the_command_says_where_there_is_no_log(tmp_path: Path, runner: CliRunner) -> None:
    result = runner.invoke(build(), ["timeline", "x", "--home", str(tmp_path)])
    assert isinstance(result.exception, LogMissing)


# As it grows


def grow(path: Path, steps: list[stories.Step]) -> threading.Thread:
    def run() -> None:
        stories.write(path, steps).close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_following_ends_when_the_session_is_at_rest(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    stories.write(path, stories.plain()[:1]).close()
    with SqliteLog(path, read_only=True) as log:
        source = Source(log, find(log, stories.SESSION))
        thread = grow(path, stories.plain())
        out = io.StringIO()
        follow(source, tmp_path, Console(file=out, width=100, highlight=False), 6)
        thread.join()
    shown = out.getvalue()
    assert shown.index("init -q") < shown.index("a.py:1:total") < shown.index("turn over: end turn")
    assert shown.count("python3 -m unittest") == 1


@pytest.mark.parametrize("story", ["plain", "troubled", "paused"])
def test_what_is_followed_to_its_end_is_what_is_drawn(tmp_path: Path, story: str) -> None:
    path = tmp_path / "log.db"
    stories.write(path, getattr(stories, story)()).close()
    with SqliteLog(path, read_only=True) as log:
        out = io.StringIO()
        follow(Source(log, find(log, stories.SESSION)), tmp_path, Console(file=out, width=100, highlight=False), 6)
        whole = drawn(read(log, find(log, stories.SESSION)))
    assert [one.rstrip() for one in out.getvalue().splitlines()] == whole.splitlines()


def test_following_as_json_gives_each_item_once(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    stories.write(path, stories.troubled()).close()
    found: list[dict[str, Any]] = []
    with SqliteLog(path, read_only=True) as log:
        follow_json(Source(log, find(log, "sesn_")), lambda text: found.append(json.loads(text)))
    calls = [one["tool_use_id"] for one in found if one.get("kind") == "call"]
    assert calls == ["t1", "t2", "t3", "t4"]
    assert [one["claim"]["number"] for one in found if "claim" in one] == [1, 2]
    assert found[-1]["totals"]["calls"] == 4


def test_a_command_that_runs_is_shown_with_what_it_printed_so_far(tmp_path: Path) -> None:
    """The spool is read while the call runs; then it settles, and the result stands in its place."""
    path = tmp_path / "log.db"
    steps = stories.plain()
    begun = [*steps[:4], *stories.call(1, "toolu_run", "bash", {"command": "make"}, "done\n")]
    stories.write(path, begun[:6]).close()
    file = spool(tmp_path, stories.SANDBOX, "toolu_run")
    file.parent.mkdir(parents=True)
    file.write_text("compiling\x1b[2J one\n")
    out = io.StringIO()
    screen = Console(file=out, width=100, force_terminal=True, highlight=False)
    with SqliteLog(path, read_only=True) as log:
        source = Source(log, find(log, stories.SESSION))
        follower = threading.Thread(target=follow, args=(source, tmp_path, screen, 6))
        follower.start()
        deadline = time.monotonic() + 20
        while "compiling" not in out.getvalue():
            assert time.monotonic() < deadline, out.getvalue()
            time.sleep(0.02)
        assert "\x1b[2J" not in out.getvalue()
        stories.write(path, [*begun, (2.0, stories.STREAM, types.SessionIdled(stop_reason="end_turn"))]).close()
        follower.join()
    assert "│ done" in out.getvalue()


def test_a_spool_is_found_whatever_the_call_is_called(tmp_path: Path) -> None:
    for name in ("toolu_1", "../../etc/passwd", "x" * 500, "ü"):
        file = spool(tmp_path, "sbx-1", name)
        assert file.parent == tmp_path / "output" / "sbx-1"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"output of {name}")
        assert tail(tmp_path, "sbx-1", name) == f"output of {name}"
    assert tail(tmp_path, "../sbx-1", "toolu_1") == ""
    assert tail(tmp_path, "sbx-1", "another") == ""
    (tmp_path / "output" / "sbx-1" / "link").symlink_to("/etc/passwd")
    assert tail(tmp_path, "sbx-1", "link") == ""


def test_the_end_of_a_long_spool_is_read(tmp_path: Path) -> None:
    file = spool(tmp_path, "sbx-1", "t")
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"line {number}\n" for number in range(100_000)))
    found = tail(tmp_path, "sbx-1", "t")
    assert len(found) < 40_000
    assert found.splitlines()[-1] == "line 99999"
    assert found.startswith("line ")
