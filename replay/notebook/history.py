"""A log, opened to look at it in a notebook."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from events.home import LOG_NAME, default_home
from events.sqlite_log import SqliteLog
from replay.history.comparing import compare
from replay.history.planning import plan
from replay.history.presence import Snapshots
from replay.history.states import state_at
from replay.history.target import find_stream, parse
from replay.history.trees import tree_at
from replay.notebook import files
from replay.notebook.display import summary, teach
from replay.notebook.extra import needed
from replay.notebook.plots import Plots
from replay.notebook.tables import Tables
from replay.timeline.source import find, read

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import pandas as pd
    import pyarrow as pa

    from replay.history.comparing import Comparison
    from replay.history.planned import Plan
    from replay.history.states import State
    from replay.timeline.model import Timeline


class History:
    """What a log tells: as DataFrames, as Arrow tables (`arrow`), as pictures (`plot`), and at any version.

    Opens a home or a log file for reading: no service, no Ray and no machine is needed, and nothing is changed. Beside
    a service that runs, each call shows what there is by then. Sessions and sandboxes are named by their id or by the
    beginning of it.

    DataFrames have Arrow types: `timestamp[us, tz=UTC]` for moments, `duration[us]` for how long something lasted,
    null for what is not known. What a guest wrote is in them as it came.
    """

    def __init__(
        self, path: Path | str | None = None, *, store: str | None = None, storage: Path | str | None = None
    ) -> None:
        """Args:
            path: a home or a log file; default: HOURGLASS_HOME, or where the service has it.
            store: the snapshot store, a folder or a URL; default: HOURGLASS_SNAPSHOT_STORE, else `snapshots` beside
                the log.
            storage: where this node keeps snapshots whole; default: HOURGLASS_STORAGE, or where the service has it.

        Raises:
            LogMissing, NotALog, LogTooNew, LogCorrupt, LogUnavailable: there is no log that can be read.
        """  # fmt: skip
        place = Path(path) if path is not None else default_home()
        self.path = place / LOG_NAME if place.is_dir() else place
        self.log = SqliteLog(self.path, read_only=True)
        self._store, self._storage = store, Path(storage) if storage is not None else None
        teach()

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"History({str(self.path)!r})"

    def _repr_html_(self) -> str:
        return summary(self.log)

    @cached_property
    def reachable(self) -> Snapshots:
        """Where snapshots are that can be reached from here. Raises `StoreUnavailable`."""
        return Snapshots.of(self.path.parent, self._store, self._storage)

    # --- tables -----------------------------------------------------------------------------------------------------

    @cached_property
    def arrow(self) -> Tables:
        """The same tables, with the same arguments, as `pyarrow.Table`. Raises `ExtraMissing`."""
        return Tables(self.log)

    @cached_property
    def plot(self) -> Plots:
        """Pictures, by matplotlib. Raises `ExtraMissing`."""
        return Plots(self.log)

    def events(
        self,
        session: str | None = None,
        *,
        sandbox: str | None = None,
        types: str | Iterable[str] | None = None,
        blobs: bool = False,
    ) -> pd.DataFrame:
        """Every event, in the log's order; only what is asked for is read.

        Args:
            session: only this one's events and those of its sandboxes.
            sandbox: only this one's.
            types: as `tool_call.completed`, one or several.
            blobs: also read data above 64 KiB. Without it, `data` is null there, and `blob` its digest.

        Returns:
            position, stream, version, type, recorded_at, session_id, causation_id, epoch, schema_version, event_id,
            data (JSON), blob, metadata (JSON).

        Raises:
            NotInLog, Ambiguous: the log has no such session or sandbox, or several.
            BlobBroken: with `blobs`.
            ExtraMissing: pandas or pyarrow is not installed.
        """
        return _frame(self.arrow.events(session=session, sandbox=sandbox, types=types, blobs=blobs))

    def tool_calls(self, session: str | None = None, *, sandbox: str | None = None) -> pd.DataFrame:
        """Every tool call, in the order in which they came, those of forks included.

        Returns:
            tool_use_id, session_id, sandbox_id, tool, status (as in the timeline: requested, running, ok, error,
            interrupted, denied, unreadable), reason, requested_at, started_at, ended_at, posted_at, duration, version
            (of the sandbox, after it), output_bytes, input (JSON), output (the result's text), position.

        Raises:
            NotInLog, Ambiguous, ExtraMissing: as `events`.
        """
        return _frame(self.arrow.tool_calls(session=session, sandbox=sandbox))

    def sessions(self) -> pd.DataFrame:
        """Every session: its phase, sandbox, first_at, last_at, duration, counts, and its last word.

        Raises `ExtraMissing`.
        """
        return _frame(self.arrow.sessions())

    def sandboxes(self, session: str | None = None) -> pd.DataFrame:
        """Every sandbox: its phase, session, parent and parent_version of a fork, first_at, last_at, counts.

        Raises `NotInLog`, `Ambiguous`, `ExtraMissing`.
        """
        return _frame(self.arrow.sandboxes(session=session))

    def phases(self, session: str | None = None, *, sandbox: str | None = None) -> pd.DataFrame:
        """When each sandbox was running, frozen, suspended …; `ended_at` is null where it still is.

        Raises `NotInLog`, `Ambiguous`, `ExtraMissing`.
        """
        return _frame(self.arrow.phases(session=session, sandbox=sandbox))

    def snapshots(self, session: str | None = None, *, sandbox: str | None = None) -> pd.DataFrame:
        """Every snapshot that was taken, in the order of the versions that they are of.

        Returns:
            snapshot_id, sandbox_id, session_id, version (that it is of), taken_at, reason, stood_still, image_bytes,
            tree_bytes, stored_at (null where the log does not know it to be in the store). It may be gone since.

        Raises:
            NotInLog, Ambiguous, ExtraMissing: as `events`.
        """
        return _frame(self.arrow.snapshots(session=session, sandbox=sandbox))

    def agent(self, session: str | None = None) -> pd.DataFrame:
        """When agents were attended to (`attaching`), and when they thought (`thinking`); see `replay.notebook.lanes`.

        Raises `NotInLog`, `Ambiguous`, `ExtraMissing`.
        """
        return _frame(self.arrow.agent(session=session))

    def usage(self, session: str | None = None, *, until: datetime | None = None) -> pd.DataFrame:
        """What each sandbox used, as `hourglass usage`, and how much of its running time calls took (`in_calls`).

        Args:
            until: until when what still lasts is counted; default: the log's last event, so that a file gives the
                same figures whenever it is looked at. Without a zone, it is local time.

        Raises:
            NotInLog, Ambiguous, ExtraMissing: as `events`.
            LogError: as `EventLog.read`.
        """
        until_us = None if until is None else round(until.timestamp() * 1_000_000)
        return _frame(self.arrow.usage(session=session, until_us=until_us))

    def by_tool(self, session: str | None = None) -> pd.DataFrame:
        """Time by tool, the longest first: calls, failed, total, median, p95, longest; calls that ended alone.

        Raises `NotInLog`, `Ambiguous`, `ExtraMissing`.
        """
        calls = self.tool_calls(session)
        calls = calls[calls["duration"].notna()]
        grouped = calls.assign(failed=calls["status"] != "ok").groupby("tool")
        took = grouped["duration"]
        table = needed("pandas").DataFrame(
            {
                "calls": took.count(),
                "failed": grouped["failed"].sum(),
                "total": took.sum(),
                "median": took.quantile(0.5),
                "p95": took.quantile(0.95),
                "longest": took.max(),
            }
        )
        return table.sort_values("total", ascending=False)

    # --- looking back -----------------------------------------------------------------------------------------------

    def timeline(self, name: str) -> Timeline:
        """The timeline of a session or a sandbox, as `hourglass timeline`. Raises `NotInLog`, `Ambiguous`."""
        return read(self.log, find(self.log, name))

    def state(
        self,
        name: str,
        *,
        version: int | None = None,
        position: int | None = None,
        time: datetime | None = None,
    ) -> State:
        """What a session or a sandbox was at a moment, as `replay.state_at`, which tells more."""
        return state_at(self.log, find_stream(self.log, name), version=version, position=position, time=time)

    def plan(self, target: str) -> Plan:
        """How a version would be rebuilt, as `replay.plan`, by a target: `sbx-0123@17`."""
        wanted = parse(self.log, target)
        return plan(self.log, wanted.stream, wanted.version, self.reachable.where)

    def diff(self, a: str, b: str, *, files: bool = True, nearest: bool = False) -> Comparison:
        """What differs between two versions, as `replay.compare`, by targets: `sbx-0123@17`."""
        one, other = parse(self.log, a), parse(self.log, b)
        return compare(self.log, one, other, self.reachable, files=files, nearest=nearest)

    def ls(self, target: str, *, nearest: bool = False) -> pd.DataFrame:
        """The files of a folder at a version, `sbx-0123@17:/workspace`; arguments and errors as `replay.tree_at`.

        Returns:
            path, kind, mode, uid, gid, size, changed_at, target. In a path, what is no printable text stands as %XX.
        """
        wanted = parse(self.log, target, path=True)
        tree = tree_at(self.log, wanted, self.reachable, nearest=nearest)
        return _frame(files.table(tree, wanted.path))

    def cat(self, target: str, *, nearest: bool = False) -> bytes:
        """A file at a version, `sbx-0123@17:/workspace/a.py`, whole; errors as `replay.tree_at`, and `FileRefused`."""
        wanted = parse(self.log, target, path=True)
        return files.content(tree_at(self.log, wanted, self.reachable, nearest=nearest), wanted.path)


def _frame(table: pa.Table) -> Any:
    pandas: Any = needed("pandas")
    return table.to_pandas(types_mapper=pandas.ArrowDtype)
