"""The SQL of the views: one row for each session, sandbox and tool call, and for what was asked of the network."""

from __future__ import annotations


def _time(expression: str) -> str:
    return f"strftime('%Y-%m-%dT%H:%M:%fZ', ({expression}) / 1e6, 'unixepoch')"


def _field(field: str, *event_types: str) -> str:
    """The field of a group's last event of these types; SQLite has no `last`, but `max` of (position, value) is it."""
    names = ", ".join(f"'{name}'" for name in event_types)
    return f"substr(max(CASE WHEN type IN ({names}) THEN printf('%020d', position) || (data ->> '$.{field}') END), 21)"


def _at(*event_types: str) -> str:
    names = ", ".join(f"'{name}'" for name in event_types)
    return f"max(CASE WHEN type IN ({names}) THEN recorded_at END)"


def _count(event_type: str) -> str:
    return f"count(CASE WHEN type = '{event_type}' THEN 1 END)"


def _last(mapping: dict[str, str]) -> str:
    """What the last event of these types stands for."""
    whens = " ".join(f"WHEN '{name}' THEN '{word}'" for name, word in mapping.items())
    names = ", ".join(f"'{name}'" for name in mapping)
    return f"substr(max(CASE WHEN type IN ({names}) THEN printf('%020d', position) || CASE type {whens} END END), 21)"


_SESSION_PHASES = {
    "session.claimed": "claimed",
    "session.attached": "attached",
    "session.lease_lost": "lost",
    "session.released": "released",
    "session.failed": "failed",
    "session.terminated": "terminated",
}

_SANDBOX_PHASES = {
    "sandbox.created": "created",
    "sandbox.branched": "created",
    "sandbox.started": "running",
    "sandbox.recovered": "running",
    "sandbox.resumed": "running",
    "sandbox.thawed": "running",
    "sandbox.frozen": "frozen",
    "sandbox.suspended": "suspended",
    "sandbox.stopped": "stopped",
    "sandbox.crashed": "crashed",
    "sandbox.killed": "killed",
}

_BEGINNINGS = ("sandbox.created", "sandbox.branched")

SESSIONS = f"""
SELECT
    substr(stream, 9) AS session_id,
    {_last(_SESSION_PHASES)} AS phase,
    {_field("sandbox_id", "session.attached", "session.sandbox_kept")} AS sandbox_id,
    {_time("min(recorded_at)")} AS first_at,
    {_time("max(recorded_at)")} AS last_at,
    (max(recorded_at) - min(recorded_at)) / 1e6 AS seconds,
    {_count("session.claimed")} AS claims,
    {_count("tool_call.requested")} AS tool_calls,
    {_count("session.result_posted")} AS results_posted,
    {_count("tool_call.denied")} AS denied,
    {_field("stop_reason", "session.idled")} AS stop_reason,
    {_field("reason", "session.failed")} AS failure,
    {_field("detail", "session.failed")} AS failure_detail,
    max(version) AS version
FROM events
WHERE stream >= 'session-' AND stream < 'session.'
GROUP BY stream
"""

SANDBOXES = f"""
SELECT
    substr(stream, 9) AS sandbox_id,
    {_last(_SANDBOX_PHASES)} AS phase,
    {_field("session_id", *_BEGINNINGS, "sandbox.adopted")} AS session_id,
    {_field("driver", *_BEGINNINGS)} AS driver,
    {_field("template", *_BEGINNINGS)} AS template,
    nullif({_field("parent", *_BEGINNINGS)}, '') AS parent,
    nullif(CAST({_field("parent_version", *_BEGINNINGS)} AS INTEGER), 0) AS parent_version,
    {_field("machine_id", "sandbox.started", "sandbox.recovered", "sandbox.resumed")} AS machine_id,
    {_field("snapshot_id", "sandbox.branched", "sandbox.snapshotted", "sandbox.suspended")} AS snapshot_id,
    {_time("min(recorded_at)")} AS first_at,
    {_time("max(recorded_at)")} AS last_at,
    {_count("tool_call.started")} AS tool_calls,
    {_count("tool_call.interrupted")} AS interrupted,
    {_count("sandbox.crashed")} AS crashes,
    {_field("reason", "sandbox.crashed")} AS last_crash,
    {_count("sandbox.snapshotted")} AS snapshots,
    {_count("sandbox.forked")} AS forks,
    max(version) AS version
FROM events
WHERE stream >= 'sandbox-' AND stream < 'sandbox.'
GROUP BY stream
"""

TOOL_CALLS = f"""
WITH calls AS (
    SELECT
        coalesce(data ->> '$.tool_use_id', nullif(causation_id, '')) AS tool_use_id,
        max(correlation_id) AS session_id,
        substr(max(CASE WHEN stream >= 'sandbox-' AND stream < 'sandbox.' THEN stream END), 9) AS sandbox_id,
        max(CASE WHEN type IN ('tool_call.requested', 'tool_call.started') THEN data ->> '$.tool' END) AS tool,
        max(CASE WHEN type IN ('tool_call.requested', 'tool_call.started') THEN data -> '$.input' END) AS input,
        min(position) AS position,
        {_at("tool_call.requested")} AS requested,
        {_at("tool_call.started")} AS started,
        {_at("tool_call.completed", "tool_call.interrupted", "tool_call.denied")} AS ended,
        {_at("session.result_posted")} AS posted,
        {
    _last(
        {
            "tool_call.requested": "requested",
            "tool_call.started": "running",
            "tool_call.completed": "completed",
            "tool_call.interrupted": "interrupted",
            "tool_call.denied": "denied",
        }
    )
} AS status,
        max(CASE WHEN type = 'tool_call.completed' THEN data ->> '$.is_error' END) AS is_error,
        max(CASE WHEN type = 'tool_call.completed' THEN data ->> '$.seconds' END) AS seconds,
        max(CASE WHEN type = 'tool_call.completed' THEN data ->> '$.output_bytes' END) AS output_bytes,
        max(CASE WHEN type IN ('tool_call.completed', 'tool_call.interrupted')
            THEN data ->> '$.content[0].text' END) AS output
    FROM events
    WHERE type IN ('tool_call.requested', 'tool_call.started', 'tool_call.completed', 'tool_call.interrupted',
                   'tool_call.denied', 'session.result_posted')
    -- What a branch runs again has the id that it had, and is of no session.
    GROUP BY 1, correlation_id
)
SELECT
    tool_use_id, session_id, sandbox_id, tool, input, status, is_error, seconds, output, output_bytes,
    {_time("requested")} AS requested_at,
    {_time("started")} AS started_at,
    {_time("ended")} AS ended_at,
    {_time("posted")} AS posted_at
FROM calls
ORDER BY position
"""

EGRESS = f"""
SELECT
    {_time("recorded_at")} AS time,
    substr(stream, 9) AS sandbox_id,
    nullif(correlation_id, '') AS session_id,
    nullif(causation_id, '') AS tool_use_id,
    substr(type, 8) AS decision,
    data ->> '$.host' AS host,
    data ->> '$.port' AS port,
    coalesce(data ->> '$.protocol', 'tcp') AS protocol,
    data ->> '$.address' AS address,
    nullif(data ->> '$.rule', '') AS rule,
    data ->> '$.reason' AS reason,
    nullif(data ->> '$.detail', '') AS detail,
    coalesce(data ->> '$.connections', data ->> '$.count', 1) AS times,
    data ->> '$.bytes_sent' AS bytes_sent,
    data ->> '$.bytes_received' AS bytes_received,
    data ->> '$.seconds' AS seconds,
    position
FROM events
WHERE type IN ('egress.connected', 'egress.closed', 'egress.refused')
    AND stream >= 'sandbox-' AND stream < 'sandbox.'
ORDER BY position
"""
