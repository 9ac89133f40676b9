"""A sandbox as a session sees it, wherever it lives: in this process, or in one of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.conversation import ToolCall
    from actors.life import FreezeReason, SuspendReason
    from actors.outcome import CallOutcome, InterruptReason
    from events.sandbox import StoreSnapshot


class SandboxFailed(Exception):
    """Raised when a sandbox, not a command in it, failed; the message names the cause and the next step."""


class SandboxBusy(SandboxFailed):
    """Raised when a sandbox is to rest by policy while visitors are in it; it goes on as it was."""


class SandboxHandle(Protocol):
    """Its methods raise `SandboxFailed` where the sandbox, or the process that it lives in, failed."""

    sandbox_id: str

    @property
    def gone(self) -> bool:
        """Whether its actor died: another one must be made, which finds the machine again."""
        ...

    async def recover(self) -> None:
        """See `Sandbox.recover`."""
        ...

    async def release(self) -> None:
        """See `Sandbox.release`."""
        ...

    async def start(self) -> None:
        """See `Sandbox.start`."""
        ...

    async def run_call(self, call: ToolCall) -> CallOutcome:
        """See `Sandbox.run_call`."""
        ...

    async def begin_call(self, call: ToolCall, *, needs_memory: bool) -> CallOutcome | None:
        """See `Sandbox.begin_call`."""
        ...

    async def end_call(
        self, call: ToolCall, outcome: CallOutcome, seconds: float, reason: InterruptReason = "user"
    ) -> CallOutcome:
        """See `Sandbox.end_call`."""
        ...

    async def interrupt(self, tool_use_id: str, reason: InterruptReason) -> None:
        """See `Sandbox.interrupt`."""
        ...

    async def write_tree(self, root: str, files: Mapping[str, tuple[bytes, int]]) -> None:
        """See `Sandbox.write_tree`."""
        ...

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """See `Sandbox.read_file`."""
        ...

    async def served_for(self, agent_id: str, agent_name: str) -> None:
        """See `Sandbox.served_for`."""
        ...

    async def change_egress(self, add: tuple[str, ...], remove: tuple[str, ...], by: str) -> dict[str, Any]:
        """See `Sandbox.change_egress`."""
        ...

    async def kill(self, reason: Literal["session_over", "requested", "not_kept"]) -> None:
        """See `Sandbox.kill`."""
        ...

    async def stop(self, reason: Literal["shutdown", "requested"]) -> None:
        """See `Sandbox.stop`."""
        ...

    async def rest(self, reason: FreezeReason, force: bool = False) -> None:
        """See `Sandbox.rest`."""
        ...

    async def snapshot_due(self, after: Literal["turn", "call"]) -> None:
        """See `Sandbox.snapshot_due`."""
        ...

    async def stored(self, kept: StoreSnapshot) -> None:
        """See `Sandbox.stored`."""
        ...

    async def suspend(self, reason: SuspendReason, force: bool = False) -> None:
        """See `Sandbox.suspend`."""
        ...

    async def snapshot(self) -> str:
        """See `Sandbox.snapshot`."""
        ...

    async def fork(self, count: int, asked_by: str = "") -> list[str]:
        """See `Sandbox.fork`."""
        ...

    async def forked(self) -> None:
        """See `Sandbox.forked`."""
        ...

    async def door(self) -> str:
        """See `Sandbox.door`."""
        ...

    async def end_visits(self) -> None:
        """See `Sandbox.end_visits`."""
        ...

    async def view(self) -> dict[str, object]:
        """See `Sandbox.view`."""
        ...
