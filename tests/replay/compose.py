"""Makes the shipped recordings: plays the drafts' agents, and lets the SDK's own worker answer their calls.

The agent's side of a shipped recording is written by hand (`drafts.py`); every result in it is what the unmodified
`EnvironmentWorker` of the SDK posted. Run it as root on a machine where `/workspace` may be made, used and removed:

    python -m tests.replay.compose [NAME …]
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anthropic

from replay.library import SHIPPED
from replay.record import fetch
from replay.recording import SUFFIX, write
from replay.server import RecordedServer, has_ended
from replay.user import first_message, play_user
from tests.replay.draft import Draft
from tests.replay.drafts import DRAFTS

WORKSPACE = Path("/workspace")
_SECONDS = 300.0


async def compose(draft: Draft, folder: Path) -> Path:
    """Play one draft and write what was recorded into `folder`."""
    recording = draft.recording()
    path = folder / f"{draft.name}{SUFFIX}"
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RecordedServer())
        environment = server.create_environment()
        agent = server.create_agent(recording)
        app = await stack.enter_async_context(
            anthropic.AsyncAnthropic(api_key=server.api_key, base_url=server.base_url)
        )
        session = await app.beta.sessions.create(
            agent=agent,
            environment_id=environment.id,
            initial_events=first_message(recording),  # type: ignore[arg-type]
        )
        worker = app.beta.environments.work.worker(
            environment_id=environment.id, environment_key=environment.key, workdir=WORKSPACE
        )
        serving = asyncio.create_task(worker.run())
        await play_user(app, session.id, recording)
        await server.until(has_ended(session.id), _SECONDS, f"{draft.name} to end")
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        reader = stack.enter_context(anthropic.Anthropic(api_key=server.api_key, base_url=server.base_url))
        header, events = await asyncio.to_thread(fetch, reader, session.id, draft.name)
    write(path, header.model_copy(update={"description": draft.description, "agent": draft.agent()}), events)
    path.chmod(0o644)
    return path


def main(names: list[str]) -> None:
    """Compose the named drafts, or all."""
    for draft in DRAFTS:
        if names and draft.name not in names:
            continue
        WORKSPACE.mkdir()  # fails where something is there: it would be lost
        try:
            print(asyncio.run(compose(draft, SHIPPED)))
        finally:
            _end_leftovers()
            shutil.rmtree(WORKSPACE)


def _end_leftovers() -> None:
    """End what the drafts started in the background: the SDK's toolset ends its shell alone."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "cwd").readlink().is_relative_to(WORKSPACE)
        except OSError:
            continue  # it ended meanwhile
        if inside:
            os.kill(int(process.name), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
