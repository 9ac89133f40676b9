"""An entity: a stream, the state folded from it, and the one way to change both.

The shell around the pure `decide` and `evolve` of `events`: a command is decided on the folded state, appended with the
version that this actor believes in, and only then evolved. Whoever was replaced by another actor loses its next append.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from events.envelope import new_events
from events.errors import StaleEpoch, WrongExpectedVersion
from events.log import Append

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from actors.journal import Journal
    from events.envelope import Event
    from events.types import EventData

log = logging.getLogger(__name__)

T = TypeVar("T")
_TRIES = 3
"""Of an append of several entities."""

StateT = TypeVar("StateT")
CommandT = TypeVar("CommandT")


class Replaced(Exception):
    """Raised when another actor writes this entity's stream: this one must stop and touch nothing more."""


async def to_its_end(step: Coroutine[Any, Any, T]) -> T:
    """Await a step that must not be left half done: whoever is cancelled meanwhile waits for its end first."""
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # Cancelled again, it waits all the same: nobody else may take its turn before.
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            log.warning("failed, and nobody waited for it: %r", error)
        raise


@dataclass(frozen=True, slots=True)
class Fold(Generic[StateT, CommandT]):
    """The pure half of an entity: a pair of functions of `events`."""

    decide: Callable[[StateT, CommandT], list[EventData]]
    """What happens; nothing where it has happened already. Raises `IllegalTransition`."""
    evolve: Callable[[StateT, EventData], StateT]
    """The state after an event."""


class Entity(Generic[StateT, CommandT]):
    """One session or one sandbox: loaded once, then changed by commands, one at a time."""

    def __init__(
        self,
        stream: str,
        initial: StateT,
        fold: Fold[StateT, CommandT],
        journal: Journal,
        *,
        epoch: int,
        correlation_id: str,
        metadata: Mapping[str, str],
    ) -> None:
        self.stream = stream
        self.state = initial
        self.version = 0
        self._fold = fold
        self._journal = journal
        self._epoch = epoch
        self._correlation_id = correlation_id
        self._metadata = metadata
        self._turn = asyncio.Lock()
        # Whether an append was cut off, by a cancellation or an error: it may be in the log all the same.
        self._unsure = False

    async def load(self) -> None:
        """Fold the stream as it is in the log."""
        async with self._turn:
            for event in await self._journal.read(self.stream, self.version):
                self._apply(event)

    async def execute(self, command_id: str, *commands: CommandT, causation_id: str = "") -> list[Event]:
        """Decide `commands`, append what happened in one transaction, and take it into the state.

        `command_id` must be the same for a repeat of the same commands: a repeat appends nothing. Returns the events,
        none where nothing was left to happen. Raises `Replaced`, and what `decide` and the log raise.
        """
        return await to_its_end(self._execute(command_id, commands, causation_id))

    async def _execute(self, command_id: str, commands: Sequence[CommandT], causation_id: str) -> list[Event]:
        async with self._turn:
            unsure, self._unsure = self._unsure, True
            if unsure:
                await self._catch_up()
            try:
                events = await self._append(command_id, commands, causation_id)
            except WrongExpectedVersion as error:
                if not unsure:
                    raise Replaced(f"{self.stream} is written by another actor: {error}") from error
                # What was cancelled was committed just now, ahead of this: appends are committed in their order.
                await self._catch_up()
                events = await self._append_again(command_id, commands, causation_id)
            self._unsure = False
            return events

    async def _append_again(self, command_id: str, commands: Sequence[CommandT], causation_id: str) -> list[Event]:
        try:
            return await self._append(command_id, commands, causation_id)
        except WrongExpectedVersion as error:
            raise Replaced(f"{self.stream} is written by another actor: {error}") from error

    async def _catch_up(self) -> None:
        for event in await self._journal.read(self.stream, self.version):
            self._apply(event)

    def _decided(self, command_id: str, commands: Sequence[CommandT], causation_id: str) -> Append:
        """What the commands lead to; an append of nothing where it has happened already."""
        state = self.state
        decided: list[EventData] = []
        for command in commands:
            for data in self._fold.decide(state, command):
                decided.append(data)
                state = self._fold.evolve(state, data)
        events = new_events(
            f"{self.stream}/{command_id}",
            decided,
            correlation_id=self._correlation_id,
            causation_id=causation_id,
            metadata=self._metadata,
        )
        return Append(self.stream, events, expected=self.version, epoch=self._epoch)

    async def _append(self, command_id: str, commands: Sequence[CommandT], causation_id: str) -> list[Event]:
        write = self._decided(command_id, commands, causation_id)
        if not write.events:
            return []
        try:
            (appended,) = await self._journal.append(write)
        except StaleEpoch as error:
            raise Replaced(f"{self.stream} is written by another actor: {error}") from error
        for event in appended:
            self._apply(event)
        return appended

    def _apply(self, event: Event) -> None:
        if event.version <= self.version:
            return  # the first result of a repeated command
        self.state = self._fold.evolve(self.state, event.data)
        self.version = event.version


async def execute_together(
    journal: Journal, command_id: str, *parts: tuple[Entity[Any, Any], Sequence[Any]], causation_id: str = ""
) -> None:
    """Execute commands on several entities in one append: all of it happens, or nothing.

    Raises `Replaced` where another actor writes one of them, and what `decide` and the log raise.
    """
    await to_its_end(_execute_together(journal, command_id, parts, causation_id))


async def _execute_together(
    journal: Journal, command_id: str, parts: Sequence[tuple[Entity[Any, Any], Sequence[Any]]], causation_id: str
) -> None:
    async with AsyncExitStack() as turns:
        for entity, _ in parts:
            await turns.enter_async_context(entity._turn)
        for tries_left in reversed(range(_TRIES)):
            for entity, _ in parts:
                await entity._catch_up()
            writes = [entity._decided(command_id, commands, causation_id) for entity, commands in parts]
            _set_unsure(parts, True)
            try:
                appended = await journal.append(*writes)
                break
            except (WrongExpectedVersion, StaleEpoch) as error:
                _set_unsure(parts, False)
                # One that no actor holds may have been written to meanwhile: its snapshot came into the store.
                if tries_left and isinstance(error, WrongExpectedVersion):
                    continue
                raise Replaced(f"another actor writes one of these: {error}") from error
        for (entity, _), events in zip(parts, appended, strict=True):
            for event in events:
                entity._apply(event)
        _set_unsure(parts, False)


def _set_unsure(parts: Sequence[tuple[Entity[Any, Any], Sequence[Any]]], unsure: bool) -> None:
    for entity, _ in parts:
        entity._unsure = unsure
