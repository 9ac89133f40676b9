"""A session: attached to Anthropic's event stream, its tool calls run in its sandbox, their results posted.

One `Session` serves one claim of the work item. What it must do on attaching is read off the log (the table of the
design): a call that was requested and not started is run; one that was completed and not posted is posted and not run;
one that was posted is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Literal

from actors.api import API_ERRORS, status_of
from actors.branches import BranchRefused
from actors.call_spans import of_claim
from actors.claim import Claim, Outcome, SessionFailed
from actors.conversation import NEUTRAL, Conversation
from actors.custom_tools import served_of
from actors.failing import api_failed, branch_refused, refusal, sandbox_failed
from actors.feed import History, follow
from actors.handle import SandboxFailed
from actors.post import post_result
from actors.records import Records
from actors.skills import fetch_skills
from actors.tries import Tries
from events.continuing import BRANCH_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from anthropic import AsyncAnthropic

    from actors.conversation import ToolCall
    from actors.feed import Live
    from actors.forks import Forks
    from actors.handle import SandboxHandle
    from actors.journal import Journal
    from actors.keeping import Asked, Choice
    from actors.outcome import CallOutcome, InterruptReason
    from actors.tries import TryLimits
    from events.session import SessionState

log = logging.getLogger(__name__)

SKILLS_ROOT = "/workspace/skills"
_NOT_FOUND = 404


class _Ended(Exception):
    """Raised inside to leave the task group with an outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Session:
    """One claim being served. `run` it once; cancel `run` when the lease is gone or the service stops."""

    def __init__(
        self,
        claim: Claim,
        *,
        clients: list[AsyncAnthropic],
        sandbox: SandboxHandle,
        journal: Journal,
        epoch: int,
        metadata: Mapping[str, str],
        max_idle: float,
        max_silence: float,
        forks: Forks,
        tries: TryLimits,
    ) -> None:
        """`clients[0]` serves the session; the others are tried for skills alone."""
        self.claim = claim
        self._client = clients[0]
        self._clients = clients
        self._sandbox = sandbox
        self._max_idle = max_idle
        self._max_silence = max_silence
        self._records = Records(claim, journal, epoch=epoch, metadata=metadata)
        self._forks = forks
        self._tries = Tries(
            journal=journal, forks=forks, limits=tries, keep=self._keep_fork, on_progress=self._note_progress
        )
        self._talk = Conversation()
        self._changed = asyncio.Event()
        self._running: ToolCall | None = None
        self._handled: set[str] = set()
        self._history_events: int | None = None
        self._attached = False
        self._idle_noted = False
        self._idle_since: float | None = None
        self._refused: SessionFailed | None = None  # why it has no sandbox: its branch can't be had
        self._last_progress = time.monotonic()
        self.draining = False

    @property
    def state(self) -> SessionState:
        """The folded state."""
        return self._records.state

    def drain(self) -> None:
        """Start no further call; `run` returns once the one that runs is posted."""
        self.draining = True
        self._changed.set()

    async def run(self) -> Outcome:
        """Serve the session until its turn is over and nothing more comes, or until it can't be served.

        Raises `Replaced` where another actor serves it.
        """
        with of_claim(self.claim):
            return await self._run()

    async def _run(self) -> Outcome:
        await self._records.load()
        try:
            return await self._serve()
        except SessionFailed as failed:
            await self._records.fail(failed)
            log.error("session failed session_id=%s reason=%s %s", self.claim.session_id, failed.reason, failed.detail)
            return Outcome("not_served" if failed.hopeless else "failed", failed.detail)
        except _Ended as ended:
            return ended.outcome

    async def _serve(self) -> Outcome:
        session = await self._fetch()
        self._talk.custom_tools = served_of(session.agent.tools or [])
        await self._adopt((session.metadata or {}).get(BRANCH_KEY))
        try:
            await self._sandbox.served_for(session.agent.id, session.agent.name)
        except SandboxFailed as error:
            raise sandbox_failed(error) from error
        try:
            async with asyncio.TaskGroup() as tasks:
                prepared = tasks.create_task(self._prepare(session.agent.skills), name="prepare")
                tasks.create_task(self._listen(), name="listen")
                tasks.create_task(self._dispatch(prepared), name="dispatch")
                tasks.create_task(self._watch_silence(), name="silence")
        except ExceptionGroup as group:
            raise _cause(group) from group
        raise AssertionError("unreachable: the tasks end by raising")

    # --- before the first call -----------------------------------------------------------------------------------

    async def _fetch(self) -> Any:
        """The session's resource. Ends where the session is over, or needs what is not served here."""
        try:
            session = await self._client.beta.sessions.retrieve(self.claim.session_id)
        except API_ERRORS as error:
            if status_of(error) == _NOT_FOUND:
                await self._over("not_found")
            raise api_failed(error) from error
        if session.status == "terminated":
            await self._over("terminated")
        if any(getattr(resource, "type", None) == "memory_store" for resource in session.resources or []):
            raise SessionFailed(
                "memory_store_unsupported",
                "the session has a memory store attached, and this version of Hourglass does not serve memory stores: "
                "the agent would work without its memory and nobody would notice",
                "create the session without the memory_store resource, or serve its environment with the SDK's worker",
                hopeless=True,
            )
        return session

    async def _adopt(self, named: str | None) -> None:
        """Go on in the branch that the metadata name. One that can't be had is told to the agent, call by call."""
        try:
            branch = None if named is None else await self._forks.adopt(str(named))
        except BranchRefused as error:
            self._refused = branch_refused(error)
            return
        except SandboxFailed as error:
            raise sandbox_failed(error) from error
        if branch is not None:
            self._sandbox = branch
            await self._records.load()  # the host wrote to its stream

    async def _prepare(self, skills: list[Any]) -> list[str]:
        """Start the sandbox and put the skills into it, while the history is read. Returns the skills' names."""
        if self._refused is not None:
            return []
        fetching = asyncio.create_task(fetch_skills(self._clients, skills))
        try:
            await self._sandbox.start()
            fetched = await fetching
            unpacked = []
            for skill in fetched:
                try:
                    await self._sandbox.write_tree(f"{SKILLS_ROOT}/{skill.name}", skill.files)
                    unpacked.append(skill.name)
                except OSError as error:  # the agent's own doing: a full disk, a file where the folder would be
                    log.warning("skill not unpacked session_id=%s name=%s %s", self.claim.session_id, skill.name, error)
        except SandboxFailed as error:
            raise sandbox_failed(error) from error
        finally:
            fetching.cancel()
        return unpacked

    # --- events --------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Take the history and the stream into the conversation, record what was asked for, wake the dispatcher."""
        try:
            async with contextlib.aclosing(follow(self._client, self.claim.session_id)) as items:
                await self._take(items)
        except API_ERRORS as error:
            if status_of(error) == _NOT_FOUND:
                await self._over("deleted")
            raise api_failed(error) from error

    async def _take(self, items: AsyncIterator[History | Live]) -> None:
        async for item in items:
            self._last_progress = time.monotonic()
            if isinstance(item, History):
                news = [event for event in item.events if self._talk.observe(event, live=False)]
                if any(event.type not in NEUTRAL for event in news):
                    self._idle_since = None
                self._history_events = len(item.events)
            elif not self._talk.observe(item.event, live=True):
                continue
            if self._talk.ended:
                await self._over(self._talk.ended)
            if self._attached:
                await self._records.note_calls(self._talk, self._handled)
                await self._stop_answered()
            if not self._talk.turn_is_over():
                self._idle_noted, self._idle_since = False, None
            self._changed.set()

    async def _attach(self, skills: list[str]) -> None:
        """Once sandbox and history are there: record it, and what the history left open."""
        while self._history_events is None:
            await self._wait_changed(None)
            self._changed.clear()
        await self._records.attach(self._sandbox.sandbox_id, self._history_events, skills)
        await self._records.note_answered(self._talk)
        self._attached = True
        await self._records.note_calls(self._talk, self._handled)

    async def _stop_answered(self) -> None:
        """End a call whose result nobody wants any more: interrupted by the user, or its thread is gone."""
        call = self._running
        if call is None:
            return
        denied_by = self._talk.denied_by(call)
        if denied_by not in ("thread_terminated", "server"):
            return
        reason: InterruptReason = "user" if denied_by == "server" else "thread_terminated"
        if call.custom:
            self._tries.interrupt(call.tool_use_id, reason)
        else:
            await self._sandbox.interrupt(call.tool_use_id, reason)

    # --- calls ---------------------------------------------------------------------------------------------------

    async def _dispatch(self, prepared: asyncio.Task[list[str]]) -> None:
        """One call after the other; between them, end where the turn has been over for long enough."""
        await self._attach(await prepared)
        while True:
            self._changed.clear()
            if self.draining:
                raise _Ended(Outcome("idle" if self._talk.turn_is_over() else "shutdown"))
            call = self._next()
            if call is not None:
                await self._serve_call(call)
                continue
            if self._talk.turn_is_over():
                if self._refused is not None:
                    raise self._refused
                await self._note_idle()
                if self._idle_since is None:
                    self._idle_since = time.monotonic()
                left = self._idle_since + self._max_idle - time.monotonic()
                if left <= 0:
                    raise _Ended(Outcome("idle", self._talk.turn_ended))
                await self._wait_changed(left)
            else:
                await self._wait_changed(None)

    async def _note_idle(self) -> None:
        """Once for each turn."""
        if not self._idle_noted:
            await self._records.idle(self._talk.turn_ended)
            self._idle_noted = True
            await self._rest("idle")

    async def _wait_changed(self, timeout: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    def _next(self) -> ToolCall | None:
        """The first call that may run and that this claim has not handled yet."""
        for call in self._talk.unanswered():
            owed = self._records.is_open(call.tool_use_id) or self._records.refusal_of(call.tool_use_id)
            new = owed and call.tool_use_id not in self._handled
            if new and self._talk.may_run(call):
                return call
        return None

    async def _serve_call(self, call: ToolCall) -> None:
        self._handled.add(call.tool_use_id)
        self._running = call
        try:
            told = self._records.refusal_of(call.tool_use_id) or (self._refused and refusal(self._refused))
            if told:
                await self._post(call, await self._records.refuse(call.tool_use_id, told))
                return
            outcome = await self._run_call(call)
            self._last_progress = time.monotonic()
            await self._post(call, outcome)
            await self._sandbox.snapshot_due("call")
            if self._next() is None:
                await self._rest("call")
        except SandboxFailed as error:
            raise sandbox_failed(error) from error
        finally:
            self._running = None
            self._last_progress = time.monotonic()

    async def _run_call(self, call: ToolCall) -> CallOutcome:
        if not call.custom:
            return await self._sandbox.run_call(call)
        waiting = [one.tool_use_id for one in self.state.open_calls if one.tool_use_id != call.tool_use_id]
        return await self._tries.run(call, self._sandbox, waiting)

    async def _rest(self, reason: Literal["idle", "call"]) -> None:
        """The sandbox has nothing to do for now. One that can't be put to rest costs CPU, and that is all."""
        try:
            try:
                await self._sandbox.rest(reason)
            finally:
                if reason == "idle":
                    await self._sandbox.snapshot_due("turn")
        except SandboxFailed as error:
            log.warning("sandbox not frozen session_id=%s %s", self.claim.session_id, error)

    async def keep(self, choice: Choice, sandbox: SandboxHandle, asked: Asked | None = None) -> None:
        """Go on in another sandbox, a fork of the one so far, between two calls; the others end with the same append.

        Raises `IllegalTransition` while a call has no posted result.
        """
        await self._records.keep(choice, asked)
        self._sandbox = sandbox

    async def _keep_fork(self, choice: Choice, sandbox: SandboxHandle, asked: Asked) -> None:
        """As `keep`, where the agent asks for it; the host follows."""
        await self._forks.let_go(choice.ended)
        await self.keep(choice, sandbox, asked)
        await self._forks.kept(choice.kept, choice.ended)

    async def _post(self, call: ToolCall, outcome: CallOutcome) -> None:
        if self._talk.denied_by(call) is not None:
            detail = "the call was closed at the server while it ran"
            await self._records.note_posted(call.tool_use_id, "already_answered", detail)
            return
        try:
            posted = await post_result(
                self._client,
                self.claim.session_id,
                call.tool_use_id,
                outcome.content,
                is_error=outcome.is_error,
                custom=call.custom,
            )
        except API_ERRORS as error:
            raise api_failed(error) from error
        await self._records.note_posted(call.tool_use_id, posted.outcome, posted.detail)
        self._note_progress()

    def _note_progress(self) -> None:
        self._last_progress = time.monotonic()

    async def _watch_silence(self) -> None:
        """Give up a session that holds its lease and gets nowhere (silence, not run time).

        A session that waits for somebody else — a confirmation, a custom tool, the model — is not silent by our doing;
        one that has a call in hand is, once that call is long past the time that any call may take.
        """
        while True:
            quiet = time.monotonic() - self._last_progress
            waits_for_us = not self._attached or self._running is not None or self._next() is not None
            if waits_for_us and quiet > self._max_silence:
                raise SessionFailed("no_progress", f"no progress for {quiet:.0f} s", "see the host's log")
            await asyncio.sleep(min(self._max_silence / 4, 30))

    async def _over(self, reason: Literal["terminated", "deleted", "not_found"]) -> None:
        """The session is over for good, and so is its sandbox."""
        await self._records.over(reason)
        await self._sandbox.kill("session_over")
        raise _Ended(Outcome("not_served", f"the session is over: {reason}", session_over=True))


def _cause(group: ExceptionGroup[Exception]) -> Exception:
    """What ended the tasks: a bug before anything else, then the first of our own endings."""
    ours, others = group.split((_Ended, SessionFailed))
    found: ExceptionGroup[Exception] | None = others or ours
    while isinstance(found, ExceptionGroup) and isinstance(found.exceptions[0], ExceptionGroup):
        found = found.exceptions[0]
    return found.exceptions[0] if found is not None else group
