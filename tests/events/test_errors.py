"""Every error says what happened and what to do, and survives the way between processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from events import errors
from events.errors import HourglassError
from events.log import Expect

PATH = Path("/home/log.db")

EXAMPLES: list[tuple[HourglassError, str, str]] = [
    (errors.LogMissing(path=PATH), "There is no log at /home/log.db.", "hourglass up"),
    (errors.NotALog(path=PATH, reason="it is a poem"), "/home/log.db is not a Hourglass log: it is a poem.", "--log"),
    (errors.LogTooNew(path=PATH, found=3, supported=1), "has schema 3, and this version", "Upgrade"),
    (errors.LogCorrupt(path=PATH, detail="page 3"), "/home/log.db is damaged: page 3.", "hourglass log verify"),
    (errors.BlobBroken(path=PATH, detail="it is missing", digest="ab"), "blob ab: it is missing.", "backup"),
    (errors.EventInvalid(path=PATH, detail="x", type="a.b", position=7), "the a.b at position 7: x.", "backup"),
    (errors.LogLocked(path=PATH, holder="pid 7"), "by another process (pid 7).", "One writer"),
    (errors.LogBusy(path=PATH, seconds=5.0), "for 5.0 seconds.", "Close the program"),
    (errors.LogFull(path=PATH), "No room left for /home/log.db", "Make room"),
    (errors.LogUnavailable(path=PATH, detail="I/O error"), "/home/log.db can't be used: I/O error.", "starting is"),
    (errors.LogReadOnly(path=PATH), "opened for reading", "read_only"),
    (errors.LogClosed(path=PATH), "/home/log.db was closed.", "Open it again"),
    (
        errors.WrongExpectedVersion(stream="session-s", expected=3, actual=4),
        "session-s is at version 4, and the writer expected 3.",
        "Read the stream again",
    ),
    (
        errors.WrongExpectedVersion(stream="session-s", expected=Expect.NO_STREAM, actual=4),
        "the writer expected no stream.",
        "Read the stream again",
    ),
    (errors.StaleEpoch(stream="session-s", epoch=1, last=2), "this writer is of epoch 1", "Stop this writer"),
    (errors.EventIdTaken(stream="session-s", taken="a, b"), "with other events: a, b.", "repeat a command whole"),
    (errors.EventNotStorable(type="a.b", detail="too deep"), "A a.b can't be stored: too deep.", "Bound and clean"),
    (errors.UnknownEventType(type="a.b", position=7), "Position 7 has an event of type a.b", "log show 7"),
    (errors.EventTooNew(type="a.b", position=7, found=2, supported=1), "a a.b of schema 2", "log show 7"),
    (
        errors.StreamDiffers(path=PATH, stream="session-s", version=3),
        "/home/log.db has another history of session-s: they differ at version 3.",
        "--home",
    ),
    (errors.NothingThere(path=PATH, what="stream x"), "There is no stream x in /home/log.db.", "hourglass sessions"),
    (errors.FileNotWritten(path=PATH, detail="no room"), "/home/log.db can't be written: no room.", "another file"),
    (
        errors.IllegalTransition(stream="session-s", phase="lost", what="Attach", because=": no"),
        "session-s is lost: Attach is not possible: no.",
        "hourglass log show session-s",
    ),
]


@pytest.mark.parametrize(("error", "message", "advice"), EXAMPLES, ids=[type(one[0]).__name__ for one in EXAMPLES])
def test_an_error_names_cause_and_next_step(error: HourglassError, message: str, advice: str) -> None:
    assert message in str(error)
    assert advice in error.advice
    assert "{" not in str(error) + error.advice


@pytest.mark.parametrize("error", [one[0] for one in EXAMPLES], ids=[type(one[0]).__name__ for one in EXAMPLES])
def test_an_error_survives_pickling(error: HourglassError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_every_error_has_an_example_and_stands_in_the_tree() -> None:
    leaves = {
        name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, HourglassError) and name not in ("HourglassError", "LogError")
    }
    assert {type(one[0]).__name__ for one in EXAMPLES} == leaves
    assert errors.__doc__ is not None
    for name in leaves:
        assert f"── {name} " in errors.__doc__


def test_braces_in_a_field_are_text() -> None:
    assert "{path} {0}" in str(errors.LogUnavailable(path=PATH, detail="{path} {0}"))
