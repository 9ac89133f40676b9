"""Why a session can't be served, in words for its user and for the log."""

from __future__ import annotations

from actors.api import describe, is_rejected_credential
from actors.branches import NEXT_STEP, BranchRefused
from actors.claim import SessionFailed
from actors.handle import SandboxFailed


def api_failed(error: Exception) -> SessionFailed:
    """The API refused, or was not there."""
    if is_rejected_credential(error):
        return SessionFailed(
            "credential_rejected",
            describe(error),
            "check that the environment key is valid and belongs to this environment",
        )
    return SessionFailed("api_error", describe(error))


def sandbox_failed(error: SandboxFailed) -> SessionFailed:
    """No machine could be had."""
    return SessionFailed("sandbox_failed", str(error), "run `hourglass doctor` on this node")


def branch_refused(error: BranchRefused) -> SessionFailed:
    """Another try would end the same way, until somebody changes the session or the branch."""
    return SessionFailed("branch_refused", str(error), NEXT_STEP, hopeless=True)


def refusal(failed: SessionFailed) -> str:
    """What the agent gets for each call that is not run: it is the only one here who can tell the user."""
    return (
        f"This session was to go on from a branch, and that is not possible: {failed.detail}. No tool call of it is "
        f"run. Tell the user, who can do this: {failed.next_step}."
    )
