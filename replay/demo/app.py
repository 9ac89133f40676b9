"""The app of the demo: it knows the unmodified `anthropic` SDK and nothing of Hourglass."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anthropic import Anthropic

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Errand:
    """One session, from its creation to the end of its first turn, on a thread of its own."""

    name: str
    """Of the recording that the agent plays."""
    session_id: str = ""
    says: str = ""
    """What the agent said last."""
    over: bool = False
    error: BaseException | None = None
    changed: threading.Event = field(default_factory=threading.Event)

    def run(self, base_url: str, api_key: str, environment_id: str, first: Sequence[Any]) -> None:
        """Create the session and listen until its turn is over. What is raised is kept in `error`."""
        try:
            with Anthropic(base_url=base_url, api_key=api_key) as client:
                self._run(client, environment_id, first)
        except BaseException as error:
            self.error = error
        finally:
            self.changed.set()

    def _run(self, client: Anthropic, environment_id: str, first: Sequence[Any]) -> None:
        agent = client.beta.agents.create(
            name=self.name,
            model="claude-opus-4-8",
            tools=[{"type": "agent_toolset_20260401"}],
            metadata={"recording": self.name},
        )
        session = client.beta.sessions.create(
            agent=agent.id, environment_id=environment_id, title=self.name, initial_events=list(first)
        )
        self.session_id = session.id
        self.changed.set()
        # The stream first, then what happened before it was open: so nothing is missed.
        with client.beta.sessions.events.stream(session.id) as stream:
            for past in client.beta.sessions.events.list(session.id, limit=1000):
                self._hear(past)
            for event in stream:
                self._hear(event)
                if self.over:
                    return

    def _hear(self, event: Any) -> None:
        if event.type == "agent.message":
            self.says = "".join(block.text for block in event.content if block.type == "text")
        elif event.type == "session.status_idle":
            self.over = event.stop_reason.type != "requires_action"
        self.changed.set()


def start(errand: Errand, base_url: str, api_key: str, environment_id: str, first: Sequence[Any]) -> threading.Thread:
    """Run an errand beside others; the thread never keeps the process alive."""
    thread = threading.Thread(
        target=errand.run, args=(base_url, api_key, environment_id, first), name=errand.name, daemon=True
    )
    thread.start()
    return thread
