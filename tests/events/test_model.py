"""The log against a plain model of it, through everything that writers and crashes do to it."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from events.envelope import NewEvent, new_events
from events.errors import EventIdTaken, LogError, StaleEpoch, WrongExpectedVersion
from events.log import Append, Expect
from events.sqlite_log import SqliteLog
from events.types import SessionIdled

if TYPE_CHECKING:
    from uuid import UUID

pytestmark = pytest.mark.model

STREAMS = st.sampled_from(["session-a", "session-b", "sandbox-a"])
OFFSETS = st.sampled_from([0, 0, 0, 0, -1, 1])
MODES: st.SearchStrategy[Expect | None] = st.sampled_from([None, None, *Expect])
COUNTS = st.integers(1, 3)
EPOCHS = st.sampled_from([0, 0, 0, 1, -1])
SIZES = st.sampled_from([1, 10, 70_000])


@dataclass
class Model:
    """What a log is, in thirty lines: no file, no thread, no hash."""

    streams: dict[str, list[tuple[UUID, str]]] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    order: list[tuple[str, int]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)

    def version(self, stream: str) -> int:
        return len(self.streams.get(stream, []))

    def append(self, writes: list[Append]) -> type[LogError] | list[list[tuple[str, int]]]:
        """The stream and version of each event, or the error."""
        known = {one: (stream, n) for stream, events in self.streams.items() for n, (one, _) in enumerate(events, 1)}
        wanted = [(write.stream, event.event_id) for write in writes for event in write.events]
        found = [known[one] for _, one in wanted if one in known]
        if found:
            if len(found) < len(wanted) or any(known[one][0] != stream for stream, one in wanted):
                return EventIdTaken
            return [[known[event.event_id] for event in write.events] for write in writes]
        versions: dict[str, int] = {}
        epochs = dict(self.epochs)
        for write in writes:
            version = versions.get(write.stream, self.version(write.stream))
            if write.epoch < epochs.get(write.stream, 0):
                return StaleEpoch
            if not self._fits(write.expected, version):
                return WrongExpectedVersion
            versions[write.stream] = version + len(write.events)
            epochs[write.stream] = write.epoch
        self.epochs = epochs
        return [[self._add(write.stream, event) for event in write.events] for write in writes]

    def _add(self, stream: str, event: NewEvent) -> tuple[str, int]:
        assert isinstance(event.data, SessionIdled)
        self.streams.setdefault(stream, []).append((event.event_id, event.data.stop_reason))
        self.order.append((stream, self.version(stream)))
        return self.order[-1]

    @staticmethod
    def _fits(expected: int | Expect, version: int) -> bool:
        if isinstance(expected, int):
            return version == expected
        return {Expect.ANY: True, Expect.NO_STREAM: version == 0, Expect.STREAM_EXISTS: version > 0}[expected]


class LogMachine(RuleBasedStateMachine):
    """Does the same to both, and demands the same answers."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="hourglass-model-"))
        self.home = 0
        self.model = Model()
        self.commands = 0
        self.handed_in: list[list[Append]] = []
        self.log = self._open()

    def _open(self) -> SqliteLog:
        return SqliteLog(self.root / str(self.home) / "log.db", durability="normal")

    def teardown(self) -> None:
        assert self.log.verify() is None
        self.log.close()
        with SqliteLog(self.log.path, read_only=True) as reader:
            assert reader.verify() is None
        shutil.rmtree(self.root)

    def _events(self, count: int, size: int) -> list[NewEvent]:
        self.commands += 1
        return new_events(f"c{self.commands}", [SessionIdled(stop_reason=f"{n}" * size) for n in range(count)])

    def _write(self, stream: str, count: int, mode: Expect | None, offset: int, epoch: int, size: int) -> Append:
        expected: int | Expect = max(0, self.model.version(stream) + offset) if mode is None else mode
        return Append(stream, self._events(count, size), expected, max(0, self.model.epochs.get(stream, 0) + epoch))

    def _both(self, writes: list[Append]) -> None:
        expected = self.model.append(writes)
        got: Any
        try:
            got = [[(event.stream, event.version) for event in events] for events in self.log.append_many(writes)]
        except LogError as error:
            got = type(error)
        assert got == expected
        self.handed_in.append(writes)

    @initialize()
    def begin(self) -> None:
        self._both([Append("session-a", self._events(1, 1), Expect.NO_STREAM)])

    @rule(stream=STREAMS, count=COUNTS, mode=MODES, offset=OFFSETS, epoch=EPOCHS, size=SIZES)
    def append(self, stream: str, count: int, mode: Expect | None, offset: int, epoch: int, size: int) -> None:
        self._both([self._write(stream, count, mode, offset, epoch, size)])

    @rule(first=STREAMS, second=STREAMS, count=COUNTS, mode=MODES, offset=OFFSETS)
    def append_to_two(self, first: str, second: str, count: int, mode: Expect | None, offset: int) -> None:
        self._both([self._write(first, count, None, 0, 0, 1), self._write(second, 1, mode, offset, 0, 1)])

    @precondition(lambda self: self.handed_in)
    @rule(which=st.integers(0, 1000))
    def repeat(self, which: int) -> None:
        """A command that comes again, whatever became of it the first time."""
        self._both(self.handed_in[which % len(self.handed_in)])

    @precondition(lambda self: self.handed_in)
    @rule(which=st.integers(0, 1000), stream=STREAMS, drop=st.booleans())
    def repeat_wrongly(self, which: int, stream: str, drop: bool) -> None:
        """A command that comes again with more events than it had, or for another stream."""
        [write, *_] = self.handed_in[which % len(self.handed_in)]
        events = [*write.events, *self._events(1, 1)] if drop else list(write.events)
        self._both([Append(stream, events, Expect.ANY, self.model.epochs.get(stream, 0))])

    @rule(streams=st.lists(STREAMS, min_size=2, max_size=6), mode=MODES, offset=OFFSETS)
    def append_at_once(self, streams: list[str], mode: Expect | None, offset: int) -> None:
        """Writers that do not wait for each other: they are served in order, and each fails or not by itself."""
        writes = [self._write(stream, 1, mode, offset, 0, 1) for stream in streams]
        futures = [self.log.submit([write]) for write in writes]
        for write, future in zip(writes, futures, strict=True):
            expected = self.model.append([write])
            error = future.exception(10)
            got: Any = type(error) if error else [[(event.stream, event.version) for event in future.result()[0]]]
            assert got == expected
            self.handed_in.append([write])

    @rule(name=st.sampled_from(["host-1", "host-2"]))
    def next_epoch(self, name: str) -> None:
        self.model.counters[name] = self.model.counters.get(name, 0) + 1
        assert self.log.next_epoch(name) == self.model.counters[name]

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = self._open()

    @rule()
    def crash(self) -> None:
        """Go on with the files as they lie there now: what a killed process leaves, since nobody closes them."""
        left = self.root / str(self.home)
        self.home += 1
        (self.root / str(self.home)).mkdir()
        for path in left.iterdir():
            if path.name in ("log.db", "log.db-wal"):
                shutil.copyfile(path, self.root / str(self.home) / path.name)
        shutil.copytree(left / "blobs", self.root / str(self.home) / "blobs")
        self.log.close()
        self.log = self._open()

    @invariant()
    def they_agree(self) -> None:
        assert self.log.streams() == sorted(self.model.streams)
        for stream, events in self.model.streams.items():
            assert self.log.version(stream) == len(events)
            assert [
                (event.event_id, event.data.stop_reason)
                for event in self.log.read(stream)
                if isinstance(event.data, SessionIdled)
            ] == events
        read = list(self.log.read_all())
        assert [(event.stream, event.version) for event in read] == self.model.order
        assert [event.position for event in read] == sorted({event.position for event in read})


LogMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_log_agrees_with_its_model = LogMachine.TestCase
