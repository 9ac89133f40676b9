"""Looking back: states of the past, timelines, and the server that plays recorded sessions over the real HTTP API."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.history.comparing import Comparison, compare
    from replay.history.planned import Fate, Plan
    from replay.history.planning import plan
    from replay.history.presence import Snapshots
    from replay.history.states import State, state_at
    from replay.history.trees import FileTree, tree_at
    from replay.notebook.history import History
    from replay.parcel.packing import Exported, export_session
    from replay.parcel.unpacking import Imported, import_session

__all__ = [
    "Comparison",
    "Exported",
    "Fate",
    "FileTree",
    "History",
    "Imported",
    "Plan",
    "Snapshots",
    "State",
    "compare",
    "export_session",
    "import_session",
    "plan",
    "state_at",
    "tree_at",
]

# Imported when they are asked for: every command imports this package, and few need any of these.
_WHERE = {
    "replay.history.comparing": ("Comparison", "compare"),
    "replay.history.planned": ("Fate", "Plan"),
    "replay.history.planning": ("plan",),
    "replay.history.presence": ("Snapshots",),
    "replay.history.states": ("State", "state_at"),
    "replay.history.trees": ("FileTree", "tree_at"),
    "replay.notebook.history": ("History",),
    "replay.parcel.packing": ("Exported", "export_session"),
    "replay.parcel.unpacking": ("Imported", "import_session"),
}


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
