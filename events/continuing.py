"""Which branch a session goes on from: the word for it in a session's metadata, and when a branch may be had.

Both sides use it: the command that creates the session, and the host that serves it. The host believes nothing of what
the metadata say: whoever may create a session writes them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from events.sandbox_state import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from events.sandbox_state import SandboxState

BRANCH_KEY = "hourglass_branch"
"""In a session's metadata: the id of the branch that is to be its sandbox."""
MOST_PARENTS = 1000
_ID = re.compile(r"sbx-[A-Za-z0-9]{1,60}")
_SHOWN = 80


def branch_named(metadata: Mapping[str, object] | None) -> str | None:
    """The id of the branch that a session's metadata name, None where they name none.

    Raises `ValueError` where what they name can be no sandbox; its message is clean and bounded.
    """
    named = (metadata or {}).get(BRANCH_KEY)
    if named is None:
        return None
    if not isinstance(named, str) or not _ID.fullmatch(named):
        msg = f"the session's metadata name {repr(named)[:_SHOWN]} as {BRANCH_KEY}, which is no sandbox's id"
        raise ValueError(msg)
    return named


def why_not(state: SandboxState, session_id: str = "") -> str:
    """Why a sandbox can't be had as a branch by a session that does not use it yet; "" where it can.

    Args:
        session_id: who asks; "" where it is yet to be created.
    """
    name = state.sandbox_id
    if state.phase is Phase.ABSENT:
        return f"there is no sandbox {name} in this log"
    if not state.branched:
        return f"sandbox {name} is no branch"
    if state.phase is Phase.KILLED:
        return f"branch {name} was killed"
    if state.session_id and state.session_id != session_id:
        return f"branch {name} is in use by session {state.session_id}"
    if state.phase is Phase.CREATED:
        return f"branch {name} is not made to its end"
    return ""
