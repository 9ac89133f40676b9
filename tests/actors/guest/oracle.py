"""The SDK's own toolset and runner, side by side with the agent: the same calls to both must read the same."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from anthropic.lib.tools._beta_functions import aclose_runnable_tool
from anthropic.lib.tools._beta_session_runner import SessionToolRunner
from anthropic.lib.tools.agent_toolset import AgentToolContext, beta_agent_toolset_20260401
from anthropic.types.beta.sessions import BetaManagedAgentsAgentToolUseEvent

from actors.machines.guest import GuestConnection
from tests.actors.guest.conftest import greeted, running_agent

Said = tuple[list[dict[str, Any]], bool]
# Of one length, because limits count the characters of paths.
OURS, THEIRS, NEITHER = "hglass", "oracle", "folder"
_GONE = "bash: bash session terminated; restart required"
# What the SDK says instead for a moment, until it has noticed that its shell ended.
_RACES = re.compile(r"(Broken|Closed)ResourceError\(.*\)")
# What ends the output of a command, which bash quotes in some of its messages. Of one length, else each has its own.
_MARK = re.compile(r"__(?:ANT_CM('')?D|HG_CAL('')?L)_[0-9a-f]{32}_DONE__")


class Pair:
    """Two working directories, two sets of tools."""

    def __init__(self, base: Path, path: str, runner: asyncio.Runner) -> None:
        self.folders = [base / OURS, base / THEIRS]
        self._runner = runner
        self._path = path
        self._calls = 0
        self.guest: GuestConnection | None = None
        self._tools: dict[str, Any] = {}

    def renew(self) -> None:
        """Empty folders, a new toolset of the SDK's; our shell is started again by the test."""
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        self.close_oracle()
        env = {"PATH": self._path, "HOME": str(self.folders[0]), "LANG": "C.UTF-8"}
        context = AgentToolContext(workdir=self.folders[1], env=env)
        self._tools = {tool.name: tool for tool in beta_agent_toolset_20260401(context)}

    def close_oracle(self) -> None:
        for tool in self._tools.values():
            self._runner.run(aclose_runnable_tool(tool))
        self._tools = {}

    def run(self, tool: str, given: dict[str, Any]) -> tuple[Said, Said]:
        """What both say, with their folders' names made equal."""
        ours, theirs = (self._localised(given, name) for name in (OURS, THEIRS))
        return (
            self._normal(self._runner.run(self._ours(tool, ours)), OURS),
            self._normal(self._runner.run(self._theirs(tool, theirs)), THEIRS),
        )

    async def _ours(self, tool: str, given: dict[str, Any]) -> Said:
        assert self.guest is not None
        self._calls += 1
        result = await self.guest.run_tool(f"call_{self._calls}", tool, given, timeout=150)
        return list(result.content), result.is_error

    async def _theirs(self, tool: str, given: dict[str, Any]) -> Said:
        # It logs every exception that it turns into a result; hundreds of them drown a failure.
        logging.getLogger("anthropic").setLevel(logging.CRITICAL)
        event = BetaManagedAgentsAgentToolUseEvent.construct(id="x", name=tool, input=given, type="agent.tool_use")
        # The method uses nothing of the runner.
        posted, _ = await SessionToolRunner._call_tool(cast(Any, None), self._tools[tool], event, given)
        return [dict(block) for block in cast(Any, posted["content"])], cast(bool, posted["is_error"])

    def _localised(self, given: dict[str, Any], name: str) -> dict[str, Any]:
        base = str(self.folders[0].parent)
        return {
            key: value.replace("{base}", base).replace("{here}", name) if isinstance(value, str) else value
            for key, value in given.items()
        }

    @staticmethod
    def _normal(said: Said, name: str) -> Said:
        content = [
            {**block, "text": _MARK.sub("MARK", block["text"].replace(name, NEITHER))}
            if block["type"] == "text"
            else block
            for block in said[0]
        ]
        if content[0]["type"] == "text" and _RACES.fullmatch(content[0]["text"]):
            content = [{"type": "text", "text": _GONE}]
        return content, said[1]

    def trees(self) -> tuple[dict[str, object], dict[str, object]]:
        """Everything in both folders."""
        return tree(self.folders[0]), tree(self.folders[1])

    def fix_times(self) -> None:
        """Give every file a time of its own, the same in both folders."""
        for folder in self.folders:
            for number, path in enumerate(sorted(folder.rglob("*"))):
                os.utime(path, (number, number), follow_symlinks=False)


def tree(folder: Path) -> dict[str, object]:
    """Names, kinds, modes and contents."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(folder))
        if stat.S_ISLNK(status.st_mode):
            found[name] = os.readlink(path).replace(folder.name, NEITHER)
        else:
            found[name] = (stat.filemode(status.st_mode), path.read_bytes() if path.is_file() else None)
    return found


@contextmanager
def paired(base: Path, path: str = "/usr/bin:/bin") -> Iterator[Pair]:
    """A pair; `path` is where both look for programs."""
    (base / OURS).mkdir(parents=True)
    with ExitStack() as stack:
        stream = stack.enter_context(running_agent(base / OURS, path=path))
        runner = stack.enter_context(asyncio.Runner())
        pair = Pair(base, path, runner)
        connection = greeted(stream)
        pair.guest = runner.run(connection.__aenter__())
        pair.renew()
        try:
            yield pair
        finally:
            pair.close_oracle()
            runner.run(connection.__aexit__(None, None, None))
