"""`try_in_parallel` and `keep`: variants run in forks of the session's sandbox, and one of them may take its place.

Where things are written: the call itself begins and ends in the stream of the session's sandbox, which it does not
change; the forks are made there on its behalf; what a variant does is calls of the fork's own stream, run as any other
`write` and `bash`. So whoever dies, the log says how far things were:

| the log says | on the next claim |
| --- | --- |
| a try was begun and has no outcome | its forks are ended, and it runs again: the session's sandbox was not touched |
| `keep` was begun and has no outcome | it runs again: what it does is one append, and that has the outcome in it |
| an outcome | it is posted; nothing runs |
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from actors.conversation import ToolCall
from actors.custom_tools import KEEP, TRY, BadInput, TryInput, parse_keep, parse_try
from actors.entity import to_its_end
from actors.handle import SandboxFailed
from actors.keeping import OVER, Asked, choose, forks_of, read_state
from actors.outcome import CallOutcome, InterruptReason, recorded_outcome
from events import sandbox as fold
from events.types import SandboxForked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from actors.custom_tools import Variant
    from actors.forks import Forks
    from actors.handle import SandboxHandle
    from actors.journal import Journal
    from actors.keeping import Choice
    from events.types import JsonObject

log = logging.getLogger(__name__)

_START_S = 60.0
"""What the machines of a try may take to start, on top of what its commands may."""
_TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class TryLimits:
    """What one call of `try_in_parallel` may ask for."""

    variants: int
    seconds: float
    """For the command of one variant."""


class Tries:
    """The custom tools of one session, served one call at a time, as all its calls are."""

    def __init__(
        self,
        *,
        journal: Journal,
        forks: Forks,
        limits: TryLimits,
        keep: Callable[[Choice, SandboxHandle, Asked], Awaitable[None]],
        on_progress: Callable[[], None],
    ) -> None:
        """Args:
            keep: records a choice, and lets the session go on in the fork; raises `IllegalTransition`.
            on_progress: told whenever a variant ended.
        """  # fmt: skip
        self._journal = journal
        self._forks = forks
        self._limits = limits
        self._keep_fork = keep
        self._on_progress = on_progress
        self._work: asyncio.Task[CallOutcome] | None = None
        self._unwanted: dict[str, InterruptReason] = {}
        self._at_once = max(4, os.cpu_count() or 1)

    async def run(self, call: ToolCall, sandbox: SandboxHandle, waiting: Sequence[str]) -> CallOutcome:
        """Serve one call exactly once, or give the outcome that the log has.

        Args:
            sandbox: the session's.
            waiting: the session's other calls that have no posted result.

        Raises:
            SandboxFailed: the session's own sandbox failed, not a fork.
        """
        known = await self._kept_by(call, sandbox)
        if known is None:
            known = await sandbox.begin_call(call, needs_memory=call.tool == TRY)
        if known is not None:
            return known
        began = time.monotonic()
        if call.tool == KEEP:
            return await self._keep(call, sandbox, waiting, began)
        work = self._work = asyncio.create_task(self._try(call, sandbox), name=f"try {call.tool_use_id}")
        if call.tool_use_id in self._unwanted:
            work.cancel()
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.wait([work])
            raise
        if not work.cancelled():
            return await sandbox.end_call(call, work.result(), time.monotonic() - began)
        await self._forks.end(await self._living(sandbox.sandbox_id))
        outcome = CallOutcome([], is_error=True, interrupted=True)
        return await sandbox.end_call(call, outcome, time.monotonic() - began, self._unwanted[call.tool_use_id])

    def interrupt(self, tool_use_id: str, reason: InterruptReason) -> None:
        """End a try that runs, or is about to. A `keep` is not cut off: it is one append."""
        self._unwanted.setdefault(tool_use_id, reason)
        if self._work is not None:
            self._work.cancel()

    # --- try_in_parallel -----------------------------------------------------------------------------------------

    async def _try(self, call: ToolCall, sandbox: SandboxHandle) -> CallOutcome:
        try:
            asked = parse_try(call.input, variants_max=self._limits.variants, seconds_max=self._limits.seconds)
        except BadInput as error:
            return _failed(str(error))
        # Of the try before, or of this one, cut off half-way.
        await self._forks.end(await self._living(sandbox.sandbox_id))
        try:
            # Until the parent goes on, and its forks are known.
            children = await to_its_end(sandbox.fork(len(asked.variants), call.tool_use_id))
        except SandboxFailed as error:
            return _failed(f"{TRY}: the sandbox could not be forked, and nothing was tried: {error}")
        told = await self._run_all(asked, children)
        await sandbox.forked()
        nothing = all(one["sandbox"] is None for one in told)
        note = 'Call `keep` with {"variant": NAME} to go on in one of them, or with {"none": true} to give them up.'
        text = orjson.dumps({"variants": told} | ({} if nothing else {"next": note}), option=orjson.OPT_INDENT_2)
        return CallOutcome([{"type": "text", "text": text.decode()}], is_error=nothing)

    async def _run_all(self, asked: TryInput, children: list[str]) -> list[JsonObject]:
        seconds = asked.seconds or self._limits.seconds
        rounds = math.ceil(len(children) / self._at_once)
        until = asyncio.get_running_loop().time() + rounds * seconds + _START_S
        turns = asyncio.Semaphore(self._at_once)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._run_one(name, variant, child, seconds, until, turns))
                for name, variant, child in zip(asked.names, asked.variants, children, strict=True)
            ]
        return [one.result() for one in running]

    async def _run_one(
        self, name: str, variant: Variant, child: str, seconds: float, until: float, turns: asyncio.Semaphore
    ) -> JsonObject:
        """What is to be told of a variant. One that has no outcome is not there to be kept either."""
        told = {"name": name, "sandbox": child}
        began = time.monotonic()
        try:
            async with asyncio.timeout_at(until), turns:
                handle = await self._forks.begin(child, seconds + _START_S)
                began = time.monotonic()
                outcome = await _run_variant(handle, variant, child, seconds)
                took = time.monotonic() - began
            await self._forks.rest(child)
        except (SandboxFailed, TimeoutError) as error:
            await self._forks.end([child])
            timed_out = isinstance(error, TimeoutError)
            because = "the time of the whole call was over" if timed_out else str(error)
            return _told(
                told | {"sandbox": None}, time.monotonic() - began, f"not run to its end: {because}", timed_out
            )
        finally:
            self._on_progress()
        text = _text_of(outcome)
        timed_out = outcome.is_error and outcome.exit_code is None and _TIMED_OUT in text
        return _told(told, took, text, timed_out, outcome)

    async def _living(self, sandbox_id: str) -> list[str]:
        """The forks that tries made of a sandbox, and that are not ended; a person's forks are a person's."""
        history = await self._journal.read(f"sandbox-{sandbox_id}")
        persons = set(forks_of(history, ""))
        made = [one for one in forks_of(history) if one not in persons]
        return [one for one in made if (await read_state(self._journal, one)).phase not in OVER]

    # --- keep ----------------------------------------------------------------------------------------------------

    async def _kept_by(self, call: ToolCall, sandbox: SandboxHandle) -> CallOutcome | None:
        """The outcome of a `keep` that put this sandbox in the place of its parent, whose stream has it."""
        if call.tool != KEEP:
            return None
        state = await read_state(self._journal, sandbox.sandbox_id)
        if not state.forked_from:
            return None
        history = await self._journal.read(f"sandbox-{state.forked_from}")
        known = fold.fold(fold.SandboxState(state.forked_from), history).calls.get(call.tool_use_id)
        outcome = recorded_outcome(known) if known is not None else None
        if outcome is not None:
            # Whoever recorded it may have died before those that ended with it were removed.
            family = [state.forked_from, *forks_of(history)]
            await self._forks.end([one for one in family if one != sandbox.sandbox_id])
        return outcome

    async def _keep(self, call: ToolCall, sandbox: SandboxHandle, waiting: Sequence[str], began: float) -> CallOutcome:
        try:
            asked = parse_keep(call.input)
            if asked.variant is None:
                ended = await self._living(sandbox.sandbox_id)
                await self._forks.end(ended)
                outcome = _said({"kept": None, "sandbox": sandbox.sandbox_id, "ended": ended})
            else:
                variants = await self._variants(sandbox.sandbox_id)
                child = _find(asked.variant, variants, await self._living(sandbox.sandbox_id))
                return await self._promote(call, sandbox, child, waiting, began)
        except BadInput as error:
            outcome = _failed(str(error))
        return await sandbox.end_call(call, outcome, time.monotonic() - began)

    async def _promote(
        self, call: ToolCall, sandbox: SandboxHandle, child: str, waiting: Sequence[str], began: float
    ) -> CallOutcome:
        """Put a fork in the place of the session's sandbox. Raises `BadInput` where it can't be had any more."""
        started = (await read_state(self._journal, sandbox.sandbox_id)).calls
        if unposted := [one for one in waiting if one in started]:
            # Its result lies in the stream of the sandbox that would end.
            raise BadInput(
                f"{KEEP}: the result of {unposted[0]} is on its way; call {KEEP} again, and nothing beside it"
            )
        choice = await choose(self._journal, child)
        try:
            handle = await self._forks.begin(child, _START_S)
        except SandboxFailed as error:
            raise BadInput(f"{KEEP}: {child} can't be kept, and nothing was changed: {error}") from error
        outcome = _said({"kept": child, "sandbox": child, "ended": list(choice.ended)})
        result = fold.CompleteCall(
            tool_use_id=call.tool_use_id,
            content=list(outcome.content),
            is_error=False,
            seconds=time.monotonic() - began,
        )
        asked = Asked(call.tool_use_id, result, tuple(waiting))
        await self._keep_fork(choice, handle, asked)
        return outcome

    async def _variants(self, sandbox_id: str) -> dict[str, str]:
        """Of the last try: the fork of each variant, by the variant's name."""
        history = await self._journal.read(f"sandbox-{sandbox_id}")
        tries = [one.causation_id for one in history if isinstance(one.data, SandboxForked) and one.causation_id]
        if not tries:
            return {}
        state = fold.fold(fold.SandboxState(sandbox_id), history)
        known = state.calls.get(tries[-1])
        if known is None:
            return {}
        names = TryInput.model_validate(known.input).names
        # A try that was cut off and run again made forks twice; the later ones count.
        return dict(zip(names, forks_of(history, tries[-1])[-len(names) :], strict=True))


def _find(wanted: str, variants: dict[str, str], living: list[str]) -> str:
    """The fork that is meant. Raises `BadInput`."""
    child = variants.get(wanted, wanted)
    if child in living:
        return child
    there = ", ".join(name for name, one in variants.items() if one in living) or f"none; call {TRY} first"
    raise BadInput(f"{KEEP}: there is no variant {wanted[:200]!r} to keep. There are: {there}")


async def _run_variant(handle: SandboxHandle, variant: Variant, child: str, seconds: float) -> CallOutcome:
    """Write its files, run its command: calls of the fork's own, with ids that no other fork has."""
    for number, (path, content) in enumerate(variant.files.items(), start=1):
        given: JsonObject = {"file_path": path, "content": content}
        written = await handle.run_call(ToolCall(f"{child}-file-{number}", "write", given))
        if written.is_error:
            return written
    given = {"command": variant.command, "timeout_ms": max(1, round(seconds * 1000))}
    return await handle.run_call(ToolCall(f"{child}-command", "bash", given))


def _told(
    who: JsonObject, seconds: float, output: str, timed_out: bool, outcome: CallOutcome | None = None
) -> JsonObject:
    return who | {
        "exit_code": outcome.exit_code if outcome else None,
        "is_error": outcome.is_error if outcome else True,
        "timed_out": timed_out,
        "seconds": round(seconds, 3),
        "output": output,
    }


def _text_of(outcome: CallOutcome) -> str:
    return "\n".join(str(block.get("text", "")) for block in outcome.content)


def _said(told: dict[str, Any]) -> CallOutcome:
    return CallOutcome([{"type": "text", "text": orjson.dumps(told).decode()}], is_error=False)


def _failed(text: str) -> CallOutcome:
    return CallOutcome([{"type": "text", "text": text}], is_error=True)
