"""The log as Arrow tables: real timestamps in UTC, durations, and text as it is.

Text that a guest wrote is in these as it came. pandas escapes it where it shows a table as HTML; whoever shows it
otherwise does the same.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from events.usage import usage_of
from events.views import SANDBOXES, SESSIONS
from replay.notebook import lanes
from replay.notebook.calls import tool_calls
from replay.notebook.extra import needed
from replay.notebook.reading import PAGE, pages, scope
from replay.notebook.shots import snapshots

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from events.sqlite_log import SqliteLog
    from replay.notebook.reading import Scope

_SANDBOX = "sandbox-"
_INT, _TEXT, _TIME, _SPAN = "int64", "string", "time", "span"
_EVENTS = {
    "position": _INT,
    "stream": _TEXT,
    "version": _INT,
    "type": _TEXT,
    "recorded_at": _TIME,
    "session_id": _TEXT,
    "causation_id": _TEXT,
    "epoch": _INT,
    "schema_version": _INT,
    "event_id": _TEXT,
    "data": _TEXT,
    "blob": _TEXT,
    "metadata": _TEXT,
}
_CALLS = {
    "tool_use_id": _TEXT,
    "session_id": _TEXT,
    "sandbox_id": _TEXT,
    "tool": _TEXT,
    "status": _TEXT,
    "reason": _TEXT,
    "requested_at": _TIME,
    "started_at": _TIME,
    "ended_at": _TIME,
    "posted_at": _TIME,
    "duration": _SPAN,
    "version": _INT,
    "output_bytes": _INT,
    "input": _TEXT,
    "output": _TEXT,
    "position": _INT,
}
_LASTED = {"began_at": _TIME, "ended_at": _TIME, "duration": _SPAN}
_SPANS = {"sandbox_id": _TEXT, "session_id": _TEXT, "phase": _TEXT, **_LASTED}
_AGENTS = {"session_id": _TEXT, "doing": _TEXT, **_LASTED}
_SNAPSHOTS = {
    "snapshot_id": _TEXT,
    "sandbox_id": _TEXT,
    "session_id": _TEXT,
    "version": _INT,
    "taken_at": _TIME,
    "reason": _TEXT,
    "stood_still": _SPAN,
    "image_bytes": _INT,
    "tree_bytes": _INT,
    "stored_at": _TIME,
}
_USAGE = {
    "sandbox_id": _TEXT,
    "session_id": _TEXT,
    "phase": _TEXT,
    "in_calls": _SPAN,
    "running": _SPAN,
    "frozen": _SPAN,
    "suspended": _SPAN,
    "stopped": _SPAN,
    "cpu": _SPAN,
    "memory_high_bytes": _INT,
    "tool_calls": _INT,
    "call_time": _SPAN,
    "snapshots": _INT,
    "snapshot_bytes": _INT,
    "forks": _INT,
}
_OF_VIEWS = {"first_at": _TIME, "last_at": _TIME, "seconds": _SPAN}
"""Columns of views that become something else; numbers are said beside, and the rest is text."""
_NUMBERS = frozenset(
    {
        "claims",
        "tool_calls",
        "results_posted",
        "denied",
        "version",
        "parent_version",
        "interrupted",
        "crashes",
        "snapshots",
        "forks",
    }
)


class Tables:
    """The tables of one log. Every method reads it anew, and raises `LogError` where that fails."""

    def __init__(self, log: SqliteLog) -> None:
        """Raises `ExtraMissing`."""
        self._log = log
        self._pa = needed("pyarrow")

    def events(
        self,
        *,
        session: str | None = None,
        sandbox: str | None = None,
        types: str | Iterable[str] | None = None,
        blobs: bool = False,
    ) -> pa.Table:
        """Every event, in the log's order; arguments as `History.events`. Raises `NotInLog`, `Ambiguous`."""
        wanted = None if types is None else [types] if isinstance(types, str) else list(types)
        within = scope(self._log, session, sandbox)
        columns = ["correlation_id" if name == "session_id" else name for name in _EVENTS]
        schema = self._schema(_EVENTS)
        data, blob = columns.index("data"), columns.index("blob")
        batches = []
        for page in pages(self._log, columns, within, wanted):
            rows: Sequence[Sequence[Any]] = page
            if blobs:
                rows = [
                    row
                    if row[blob] is None
                    else (*row[:data], self._log.blobs.get(row[blob]).decode(), *row[data + 1 :])
                    for row in page
                ]
            batches.append(self._batch(rows, schema))
        table = self._pa.Table.from_batches(batches, schema)
        return table if within.streams is None else table.sort_by("position")

    def tool_calls(self, *, session: str | None = None, sandbox: str | None = None) -> pa.Table:
        """Every tool call; arguments and errors as `History.tool_calls`."""
        return self._table(
            (
                (
                    one.tool_use_id,
                    one.session_id,
                    one.sandbox_id,
                    one.tool,
                    one.status,
                    one.reason,
                    one.requested_us,
                    one.started_us,
                    one.ended_us,
                    one.posted_us,
                    one.duration_us,
                    one.version,
                    one.output_bytes,
                    one.input,
                    one.output,
                    one.position,
                )
                for one in tool_calls(self._log, scope(self._log, session, sandbox))
            ),
            _CALLS,
        )

    def sessions(self) -> pa.Table:
        """Every session, the first one first."""
        return self._view(f"SELECT * FROM ({SESSIONS}) ORDER BY first_at", ())

    def sandboxes(self, *, session: str | None = None) -> pa.Table:
        """Every sandbox, the first one first. Raises `NotInLog`, `Ambiguous`."""
        sql = f"SELECT * FROM ({SANDBOXES}) ORDER BY first_at"
        if session is None:
            return self._view(sql, ())
        mine = scope(self._log, session).streams or ()
        names = [one.removeprefix(_SANDBOX) for one in mine if one.startswith(_SANDBOX)]
        asked = ", ".join("?" * len(names))
        return self._view(f"SELECT * FROM ({SANDBOXES}) WHERE sandbox_id IN ({asked}) ORDER BY first_at", names)

    def phases(self, *, session: str | None = None, sandbox: str | None = None) -> pa.Table:
        """The phases of sandboxes, one after the other. Raises `NotInLog`, `Ambiguous`."""
        return self._table(lanes.plain(lanes.phases(self._log, scope(self._log, session, sandbox))), _SPANS)

    def snapshots(self, *, session: str | None = None, sandbox: str | None = None) -> pa.Table:
        """Every snapshot that was taken; arguments and errors as `History.snapshots`."""
        return self._table(snapshots(self._log, scope(self._log, session, sandbox)), _SNAPSHOTS)

    def agent(self, *, session: str | None = None) -> pa.Table:
        """When agents were attended to, and when they thought. Raises `NotInLog`, `Ambiguous`."""
        spans = lanes.plain(lanes.agent(self._log, scope(self._log, session)))
        return self._table([row[1:] for row in spans], _AGENTS)

    def usage(self, *, session: str | None = None, until_us: int | None = None) -> pa.Table:
        """What each sandbox used; arguments and errors as `History.usage`."""
        within = scope(self._log, session)
        until = until_us if until_us is not None else end_us(self._log, within)
        names = self.sandboxes(session=session)["sandbox_id"].to_pylist()
        busy = lanes.in_calls(tool_calls(self._log, within), lanes.phases(self._log, within), until)
        return self._table((self._used(name, until, busy) for name in names), _USAGE)

    def _used(self, name: str, until_us: int, busy: Mapping[str, int]) -> tuple[Any, ...]:
        of = usage_of(name, self._log.read(_SANDBOX + name), until_us)
        used = of.usage
        return (
            name,
            of.session_id,
            of.phase.value,
            busy.get(name, 0),
            *(_us(one) for one in (used.seconds_running, used.seconds_frozen, used.seconds_suspended)),
            *(_us(one) for one in (used.seconds_stopped, used.cpu_seconds)),
            used.memory_high_bytes or None,
            used.tool_calls,
            _us(used.call_seconds),
            used.snapshots,
            used.snapshot_bytes,
            used.forks,
        )

    # --- making them ------------------------------------------------------------------------------------------------

    def _view(self, sql: str, parameters: Sequence[object]) -> pa.Table:
        with_times = self._log.query_dicts(sql, parameters)
        names = list(with_times[0]) if with_times else self._log_columns(sql, parameters)
        kinds = {name: _OF_VIEWS.get(name, _INT if name in _NUMBERS else _TEXT) for name in names}
        columns = []
        for name, kind in kinds.items():
            values = [row[name] for row in with_times]
            if kind == _SPAN:
                values = [None if one is None else _us(one) for one in values]
            if kind == _TIME:
                # ISO 8601, to the millisecond.
                text = self._pa.array(values, self._pa.string())
                columns.append(text.cast(self._type(_TIME)))
            else:
                columns.append(self._pa.array(values, self._type(kind)))
        renamed = ["duration" if name == "seconds" else name for name in names]
        return self._pa.Table.from_arrays(columns, names=renamed)

    def _log_columns(self, sql: str, parameters: Sequence[object]) -> list[str]:
        [row] = self._log.query_dicts(f"SELECT * FROM (SELECT 1) LEFT JOIN ({sql}) ON 1", parameters)
        return [name for name in row if name != "1"]

    def _table(self, rows: Iterable[Sequence[Any]], kinds: Mapping[str, str]) -> pa.Table:
        schema, left = self._schema(kinds), iter(rows)
        batches = [self._batch(some, schema) for some in iter(lambda: list(islice(left, PAGE)), [])]
        return self._pa.Table.from_batches(batches, schema)

    def _batch(self, rows: Sequence[Sequence[Any]], schema: Any) -> Any:
        columns = zip(*rows, strict=True)
        arrays = [self._pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        return self._pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _schema(self, kinds: Mapping[str, str]) -> Any:
        return self._pa.schema([(name, self._type(kind)) for name, kind in kinds.items()])

    def _type(self, kind: str) -> Any:
        pa = self._pa
        return {
            _INT: pa.int64(),
            _TEXT: pa.string(),
            _TIME: pa.timestamp("us", tz="UTC"),
            _SPAN: pa.duration("us"),
        }[kind]


def end_us(log: SqliteLog, within: Scope) -> int:
    """When the log's last event was recorded: until then, what lasts has lasted, whenever it is looked at."""
    rows = log.query(
        "SELECT recorded_at FROM events WHERE position <= ? ORDER BY position DESC LIMIT 1", (within.until,)
    )
    return int(rows[0][0]) if rows else 0


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
