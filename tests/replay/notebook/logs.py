"""Logs whose events have the times of their stories, so that tables and spans can be told exactly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest.mock import patch

from events.envelope import new_events
from events.log import Expect
from events.sqlite_log import SqliteLog
from replay.timeline.build import Unreadable
from tests.replay.timeline_stories import SESSION, T0_US

if TYPE_CHECKING:
    from pathlib import Path

    from tests.replay.timeline_stories import Step


def written(path: Path, steps: list[Step], session: str = SESSION) -> Path:
    """A log at a path; its writer's clock is the story's."""
    clock = SimpleNamespace(now_us=T0_US)
    clock.time_ns = lambda: clock.now_us * 1000
    with patch("events.writer.time", clock), SqliteLog(path, durability="normal") as log:
        for number, (at, stream, data) in enumerate(steps):
            if isinstance(data, Unreadable):
                continue
            clock.now_us = T0_US + round(at * 1e6)
            told = new_events(
                f"{stream}-{number}", [data], correlation_id=session, causation_id=getattr(data, "tool_use_id", "")
            )
            log.append(stream, told, expected=Expect.ANY)
    return path
