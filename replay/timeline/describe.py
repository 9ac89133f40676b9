"""What an event, or a call, says in a few words. Everything that leaves this module is clean and bounded."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from events import types
from events.console import duration, size
from replay.timeline.model import Mood, Posted, Status
from replay.timeline.text import count, excerpt, line

if TYPE_CHECKING:
    from events.payload import JsonObject, Payload
    from replay.timeline.build import Entry
    from replay.timeline.model import Call

WIDTH = 400
"""Cells for one text of an event: more than a screen is wide, less than a flood."""

_NEW_LINE = " ⏎ "
_REPLACEMENTS = re.compile(r"\((\d{1,9}) replacement\(s\)\)\Z")
"""How the result of `edit` ends (contract §12)."""


def describe(data: Payload, entry: Entry) -> tuple[str, Mood]:
    """A line for an event that is no call's, and how it is meant; "" where it says nothing of its own."""
    say = _SAYERS.get(type(data))
    if say is None:
        return line(entry.type, WIDTH), Mood.PLAIN
    text, mood = say(data)
    return line(text, WIDTH), mood


def _limits(limits: types.Limits) -> str:
    return f"{size(limits.memory_bytes)} RAM, {limits.processes} processes, {size(limits.disk_bytes)} disk"


def _detail(text: str) -> str:
    return f": {text}" if text else ""


def _words(name: str) -> str:
    return name.replace("_", " ")


def _kept(data: types.SandboxRecovered) -> str:
    if data.kept == "files":
        return f"machine started anew in {duration(data.seconds)}: files kept, processes gone"
    return f"machine found again in {duration(data.seconds)}: memory and files kept"


def _created(data: types.SandboxCreated) -> str:
    forked = f"forked from {data.parent} at version {data.parent_version:,}: " if data.parent else ""
    return f"sandbox created: {forked}{data.driver}, template {data.template}, {_limits(data.limits)}"


def _suspended(data: types.SandboxSuspended) -> str:
    if data.reason == "fork":
        return f"begins on its parent's snapshot {data.snapshot_id}"
    return f"suspended to disk{_took(data.seconds)}, {_words(data.reason)}{_used(data)}"


def _snapshotted(data: types.SandboxSnapshotted) -> str:
    tree = f" and {size(data.tree_bytes)} of files" if data.tree_bytes is not None else ""
    name = f"snapshot {data.snapshot_id}, {_words(data.reason)}"
    return f"{name}: {size(data.image_bytes)}{tree}, stood still for {duration(data.seconds)}"


def _stored(data: types.SandboxSnapshotStored) -> str:
    new = f"{size(data.new_bytes)} of {size(data.bytes)} were new"
    return f"snapshot {data.snapshot_id} is in the store{_took(data.seconds)}: {new}"


def _process_ended(data: types.SandboxProcessEnded) -> tuple[str, Mood]:
    how = "nobody learnt how" if data.exit_code is None else f"exit {data.exit_code}"
    said = f"{data.process_id} ended after {duration(data.seconds)}, {how}; {size(data.bytes_out)} printed"
    return said, Mood.PLAIN if data.exit_code == 0 else Mood.WARNING


def _closed(data: types.SandboxForwardClosed) -> str:
    moved = f"{size(data.bytes_in)} in, {size(data.bytes_out)} out"
    return f"{data.forward_id} closed after {duration(data.seconds)}: {moved}"


def _copied(data: types.SandboxFileCopied) -> str:
    if data.bytes is None:
        return f"copy {data.direction} begins: {data.path}"
    return f"copied {data.direction}: {data.path}, {size(data.bytes)}"


def _took(seconds: float) -> str:
    return f" in {duration(seconds)}" if seconds else ""


def _used(data: types.SandboxSuspended | types.SandboxStopped | types.SandboxKilled) -> str:
    """What the machine had used, where somebody counted."""
    told = [
        *([f"{duration(data.cpu_seconds)} of CPU"] if data.cpu_seconds is not None else []),
        *([f"{size(data.memory_high_bytes)} at most"] if data.memory_high_bytes is not None else []),
    ]
    return f"; used {', '.join(told)}" if told else ""


_FROZEN = {
    "idle": "frozen: nobody needs it",
    "call": "frozen until the next call",
    "requested": "frozen as asked",
    "snapshot": "frozen for a snapshot",
}
_SAYERS: dict[type[Payload], Any] = {
    types.SessionAttached: lambda data: (
        f"attached, {count(data.history_events, 'event')} in the history{_skills(data)}",
        Mood.PLAIN,
    ),
    types.SessionIdled: lambda data: (f"turn over: {_words(data.stop_reason)}", Mood.GOOD),
    types.SessionLeaseLost: lambda data: (f"lease lost, {_words(data.reason)}{_detail(data.detail)}", Mood.BAD),
    types.SessionReleased: lambda data: (f"released, {_words(data.reason)}", Mood.PLAIN),
    types.SessionFailed: lambda data: (
        f"failed, {_words(data.reason)}: {data.detail}{f' (next: {data.next_step})' if data.next_step else ''}",
        Mood.BAD,
    ),
    types.SessionSandboxKept: lambda data: (
        f"kept {data.sandbox_id}, and ended {', '.join(data.ended) or 'nothing'}",
        Mood.PLAIN,
    ),
    types.SessionTerminated: lambda data: (f"session over, {_words(data.reason)}", Mood.PLAIN),
    types.SandboxCreated: lambda data: (_created(data), Mood.PLAIN),
    types.SandboxStarted: lambda data: (f"machine started in {duration(data.seconds)}", Mood.GOOD),
    types.SandboxStopped: lambda data: (
        f"machine stopped, {_words(data.reason)}: files kept{_used(data)}",
        Mood.PLAIN,
    ),
    types.SandboxCrashed: lambda data: (f"machine crashed: {_words(data.reason)}{_detail(data.detail)}", Mood.BAD),
    types.SandboxRecovered: lambda data: (_kept(data), Mood.GOOD),
    types.SandboxKilled: lambda data: (f"sandbox removed, {_words(data.reason)}{_used(data)}", Mood.PLAIN),
    types.SandboxFrozen: lambda data: (_FROZEN[data.reason], Mood.PLAIN),
    types.SandboxThawed: lambda data: (f"thawed in {duration(data.seconds)}", Mood.GOOD),
    types.SandboxSuspended: lambda data: (_suspended(data), Mood.PLAIN),
    types.SandboxResumed: lambda data: (f"resumed in {duration(data.seconds)}", Mood.GOOD),
    types.SandboxSnapshotted: lambda data: (_snapshotted(data), Mood.PLAIN),
    types.SandboxSnapshotStored: lambda data: (_stored(data), Mood.PLAIN),
    types.SandboxForked: lambda data: (f"forked: {data.child}", Mood.PLAIN),
    types.SandboxBranched: lambda data: (
        f"branched from {data.parent} at version {data.parent_version:,}: {_limits(data.limits)}",
        Mood.PLAIN,
    ),
    types.SandboxAdopted: lambda data: (f"session {data.session_id} goes on in it", Mood.GOOD),
    types.SandboxProcessStarted: lambda data: (
        f"{data.process_id} started by {data.by}{' in a terminal' if data.terminal else ''}: {data.command}",
        Mood.PLAIN,
    ),
    types.SandboxProcessEnded: _process_ended,
    types.SandboxForwardOpened: lambda data: (f"{data.forward_id} forwards to port {data.port}", Mood.PLAIN),
    types.SandboxForwardClosed: lambda data: (_closed(data), Mood.PLAIN),
    types.SandboxFileCopied: lambda data: (_copied(data), Mood.PLAIN),
    types.EgressConnected: lambda data: (
        f"connected to {data.host}:{data.port} ({data.address}; rule {data.rule})",
        Mood.PLAIN,
    ),
    types.EgressClosed: lambda data: (_disconnected(data), Mood.PLAIN),
    types.EgressRefused: lambda data: (_refused(data), Mood.WARNING),
    types.EgressPolicyChanged: lambda data: (
        f"may reach {', '.join(data.allow) or 'nothing'} (by {data.by})",
        Mood.PLAIN,
    ),
    types.ReplayVerified: lambda data: (
        f"rebuilt at version {data.version:,} in {duration(data.seconds)}: equal",
        Mood.GOOD,
    ),
    types.ReplayDiverged: lambda data: (
        f"rebuilt at version {data.version:,}: differs{_detail(data.detail)}",
        Mood.BAD,
    ),
    types.BisectBegun: lambda data: (
        f"bisect from {data.good:,} to {data.bad:,}: {' '.join(data.command)}",
        Mood.PLAIN,
    ),
    types.BisectProbed: lambda data: (f"version {data.version:,} is {data.verdict}{_detail(data.because)}", Mood.PLAIN),
    types.BisectFound: lambda data: (f"good at {data.good:,}, bad at {data.bad:,}", Mood.GOOD),
}
"""For each event type that is no call's, its line. Not shown as a note: the claim, which heads a group."""


def _skills(data: types.SessionAttached) -> str:
    return f", {count(len(data.skills), 'skill')}: {', '.join(data.skills)}" if data.skills else ""


def _disconnected(data: types.EgressClosed) -> str:
    ended = f"{count(data.connections, 'connection')} to {data.host}:{data.port} ended after {duration(data.seconds)}"
    return f"{ended}: {size(data.bytes_sent)} sent, {size(data.bytes_received)} received"


def _refused(data: types.EgressRefused) -> str:
    place = data.host if data.port is None else f"{data.host}:{data.port}"
    over = "" if data.protocol == "tcp" else f" over {data.protocol.upper()}"
    times = f", {data.count:,} times" if data.count != 1 else ""
    rule = f" (rule {data.rule})" if data.rule else ""
    return f"refused {place}{over}{times}: {_words(data.reason)}{rule}{_detail(data.detail)}"


# Tool calls


def tool(call: Call) -> str:
    """What the tool is called, in as few letters as will do."""
    return line({"try_in_parallel": "try"}.get(call.tool, call.tool), WIDTH)


def asked(call: Call, width: int) -> str:
    """The input, as far as it tells what the call is: the command, a path, a pattern; in a fork, which one."""
    told = _asked(call, width)
    return told if call.is_owed or not call.sandbox_id else line(f"{call.sandbox_id}: {told}", width)


def _asked(call: Call, width: int) -> str:
    given = call.input
    match call.tool:
        case "bash":
            command = _text(given, "command")
            if not command and given.get("restart"):
                return "(restart the shell)"
            return line(command[: width * 4].strip().replace("\n", _NEW_LINE), width)
        case "read" | "write" | "edit":
            return line(f"{_text(given, 'file_path')}{_range(given.get('view_range'))}", width)
        case "glob" | "grep":
            place = _text(given, "path")
            return line(f"{_text(given, 'pattern')}{f' in {place}' if place else ''}", width)
        case "try_in_parallel" if isinstance(given.get("variants"), list):
            names = [
                _text(one, "name") or f"variant-{number}"
                for number, one in enumerate(given["variants"], start=1)
                if isinstance(one, dict)
            ]
            return line(", ".join(names), width)
        case "keep":
            return line(_text(given, "variant") or "none", width)
    # Escaped as ASCII: what can't be JSON can't be in a log.
    return line(json.dumps(given), width)


def changed(call: Call, width: int) -> list[str]:
    """What a call that ended well did to the files, as its input and its result say; `+` and `-` mark an edit."""
    if call.status is not Status.OK:
        return []
    if call.tool == "write":
        content = _text(call.input, "content")
        lines = content.count("\n") + (not content.endswith("\n"))
        return [f"{size(len(content.encode(errors='replace')))} in {count(lines, 'line')}"]
    if call.tool == "edit":
        found = _REPLACEMENTS.search(printed(call)[-100:])
        times = int(found[1]) if found else 1
        return [
            *([count(times, "replacement")] if times != 1 else []),
            *_marked("-", _text(call.input, "old_string"), width),
            *_marked("+", _text(call.input, "new_string"), width),
        ]
    return []


def printed(call: Call) -> str:
    """The text of the result as it is, not clean; what is no text is named in square brackets."""
    return "\n".join(_block(block) for block in call.content)


def outcome(call: Call) -> str:
    """How it ended, in a few words, and whether the agent has been told."""
    words = {Status.REQUESTED: "waiting", Status.RUNNING: "running"}.get(call.status, call.status.value)
    if call.reason:
        words += f" ({_words(call.reason)})"
    if call.status.is_over and call.is_owed:
        words += {
            Posted.NO: ", not posted",
            Posted.POSTED: ", posted",
            Posted.ALREADY_ANSWERED: ", answered before",
            Posted.REFUSED: ", post refused",
        }[call.posted]
    return line(words, WIDTH)


def _text(given: JsonObject, key: str) -> str:
    value = given.get(key)
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _range(given: object) -> str:
    return f" lines {given[0]} to {given[1]}" if isinstance(given, list) and len(given) == 2 else ""


def _marked(mark: str, text: str, width: int) -> list[str]:
    return [f"{mark} {shown}" for shown in excerpt(text, 2, width - 2)]


def _block(block: JsonObject) -> str:
    text = block.get("text")
    if isinstance(text, str):
        return text
    source = block.get("source")
    data = source.get("data") if isinstance(source, dict) else None
    media = source.get("media_type") if isinstance(source, dict) else None
    # Base64 has four characters for three bytes.
    return f"[{block.get('type')} {media or ''} {size(len(data) * 3 // 4) if isinstance(data, str) else ''}]"
