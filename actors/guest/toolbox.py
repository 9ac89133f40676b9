"""The six tools by name: from a checked input to the content of a result."""

from __future__ import annotations

import json
import threading

from actors.guest import files
from actors.guest.arguments import TOOLS, checked
from actors.guest.errors import Stopped, ToolFailure, exception_text, well_formed
from actors.guest.shell import CommandTimeout, Shell, ShellGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.guest.processes import Children
    from actors.guest.shell import Control

COMMAND_S = 120.0
"""How long a command may run that does not say (contract §12)."""

NO_OUTPUT = "(no output)"
INTERRUPTED = "[interrupted]"


class Outcome:
    """The result of a call, ready to be sent."""

    def __init__(
        self,
        content: str | files.Media,
        *,
        is_error: bool = False,
        output_bytes: int = 0,
        exit_code: int | None = None,
    ) -> None:
        self.content = content
        self.is_error = is_error
        self.output_bytes = output_bytes
        self.exit_code = exit_code

    def encoded(self) -> list[bytes | bytearray]:
        """The JSON `{"content", "is_error", "output_bytes", "exit_code"}` in pieces: an image is not copied."""
        rest = (
            f', "is_error": {json.dumps(self.is_error)}, "output_bytes": {self.output_bytes}, '
            f'"exit_code": {json.dumps(self.exit_code)}}}'
        ).encode()
        if isinstance(self.content, str):
            text = well_formed(self.content) or NO_OUTPUT
            return [b'{"content": [' + json.dumps({"type": "text", "text": text}).encode() + b"]" + rest]
        media = self.content
        head = f'{{"content": [{{"type": "{media.block_type}", "source": {{"type": "base64", "media_type": '
        return [f'{head}"{media.media_type}", "data": "'.encode(), media.data, b'"}}]' + rest]


class Toolbox:
    """Runs the tools. One call at a time."""

    def __init__(self, children: Children, workdir: str, env: Mapping[str, str]) -> None:
        self._children = children
        self._workdir = workdir
        self._env = env
        self.lock = threading.Lock()
        """Held while a shell is made or judged, and by the guard while it ends one with all that it started."""
        self.shell: Shell | None = None
        """The shell of the sandbox, once a command asked for one."""
        self.notice = ""
        """What the next result of `bash` has to say of something that happened between the calls."""

    def run(
        self, call_id: str, tool: str, given: object, control: Control, on_output: Callable[[bytes], None]
    ) -> Outcome:
        """The outcome of one call; whatever a tool raises is an error result, as with the SDK's runner."""
        try:
            if tool not in TOOLS:
                raise ToolFailure(f"there is no tool {tool!r} here; there are {', '.join(sorted(TOOLS))}")
            return self._run(call_id, tool, checked(tool, given), control, on_output)
        except ToolFailure as failure:
            return Outcome(str(failure), is_error=True)
        except Stopped:
            return Outcome(self.stopped_text(tool, control), is_error=True)
        except Exception as error:
            return Outcome(exception_text(error), is_error=True)

    @staticmethod
    def stopped_text(tool: str, control: Control) -> str:
        """What is said of a call that had to end early."""
        return f"tool {tool!r} interrupted" if control.interrupted else f"tool {tool!r} timed out"

    def _run(
        self, call_id: str, tool: str, args: Mapping[str, object], control: Control, on_output: Callable[[bytes], None]
    ) -> Outcome:
        def checkpoint() -> None:
            if control.stopped or control.interrupted:
                raise Stopped

        # The values were checked one by one against the very signature that they are passed to.
        if tool == "bash":
            return self._bash(call_id, args, control, on_output)
        if tool == "read":
            return Outcome(files.read(self._workdir, checkpoint=checkpoint, **args))  # type: ignore[arg-type]
        if tool == "write":
            return Outcome(files.write(self._workdir, **args))  # type: ignore[arg-type]
        if tool == "edit":
            return Outcome(files.edit(self._workdir, **args))  # type: ignore[arg-type]
        # Rarer, and it brings imports.
        from actors.guest import search

        if tool == "glob":
            return Outcome(search.glob(self._workdir, checkpoint=checkpoint, **args))  # type: ignore[arg-type]
        return Outcome(
            search.grep(self._workdir, children=self._children, env=self._env, control=control, **args)  # type: ignore[arg-type]
        )

    def _bash(
        self, call_id: str, args: Mapping[str, object], control: Control, on_output: Callable[[bytes], None]
    ) -> Outcome:
        if args["restart"]:
            with self.lock:
                if self.shell:
                    self.shell.kill()
                    self.shell = None
                self.shell = Shell(self._children, self._workdir, self._env)
            return Outcome("bash session restarted")
        command, milliseconds = args["command"], args["timeout_ms"]
        if not command:
            raise ToolFailure("bash: command is required")
        assert isinstance(command, str)
        assert milliseconds is None or isinstance(milliseconds, int)
        seconds = milliseconds / 1000.0 if milliseconds else COMMAND_S
        shell = self._ready_shell()
        notice, self.notice = self.notice, ""
        try:
            text, status, printed = shell.run(
                command, seconds=seconds, name=call_id, control=control, on_output=on_output
            )
        except ShellGone:
            raise ToolFailure(_joined(notice, "bash: bash session terminated; restart required")) from None
        except CommandTimeout:
            raise ToolFailure(
                _joined(notice, f"bash: bash command timed out after {seconds}s", self._verdict())
            ) from None
        verdict = self._verdict()
        interrupted = INTERRUPTED if control.interrupted else ""
        return Outcome(
            _joined(notice, text, interrupted, verdict),
            is_error=bool(status != 0 or interrupted or verdict),
            output_bytes=printed,
            exit_code=status if status >= 0 else None,
        )

    def _ready_shell(self) -> Shell:
        """The shell; a new one where there is none, or where we ended it: nobody could know to restart it."""
        with self.lock:
            # Processes may have been ended after the last call had its result: the next one tells.
            self.notice = self._judge() or self.notice
            if self.shell is None:
                self.shell = Shell(self._children, self._workdir, self._env)
            return self.shell

    def _verdict(self) -> str:
        """Why processes were ended while this call ran; empty where none were."""
        with self.lock:
            return self._judge()

    def _judge(self) -> str:
        """Take the shell's verdict, and the shell away where it was ended."""
        shell = self.shell
        if shell is None:
            return ""
        verdict, shell.verdict = shell.verdict, ""
        if shell.condemned:
            shell.kill()
            self.shell = None
        return verdict


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)
