"""A result beside the recorded one, with no machine: digests, verdicts, and a diff that a person can read."""

from __future__ import annotations

from typing import Any

import pytest

from replay.history.planned import Fate, Plan, PlannedCall, Start, Version
from replay.rebuild.checks import Recorded, Verdict, check, result_digest
from replay.rebuild.preparing import call_ids

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


def text(*lines: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "\n".join(lines)}]


def planned(id_: str, fate: Fate = Fate.AGAIN) -> PlannedCall:
    return PlannedCall(Version("sandbox-a", 5), 6, id_, "bash", {"command": "x"}, fate)


def recorded(content: list[dict[str, Any]], *, is_error: bool = False) -> Recorded:
    return Recorded(planned("c1"), content, is_error, 0.5)


def test_the_digest_is_of_blocks_and_error_and_not_of_the_order_of_keys() -> None:
    assert result_digest([{"type": "text", "text": "x"}], False) == result_digest(
        [{"text": "x", "type": "text"}], False
    )
    assert result_digest(text("x"), False) != result_digest(text("x"), True)
    assert result_digest(text("x"), False) != result_digest(text("y"), False)
    assert result_digest([*text("x"), IMAGE], False) != result_digest([IMAGE, *text("x")], False)


def test_the_same_is_equal_and_has_no_diff() -> None:
    found = check(recorded([*text("x"), IMAGE]), [*text("x"), IMAGE], False, 0.1)
    assert (found.verdict, found.words, found.diff) == (Verdict.EQUAL, "equal", "")


def test_what_differs_by_nature_is_named() -> None:
    found = check(recorded([*text("1 passed in 0.1s"), IMAGE]), [*text("1 passed in 0.3s"), IMAGE], False, 0.1)
    assert found.verdict is Verdict.ASIDE
    assert found.words == "equal but for duration"
    assert found.plain()["aside"] == ["duration"]
    assert found.digest != found.recorded.digest


@pytest.mark.parametrize(
    ("content", "is_error"),
    [
        (text("1 passed in 0.3s"), True),
        ([*text("1 passed in 0.1s"), IMAGE], False),
        ([], False),
        ([{"type": "text", "text": "1 passed in 0.3s", "more": 1}], False),
        ([IMAGE], False),
        (text("2 passed in 0.1s"), False),
    ],
)
def test_anything_else_differs(content: list[dict[str, Any]], is_error: bool) -> None:
    found = check(recorded(text("1 passed in 0.1s")), content, is_error, 0.1)
    assert found.verdict is Verdict.DIFFERS
    assert found.diff


def test_a_diff_shows_what_matters_and_is_bounded() -> None:
    before = ["run at 2026-11-28T10:00:00Z", *(f"line {n}" for n in range(20)), "value 1"]
    after = ["run at 2026-11-29T11:11:11Z", *(f"line {n}" for n in range(20)), "value 2"]
    found = check(recorded(text(*before)), text(*after), False, 0.1)
    assert found.diff.splitlines() == [
        "--- recorded",
        "+++ rebuilt",
        "@@ -20,3 +20,3 @@",
        " line 18",
        " line 19",
        "-value 1",
        "+value 2",
    ]
    long = check(recorded(text("a" * 10_000)), text(*(f"b {n}" for n in range(1000))), False, 0.1)
    assert len(long.diff.splitlines()) == 61
    assert long.diff.endswith("… 944 more lines")
    assert max(map(len, long.diff.splitlines())) == 300


def test_a_call_runs_under_its_own_id_unless_the_memory_may_know_it() -> None:
    calls = (
        planned("c1", Fate.IN_SNAPSHOT),
        planned("c2"),
        planned("c3", Fate.SKIPPED),
        planned("c1"),
        planned("c2"),
    )
    made = Plan(Version("sandbox-a", 9), Start("template", None), (), (), calls, (), (), None, None)
    assert call_ids(made) == ["c2", "c1-again-3", "c2-again-4"]
