"""Looking back: states of the past, timelines, and the server that plays recorded sessions over the real HTTP API."""

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
