"""A timeline as JSON: everything that the log has of it, nothing cut."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from replay.timeline.model import MICROSECONDS, Call

if TYPE_CHECKING:
    from replay.timeline.model import Claim, Note, Timeline


def dumps(value: Any) -> str:
    """JSON that a terminal may show: ASCII, since JSON itself lets some control characters stand."""
    return json.dumps(value, ensure_ascii=True)


def timeline(whole: Timeline) -> dict[str, Any]:
    """`{"session_id", "sandboxes", "stop_reason", "claims": [{…, "items": […]}], "totals": {…}}`."""
    return {
        "session_id": whole.session_id,
        "sandboxes": whole.sandboxes,
        "stop_reason": whole.stop_reason,
        "claims": [claim(one) | {"items": [item(each) for each in one.items]} for one in whole.claims],
        "totals": asdict(whole.totals),
    }


def claim(one: Claim) -> dict[str, Any]:
    """A claim without its items; `number` 0 holds what was before the first."""
    return {
        "number": one.number,
        "claim_id": one.claim_id,
        "environment_id": one.environment_id,
        "worker_id": one.worker_id,
        "credential": one.credential,
        "began_at": _time(one.began_us),
        "ended_at": _time(one.ended_us),
        "ended": one.ended,
        "abandoned": one.abandoned,
    }


def item(one: Call | Note) -> dict[str, Any]:
    """A call or a note; `kind` says which."""
    if not isinstance(one, Call):
        return {
            "kind": "note",
            "at": _time(one.at_us),
            "position": one.position,
            "stream": one.stream,
            "version": one.version,
            "type": one.type,
            "text": one.text,
        }
    return {
        "kind": "call",
        "tool_use_id": one.tool_use_id,
        "tool": one.tool,
        "input": one.input,
        "thread_id": one.thread_id,
        "sandbox_id": one.sandbox_id,
        "status": one.status.value,
        "reason": one.reason,
        "position": one.position,
        "version": one.version,
        "requested_at": _time(one.requested_us),
        "started_at": _time(one.started_us),
        "ended_at": _time(one.ended_us),
        "posted_at": _time(one.posted_us),
        "posted": one.posted.value,
        "posted_detail": one.posted_detail,
        "seconds": one.seconds,
        "output_bytes": one.output_bytes,
        "content": one.content,
    }


def _time(us: int | None) -> str | None:
    if us is None:
        return None
    return datetime.fromtimestamp(us / MICROSECONDS, UTC).isoformat(timespec="microseconds")
