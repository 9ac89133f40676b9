"""Every error of a branch says what happened and what to do, and survives the way between processes."""

from __future__ import annotations

import pickle

import pytest

from replay.branching import errors
from replay.branching.errors import BranchError

EXAMPLES: list[tuple[BranchError, str, str]] = [
    (errors.ReplacementUnreadable("x", "no"), "'x' does not say what is to be replaced: no.", "--replace '17={"),
    (errors.ReplacedTwice("bash", "s@9"), "The bash at s@9 is replaced twice.", "one replacement"),
    (errors.NoCallThere("s", 2, "it is x", "Near it: y."), "s@2 is no tool call: it is x.", "ended. Near it: y."),
    (errors.CallTooLate("s@9", "s@8"), "The call at s@9 comes after s@8", "later version"),
    (errors.UnknownTool("fly", "s@9", "bash, edit"), "fly at s@9 can't be run", "There are bash, edit."),
    (errors.RestNotRepeatable("s@9", "a crash", "s@8 can be."), "s@9 can't be reached: a crash.", "s@8 can be. With"),
    (errors.NotTheSame("s@9", "bash at s@8 gave something else", None), "s@9 did not come back as it was", "--anyway"),
    (errors.NotAppended("s@9", "locked"), "branch of s@9 could not be written into the log: locked.", "Try again"),
]


@pytest.mark.parametrize(("error", "message", "advice"), EXAMPLES, ids=[type(one[0]).__name__ for one in EXAMPLES])
def test_an_error_names_cause_and_next_step(error: BranchError, message: str, advice: str) -> None:
    assert message in str(error)
    assert advice in error.advice
    assert "{" not in (str(error) + error.advice).replace('{"command": "make"}', "")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again)) == (type(error), vars(error))


def test_every_error_has_an_example_and_stands_in_the_tree() -> None:
    leaves = {
        name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, BranchError) and one is not BranchError
    }
    assert {type(one[0]).__name__ for one in EXAMPLES} == leaves
    assert errors.__doc__ is not None
    for name in leaves:
        assert f"── {name} " in errors.__doc__
