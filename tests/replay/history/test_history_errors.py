"""Every error of looking back says what happened and what to do, and survives the way between processes."""

from __future__ import annotations

import pickle

import pytest

from replay.history import errors
from replay.history.errors import HistoryError

EXAMPLES: list[tuple[HistoryError, str, str]] = [
    (errors.StreamNotThere("s"), "no session or sandbox 's'.", "hourglass sandboxes"),
    (errors.StreamUnclear("s", "s1, s2"), "s could be s1, s2.", "more of the id"),
    (errors.NoMachine("session-s", "sbx-1"), "session-s is a session", "sbx-1"),
    (errors.VersionNotThere("s", 9, 8), "s has no version 9: its last one is 8.", "from 1 to 8"),
    (errors.NotYet("s", "position 3", 4, "2026"), "did not exist at position 3", "later moment"),
    (errors.PositionNotThere(9, 8), "no position 9: its last one is 8.", "log tail"),
    (errors.TimeUnreadable("soon"), "'soon' is no time.", "UTC"),
    (errors.TargetUnreadable("x", "no"), "'x' does not name a version: no.", "SANDBOX@VERSION"),
    (errors.LineageBroken("s", "no"), "parents of s can't be: no.", "log verify"),
    (errors.NoTree("/s", "s@1", "Do this."), "The store /s has no snapshot of s@1", "Do this."),
    (errors.FilesMayDiffer("s@1", "s@2", "1 call"), "is of s@1, and after it 1 call may have changed", "--nearest"),
    (errors.NoSuchFile("/x", "s@1", "no"), "/x is not in the files of s@1: no.", "hourglass ls s@1"),
    (errors.FileRefused("/x", "s@1", "no", "Do this."), "/x of s@1 is not shown: no.", "Do this."),
]


@pytest.mark.parametrize(("error", "message", "advice"), EXAMPLES, ids=[type(one[0]).__name__ for one in EXAMPLES])
def test_an_error_names_cause_and_next_step(error: HistoryError, message: str, advice: str) -> None:
    assert message in str(error)
    assert advice in error.advice
    assert "{" not in str(error) + error.advice
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again)) == (type(error), vars(error))


def test_every_error_has_an_example_and_stands_in_the_tree() -> None:
    leaves = {
        name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, HistoryError) and one is not HistoryError
    }
    assert {type(one[0]).__name__ for one in EXAMPLES} == leaves
    assert errors.__doc__ is not None
    for name in leaves:
        assert f"── {name} " in errors.__doc__
