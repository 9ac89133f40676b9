"""Every error of a bisect says what happened and what to do, and survives the way between processes."""

from __future__ import annotations

import pickle

import pytest

from replay.bisect import errors
from replay.bisect.errors import BisectError

EXAMPLES: list[tuple[BisectError, str, str]] = [
    (errors.CommandRefused("''", "it has no program"), "command '' can't be run: it has no program.", "after --"),
    (errors.RangeReversed("s", 9, 4), "version 9 of s does not come before the bad one, 4.", "-- sh -c '! …'"),
    (errors.NothingBetween("s", 4, 5), "Between s@4 and s@5 no call changes anything.", "log show s`"),
    (
        errors.GoodIsBad("s@4", 1, "no"),
        "At s@4, which is called good, the command fails with exit code 1: no.",
        "--good",
    ),
    (errors.BadIsGood("s@9", "OK"), "At s@9, which is called bad, the command succeeds: OK.", "--bad"),
    (errors.EndUntold("s@4", "good", "a crash"), "s@4, which is called good, can't be told: a crash.", "--good;"),
    (errors.CommandHung("s@6", 0.5, "…"), "At s@6 the command did not end within 0.5 s: ….", "--timeout"),
    (errors.CommandDied("s@6", "exit code 137", "x"), "ended as one that was (exit code 137): x.", "end with 125"),
]


@pytest.mark.parametrize(("error", "message", "advice"), EXAMPLES, ids=[type(one[0]).__name__ for one in EXAMPLES])
def test_an_error_names_cause_and_next_step(error: BisectError, message: str, advice: str) -> None:
    assert message in str(error)
    assert advice in error.advice
    assert "{" not in str(error) + error.advice
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again)) == (type(error), vars(error))


def test_every_error_has_an_example_and_stands_in_the_tree() -> None:
    leaves = {
        name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, BisectError) and one is not BisectError
    }
    assert {type(one[0]).__name__ for one in EXAMPLES} == leaves
    assert errors.__doc__ is not None
    for name in leaves:
        assert f"── {name} " in errors.__doc__
