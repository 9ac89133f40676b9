"""Where the log lies when nobody says, and what tells one home from another."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

LOG_NAME = "log.db"


def default_home() -> Path:
    """HOURGLASS_HOME, else `/var/lib/hourglass` for root, else `hourglass` in the user's XDG state folder."""
    named = os.environ.get("HOURGLASS_HOME", "")
    return Path(named) if named else default_state_dir()


def default_state_dir() -> Path:
    """Where state lies if nobody says: `/var/lib/hourglass` for root, else `hourglass` in the XDG state folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/hourglass")
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local/state") / "hourglass"


def log_path(home: Path | None = None, log: Path | None = None) -> Path:
    """The log file: `log` where it is named, else `log.db` in `home` or in the default one."""
    return log if log is not None else (home if home is not None else default_home()) / LOG_NAME


def home_id(home: Path) -> str:
    """What tells this home from any other, also from an earlier one at the same path; made at the first call."""
    path = home / "id"
    if not path.exists():
        # Linked into place: of two that make it at once, both read the winner's.
        mine = home / f".id-{secrets.token_hex(4)}"
        mine.write_text(secrets.token_hex(16))
        try:
            path.hardlink_to(mine)
        except FileExistsError:
            logging.getLogger(__name__).debug("another process made %s first", path)
        finally:
            mine.unlink()
    return path.read_text()
