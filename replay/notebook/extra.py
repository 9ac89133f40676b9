"""The packages of the extra `notebook`, which reading a log on the command line does without."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from events.errors import HourglassError


@dataclass(eq=False)
class ExtraMissing(HourglassError):
    """{package}, which notebooks need, can't be imported: {detail}."""

    package: str
    detail: str
    next_step = "Install it where this Python runs: pip install 'hourglass-agents[notebook]'."


def needed(module: str) -> Any:
    """A module of the extra. Raises `ExtraMissing`."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ExtraMissing(package=module.partition(".")[0], detail=str(error)) from error
