"""How a history becomes a state: one table of transitions, and what each event changes beside the phase.

States are frozen. In between, a fold works on a *draft*, a mutable twin of the state, so that a history costs one
frozen state and not one for each event: that is four times as fast, and `evolve` and `fold` still share every line.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from events.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from enum import StrEnum

    from events.envelope import Event
    from events.types import EventData


class State(Protocol):
    """What a state of any entity has."""

    @property
    def stream(self) -> str:
        """Name of the entity's stream."""

    @property
    def phase(self) -> StrEnum:
        """Where the entity stands."""

    @property
    def version(self) -> int:
        """How many events were folded."""


S = TypeVar("S", bound=State)
S_co = TypeVar("S_co", bound=State, covariant=True)


class Draft(Protocol[S_co]):
    """A state under work."""

    phase: Any
    version: int

    def freeze(self) -> S_co:
        """The state that it stands for now."""


D = TypeVar("D", bound=Draft[Any])


class Life(Generic[S, D]):
    """The life of one kind of entity."""

    def __init__(
        self,
        transitions: Mapping[str, Mapping[Any, Any]],
        changes: Mapping[str, Callable[[D, Any], None]],
        draft: Callable[[S], D],
    ) -> None:
        """Join the two tables.

        Args:
            transitions: for each event type, from which phases it may happen, and where it leads.
            changes: for some of the types, what else changes; called before the phase does. May raise
                `IllegalTransition`.
            draft: makes a draft of a state.
        """
        self._steps = _by_phase(transitions, changes)
        self._draft = draft

    def check(self, state: S, event_type: str, what: str) -> None:
        """Raise `IllegalTransition` where the table does not allow this event.

        Args:
            what: the command or event, for the error.
        """
        if event_type not in self._steps.get(state.phase, {}):
            raise illegal(state, what, f"it would be version {state.version + 1}")

    def fold(self, state: S, history: Iterable[EventData]) -> S:
        """The state after these events.

        Raises:
            IllegalTransition: no entity of this kind has such a history.
        """
        with _no_collections():
            return self._fold(state, history)

    def _fold(self, state: S, history: Iterable[EventData]) -> S:
        draft = self._draft(state)
        phase = draft.phase
        steps = self._steps[phase]
        for data in history:
            step = steps.get(data.type)
            if step is None:
                raise illegal(draft.freeze(), data.type, f"it would be version {draft.version + 1}")
            after, change = step
            change(draft, data)
            draft.version += 1
            if after is not phase:
                draft.phase = phase = after
                steps = self._steps[phase]
        folded: S = draft.freeze()
        return folded


@contextmanager
def _no_collections() -> Iterator[None]:
    """Hold off the cycle collector: what a fold reads and makes is alive, so its many looks would find nothing.

    That is a tenth of a fold. Two threads that fold at once may turn it on again for each other, which costs no more.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _by_phase(
    transitions: Mapping[str, Mapping[Any, Any]], changes: Mapping[str, Callable[[D, Any], None]]
) -> dict[Any, dict[str, tuple[Any, Callable[[D, Any], None]]]]:
    """For each phase, what may happen there: where it leads, and what it changes."""
    steps: dict[Any, dict[str, tuple[Any, Callable[[D, Any], None]]]] = {}
    for name, phases in transitions.items():
        for phase, after in phases.items():
            steps.setdefault(phase, {})[name] = (after, changes.get(name, _nothing))
            steps.setdefault(after, {})
    return steps


def data_of(events: Iterable[Event]) -> Iterable[EventData]:
    """What happened, without the envelopes."""
    return (event.data for event in events)


def illegal(state: State, what: str, because: str) -> IllegalTransition:
    """The error for what a state does not allow."""
    return IllegalTransition(stream=state.stream, phase=state.phase.value, what=what, because=f": {because}")


def _nothing(draft: object, data: object) -> None:
    """Change nothing but the phase."""
