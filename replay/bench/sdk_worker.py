"""The SDK's worker as its documentation shows it: the yardstick of the bench `worker`, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from anthropic import AsyncAnthropic
from anthropic.lib.environments import EnvironmentWorker


async def main(folder: Path) -> None:
    """Serve until killed; a line on standard output says that it polls."""
    workdir = folder / "work"
    workdir.mkdir()
    key = os.environ["ANTHROPIC_ENVIRONMENT_KEY"]
    async with AsyncAnthropic(auth_token=key) as client:
        worker = EnvironmentWorker(
            client,
            environment_id=os.environ["ANTHROPIC_ENVIRONMENT_ID"],
            environment_key=key,
            workdir=workdir,
            max_idle=1,
        )
        sys.stdout.write("polling\n")
        sys.stdout.flush()
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
