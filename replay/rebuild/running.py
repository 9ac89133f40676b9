"""How a command runs what needs machines: on which ground, and to its end."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from replay.rebuild.ground import Ground

T = TypeVar("T")


def ground_of(home: Path | None, store: str | None, storage: Path | None, waiting: int = 0) -> Ground:
    """As `Ground.of`; imported where it is needed, as a command's help needs no machines."""
    from replay.rebuild.ground import Ground

    return Ground.of(home, store, storage, waiting)


def run(ground: Ground, doing: Coroutine[Any, Any, T]) -> T:
    """Run to the end; SIGTERM ends it as Ctrl-C does, with everything cleared away."""

    async def whole() -> T:
        task = asyncio.ensure_future(doing)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return await task
        finally:
            await ground.driver.close()

    try:
        return asyncio.run(whole())
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None
