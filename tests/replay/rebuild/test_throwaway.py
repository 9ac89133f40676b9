"""Which names of throw-away machines are somebody's."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from replay.rebuild.throwaway import Place

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_name_is_abandoned_when_its_holder_is_gone(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.abandoned() == []
    held = place.take("rebuild-a")
    assert place.abandoned() == []
    os.close(held)  # as the kernel does, whatever ends it
    [(name, fd)] = place.abandoned()
    assert name == "rebuild-a"
    place.give_back(name, fd)
    assert place.abandoned() == []


def test_a_name_that_is_given_back_while_it_is_looked_at_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    held = place.take("sbx-0123456789abcdef")
    flock = fcntl.flock

    def slow(fd: int, how: int) -> None:
        if how & fcntl.LOCK_NB:
            place.give_back("sbx-0123456789abcdef", held)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    opened = len(os.listdir("/proc/self/fd"))
    # What had it is a branch by now, and is not to be swept away.
    assert place.abandoned() == []
    assert len(os.listdir("/proc/self/fd")) == opened - 1
