"""Every error of a rebuild says what happened and what to do, and survives the way between processes."""

from __future__ import annotations

import pickle

import pytest

from replay.rebuild import errors
from replay.rebuild.errors import RebuildError

EXAMPLES: list[tuple[RebuildError, str, str]] = [
    (errors.NotReproducible("s@9", "a crash", "s@8 can."), "s@9 can't be rebuilt as it was: a crash.", "s@8 can. With"),
    (errors.NothingLeft("s@9", "no log", "None."), "s@9 can't be rebuilt: no log.", "None."),
    (errors.OtherDriver("s@9", "qemu", "gvisor"), "the driver qemu, and here is gvisor.", "node that has that driver"),
    (errors.SnapshotUnusable("s@9", "t-1", "s@4", "gone", "Use t-0."), "the snapshot t-1 of s@4: gone.", "Use t-0."),
    (errors.CallHung("bash", "s@9", "s", "c1", 20.0, 0.5), "bash at s@9 did not end within 20 s", "log show s`"),
    (errors.MachineFailed("s@9", "early", "gone"), "rebuild of s@9 failed early: gone.", "hourglass doctor"),
    (errors.TreeUnreadable("s@9", "no"), "work tree of s@9 can't be compared: no.", "rebuild s@9 --keep"),
    (errors.ProcessesUnreadable("s@9", "odd"), "processes of s@9 can't be told: odd.", "rebuild s@9 --keep"),
    (errors.NoTerminal("s@9"), "no terminal here for a shell in the rebuild of s@9.", "without --shell"),
    (errors.NoSuchRebuild("r"), "No rebuild r is kept", "rebuilds ls"),
    (errors.NoSuchSnapshot("turn-x"), "The log has no snapshot turn-x.", "hourglass plan"),
    (errors.NothingToVerify("none"), "no sandbox to verify: none.", "--all"),
    (errors.NotRecorded("s", "locked"), "found of s could not be recorded: locked.", "--no-record"),
]


@pytest.mark.parametrize(("error", "message", "advice"), EXAMPLES, ids=[type(one[0]).__name__ for one in EXAMPLES])
def test_an_error_names_cause_and_next_step(error: RebuildError, message: str, advice: str) -> None:
    assert message in str(error)
    assert advice in error.advice
    assert "{" not in str(error) + error.advice
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again)) == (type(error), vars(error))


def test_every_error_has_an_example_and_stands_in_the_tree() -> None:
    leaves = {
        name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, RebuildError) and one is not RebuildError
    }
    assert {type(one[0]).__name__ for one in EXAMPLES} == leaves
    assert errors.__doc__ is not None
    for name in leaves:
        assert f"── {name} " in errors.__doc__
