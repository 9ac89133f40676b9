"""Snapshots that were taken, from the rows of a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.notebook.reading import loaded, pages

if TYPE_CHECKING:
    from events.sqlite_log import SqliteLog
    from replay.notebook.reading import Scope

_SANDBOX = "sandbox-"
_TAKEN, _STORED = "sandbox.snapshotted", "sandbox.snapshot_stored"


def snapshots(log: SqliteLog, within: Scope) -> list[tuple[Any, ...]]:
    """As rows: id, sandbox, session, version that it is of, time, reason, microseconds that the guest stood still,
    bytes of its image and its tree, and when the store had it. Raises `LogError`.
    """  # fmt: skip
    taken: list[tuple[Any, ...]] = []
    stored: dict[object, int] = {}
    columns = ("stream", "version", "type", "recorded_at", "correlation_id", "data", "blob")
    for page in pages(log, columns, within, (_TAKEN, _STORED)):
        for stream, version, kind, at_us, session, data, blob in page:
            told = loaded(log, data, blob)
            if told is None:
                continue
            name = told.get("snapshot_id")
            if kind == _STORED:
                stored[name] = at_us
                continue
            taken.append(
                (
                    name,
                    stream.removeprefix(_SANDBOX),
                    session,
                    told.get("of_version") or version - 1,
                    at_us,
                    told.get("reason"),
                    round(told.get("seconds", 0.0) * 1_000_000),
                    told.get("image_bytes"),
                    told.get("tree_bytes"),
                )
            )
    return [(*one, stored.get(one[0])) for one in sorted(taken, key=lambda one: (one[1], one[3]))]
