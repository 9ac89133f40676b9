"""Where the log lies when nobody says."""

from __future__ import annotations

import os
from pathlib import Path

LOG_NAME = "log.db"


def default_home() -> Path:
    """HOURGLASS_HOME, else `/var/lib/hourglass` for root, else `hourglass` in the user's XDG state folder."""
    named = os.environ.get("HOURGLASS_HOME", "")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/hourglass")
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local/state") / "hourglass"


def log_path(home: Path | None = None, log: Path | None = None) -> Path:
    """The log file: `log` where it is named, else `log.db` in `home` or in the default one."""
    return log if log is not None else (home if home is not None else default_home()) / LOG_NAME
