"""Real machines: run as root, after `make setup`."""

from __future__ import annotations

from tests.replay.rebuild.conftest import driver, log, new_live

__all__ = ["driver", "log", "new_live"]
