"""What a session writes into its stream: what was asked for, what was denied or posted, where it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from actors.entity import Entity, Fold
from actors.keeping import keep
from actors.life import sandbox_entity
from actors.outcome import CallOutcome
from events import session as fold

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from actors.claim import Claim, SessionFailed
    from actors.conversation import Conversation, ToolCall
    from actors.journal import Journal
    from actors.keeping import Asked, Choice

SessionEntity = Entity[fold.SessionState, fold.Command]
_FOLD: Fold[fold.SessionState, fold.Command] = Fold(fold.decide, fold.evolve)


def session_entity(session_id: str, journal: Journal, *, epoch: int, metadata: Mapping[str, str]) -> SessionEntity:
    """A session's stream and state, not loaded yet."""
    state = fold.SessionState(session_id)
    return Entity(state.stream, state, _FOLD, journal, epoch=epoch, correlation_id=session_id, metadata=metadata)


class Records:
    """Of one claim. `load` it first. Its methods raise `Replaced` where another actor serves the session."""

    def __init__(self, claim: Claim, journal: Journal, *, epoch: int, metadata: Mapping[str, str]) -> None:
        self._claim = claim
        self._journal = journal
        self._epoch = epoch
        self._metadata = metadata
        self._entity = session_entity(claim.session_id, journal, epoch=epoch, metadata=metadata)

    @property
    def state(self) -> fold.SessionState:
        """The folded state."""
        return self._entity.state

    def is_open(self, tool_use_id: str) -> bool:
        """Whether a call was asked for, and has neither a posted result nor a denial."""
        known = self.state.calls.get(tool_use_id)
        return known is not None and known.status is fold.CallStatus.REQUESTED

    def refusal_of(self, tool_use_id: str) -> str:
        """What the agent is to be told of a call that was refused here and has no posted result; "" of any other."""
        known = self.state.calls.get(tool_use_id)
        refused = known is not None and known.status is fold.CallStatus.DENIED and known.outcome == "policy"
        return known.message if known is not None and refused else ""

    async def refuse(self, tool_use_id: str, message: str) -> CallOutcome:
        """A call will never run, for a reason of ours; what is to be posted."""
        deny = fold.DenyToolCall(tool_use_id=tool_use_id, by="policy", message=message)
        await self._record_call(tool_use_id, "deny", deny)
        return CallOutcome([{"type": "text", "text": message}], is_error=True)

    async def load(self) -> None:
        """Fold the stream as it is in the log."""
        await self._entity.load()

    async def attach(self, sandbox_id: str, history_events: int, skills: list[str]) -> None:
        """The stream is open and the history was read."""
        await self._record(
            "attach",
            fold.Attach(
                claim_id=self._claim.claim_id,
                sandbox_id=sandbox_id,
                history_events=history_events,
                skills=tuple(skills),
                acknowledged_at=self._claim.acknowledged_at,
            ),
        )

    async def note_answered(self, talk: Conversation) -> None:
        """Calls of an earlier claim that were answered since: the record of the post was lost, not the post."""
        for call in self.state.open_calls:
            if call.tool_use_id in talk.answered:
                await self.note_posted(call.tool_use_id, "already_answered", "answered before this claim")

    async def note_calls(self, talk: Conversation, in_hand: Collection[str]) -> None:
        """Every call that is new and open, what was denied, and what turned out to be answered.

        What becomes of a call that is `in_hand` is recorded where it is served.
        """
        for call in talk.calls.values():
            if call.tool_use_id not in self.state.calls and call.tool_use_id not in talk.answered:
                await self._request(call)
            denied_by = talk.denied_by(call)
            if denied_by is not None and self.is_open(call.tool_use_id) and call.tool_use_id not in in_hand:
                await self._record_call(
                    call.tool_use_id, "deny", fold.DenyToolCall(tool_use_id=call.tool_use_id, by=denied_by)
                )

    async def note_posted(
        self, tool_use_id: str, outcome: Literal["posted", "already_answered", "refused"], detail: str
    ) -> None:
        """How a result fared."""
        await self._record_call(
            tool_use_id, "post", fold.RecordPosted(tool_use_id=tool_use_id, outcome=outcome, detail=detail)
        )

    async def idle(self, stop_reason: str) -> None:
        """A turn ended; once for each."""
        await self._record(f"idle-{self._entity.version}", fold.Idle(stop_reason=stop_reason))

    async def fail(self, failed: SessionFailed) -> None:
        """The session can't be served."""
        await self._record("fail", fold.Fail(reason=failed.reason, detail=failed.detail, next_step=failed.next_step))

    async def over(self, reason: Literal["terminated", "deleted", "not_found"]) -> None:
        """The session is over for good."""
        await self._record("over", fold.Terminate(reason=reason))

    async def keep(self, choice: Choice, asked: Asked | None) -> None:
        """The session goes on in another sandbox; in the same append those end that it does not need any more.

        Raises `IllegalTransition` while a call has no posted result, but the one that asks and those that it names.
        """
        ended = [
            sandbox_entity(one, self._claim.session_id, self._journal, epoch=self._epoch, metadata=self._metadata)
            for one in choice.ended
        ]
        await keep(self._journal, choice, self._entity, ended, asked)

    async def _request(self, call: ToolCall) -> None:
        await self._record_call(
            call.tool_use_id,
            "request",
            fold.RequestToolCall(
                tool_use_id=call.tool_use_id,
                tool=call.tool,
                input=call.input,
                thread_id=call.thread_id,
                permission="allow" if call.permission == "allow" else "ask",
            ),
        )

    async def _record(self, step: str, *commands: fold.Command) -> None:
        await self._entity.execute(f"{self._claim.claim_id}/{step}", *commands)

    async def _record_call(self, tool_use_id: str, step: str, *commands: fold.Command) -> None:
        await self._entity.execute(f"{tool_use_id}/{step}", *commands, causation_id=tool_use_id)
