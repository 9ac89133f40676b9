"""What a request's events may do to a session: all checked first (contract §8.2, §8.4), then all applied, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.server.credentials import Kind
from replay.server.errors import ApiError, invalid

if TYPE_CHECKING:
    from replay.recording import JsonObject
    from replay.server.call import Call
    from replay.server.credentials import Principal
    from replay.server.player import Player
    from replay.server.session import Session

_RESULTS = {"user.tool_result": "tool_use_id", "user.custom_tool_result": "custom_tool_use_id"}
_RESULT_OF = {"user.tool_result": "agent.tool_use", "user.custom_tool_result": "agent.custom_tool_use"}
_WAITING = (
    "only `user.tool_confirmation`, `user.custom_tool_result`, `user.tool_result`, or `user.interrupt` may be sent"
)


class Intake:
    """The inputs of one session."""

    def __init__(self, session: Session, player: Player) -> None:
        self.session = session
        self.player = player

    def check(self, events: list[JsonObject], principal: Principal) -> None:
        """Refuse the whole request for its first event that can't be taken. Raises ApiError."""
        if self.session.is_over:
            raise invalid(f"Session {self.session.id} is terminated and accepts no more events")
        verdicts = {call.id: call.verdict for call in self.session.calls.values()}
        answered: set[str] = set()
        for index, event in enumerate(events):
            at = f"events[{index}]"
            if principal.kind is Kind.SESSION and event["type"] not in _RESULTS:
                raise ApiError(403, f"Token not authorized to send {event['type']}")
            if event["type"] in _RESULTS:
                self._check_result(event, at, verdicts, answered)
            elif event["type"] == "user.tool_confirmation":
                self._check_confirmation(event, at, verdicts)
                verdicts[event["tool_use_id"]] = event["result"]
            elif event["type"] == "user.interrupt":
                self._check_interrupt(event, at)
                answered.update(call.id for call in self.session.open_calls)
            else:
                self._check_message(event, at, answered)

    def apply(self, events: list[JsonObject]) -> list[JsonObject]:
        """Take events that were checked; returns them as kept."""
        kept = [self._apply(event) for event in events]
        self.player.kick()
        return kept

    def _apply(self, event: JsonObject) -> JsonObject:
        kind = event["type"]
        if kind in _RESULTS:
            return self.session.answer(self.session.calls[event[_RESULTS[kind]]], event)
        if kind == "user.tool_confirmation":
            return self.session.confirm(self.session.calls[event["tool_use_id"]], event)
        if kind == "user.interrupt":
            kept = self.session.receive(event)
            self.session.interrupt(event["session_thread_id"])
            self.player.interrupt(event["session_thread_id"])
            return kept
        if kind == "system.message":
            return self.session.receive(event)
        if kind == "user.define_outcome":
            event = event | {"outcome_id": self.session.ids.mint("outc_")}
        kept = self.session.receive(event, consumed=kind == "user.define_outcome")
        self.session.inbox.append(kept)
        return kept

    def _check_result(self, event: JsonObject, at: str, verdicts: dict[str, str | None], answered: set[str]) -> None:
        kind = event["type"]
        key = _RESULTS[kind]
        call = self._call(event[key], kind, at, key)
        if call.event["type"] != _RESULT_OF[kind]:
            raise invalid(f"Invalid {kind} event at {at}: {key} {call.id} names an {call.event['type']} event")
        if not call.is_clients:
            raise self._refuse(call, f"Invalid {kind} event at {at}: {key} {call.id} is not a client's to answer")
        if call.answer is not None or call.id in answered:
            raise self._refuse(call, f"Invalid {kind} event at {at}: {key} {call.id} already has a result")
        if call.asks and verdicts[call.id] != "allow":
            raise self._refuse(
                call,
                f'`tool_use_id` "{call.id}" has `evaluated_permission` "ask" and no `user.tool_confirmation` with '
                'result "allow" has been posted; send `user.tool_confirmation` first',
            )
        answered.add(call.id)

    def _check_confirmation(self, event: JsonObject, at: str, verdicts: dict[str, str | None]) -> None:
        call = self._call(event["tool_use_id"], event["type"], at, "tool_use_id")
        reason = None
        if not call.asks:
            reason = "did not ask for a confirmation"
        elif verdicts[call.id] is not None:
            reason = "already has a confirmation"
        elif call.answer is not None:
            reason = "already has a result"
        if reason is not None:
            raise invalid(f"Invalid user.tool_confirmation event at {at}: tool_use_id {call.id} {reason}")

    def _check_interrupt(self, event: JsonObject, at: str) -> None:
        name = event["session_thread_id"]
        if name is None:
            return
        thread = self.session.threads.get(name)
        if thread is None or thread.status == "terminated":
            what = "no thread of this session" if thread is None else "a terminated thread"
            raise invalid(f"Invalid user.interrupt event at {at}: session_thread_id {name} names {what}")

    def _check_message(self, event: JsonObject, at: str, answered: set[str]) -> None:
        if self.session.status == "running":
            return
        waiting = [call.id for call in self.session.open_calls if call.id not in answered]
        if waiting and not (event["type"] == "system.message" and answered):
            names = ", ".join(waiting)
            raise invalid(
                f"Invalid {event['type']} event at {at}: waiting on responses to events [{names}]; {_WAITING}"
            )

    def _call(self, name: str, kind: str, at: str, key: str) -> Call:
        call = self.session.calls.get(name)
        if call is None:
            raise invalid(f"Invalid {kind} event at {at}: {key} {name} names no tool use of this session")
        return call

    @staticmethod
    def _refuse(call: Call, message: str) -> ApiError:
        call.refused += 1
        return invalid(message)
