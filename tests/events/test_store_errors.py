"""Every error of the snapshot store says what happened and what to do, and survives the way between processes."""

from __future__ import annotations

import pickle

import pytest

from events import store_errors as errors
from events.errors import HourglassError

EXAMPLES: list[tuple[HourglassError, str, str]] = [
    (errors.StoreUnavailable(store="s3://b", detail="no key"), "s3://b can't be used: no key.", "STORE"),
    (errors.StoreBusy(store="/s", holder="it is being pruned"), "/s is in use: it is being pruned.", "Repeat it"),
    (errors.MarkLost(store="s3://b", mark="adding-1", detail="gone"), "s3://b keeps nobody out", "repeat it"),
    (errors.SnapshotNotStored(store="/s", snapshot_id="x"), "/s has no snapshot x.", "snapshots ls"),
    (errors.ManifestBroken(store="/s", snapshot_id="x", detail="odd"), "of x in /s is damaged: odd.", "never used"),
    (errors.ChunkBroken(store="/s", snapshot_id="x", chunk="ab", detail="gone"), "chunk ab of x in /s", "verify"),
    (
        errors.TreeRefused(whose="y", snapshot_id="x", detail="deep"),
        "of y is not stored (snapshot x): deep.",
        "simpler",
    ),
    (errors.TemplateRefused(root="base-1", detail="deep"), "root base-1 is not stored, nor are", "template build"),
    (errors.TreeNotRestored(snapshot_id="x", path="a/b", detail="no room"), "a/b of x can't", "nothing of it"),
    (errors.PruneRefused(snapshot_id="x", need="y lies in it"), "x is needed: y lies in it.", "hourglass kill"),
    (errors.PruneForeign(snapshot_id="x", sandbox_id="y"), "x is of y, which this log does not know.", "--foreign"),
]


@pytest.mark.parametrize(("error", "message", "advice"), EXAMPLES, ids=[type(one[0]).__name__ for one in EXAMPLES])
def test_an_error_names_cause_and_next_step(error: HourglassError, message: str, advice: str) -> None:
    assert message in str(error)
    assert advice in error.advice
    assert "{" not in str(error) + error.advice
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_every_error_has_an_example_and_stands_in_the_tree() -> None:
    leaves = {
        name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, HourglassError) and name not in ("HourglassError", "StoreError")
    }
    assert {type(one[0]).__name__ for one in EXAMPLES} == leaves
    assert errors.__doc__ is not None
    for name in leaves:
        assert f"── {name} " in errors.__doc__
