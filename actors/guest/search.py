"""`glob` and `grep`: text for text as the SDK's (contract §12).

`grep` is ripgrep where the guest has it, outside the working directory; else a walk in Python, in a process of its own:
a regular expression can run for ever and holds the interpreter meanwhile, and a process can be ended.
"""

from __future__ import annotations

import os
import select
import signal
import time

from actors.guest import interpreter
from actors.guest.errors import Stopped, ToolFailure
from actors.guest.paths import canonical, resolve, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.guest.processes import Children
    from actors.guest.shell import Control

GLOB_MAX = 200
"""Paths that one `glob` names."""
WALK_MAX = 50_000
"""Files that one search looks at."""
GREP_CHARACTERS = 100 * 1024
_KEPT_BYTES = 4 * GREP_CHARACTERS + 8
"""Enough bytes for that many characters, and one more."""
WALK_CPU_S = 30


def glob(workdir: str, pattern: str, path: str | None, checkpoint: Callable[[], None]) -> str:
    """The files that match, newest first."""
    from pathlib import Path, PurePosixPath

    if Path(pattern).is_absolute():
        raise ToolFailure("glob: absolute pattern not permitted; pass a relative pattern (and optionally path)")
    if ".." in PurePosixPath(pattern).parts:
        raise ToolFailure("glob: '..' is not permitted in the pattern")
    root = _root(workdir, "glob", path)
    found: list[tuple[float, str]] = []
    seen = 0
    try:
        for match in Path(root).glob(pattern):
            checkpoint()
            seen += 1
            name = str(match)
            if _inside(name, root):
                found.append((_changed(name), name))
            if seen >= WALK_MAX:
                break
    except (ValueError, OSError) as error:
        raise ToolFailure(f"glob: {error}") from error
    found.sort(key=lambda entry: entry[0], reverse=True)
    return "\n".join(name for _, name in found[:GLOB_MAX]) or "no matches"


def _root(workdir: str, tool: str, path: str | None) -> str:
    if not path:
        return os.path.realpath(workdir)
    try:
        return resolve(workdir, path)
    except ValueError as error:
        raise ToolFailure(f"{tool}: {error}") from error


def _inside(path: str, root: str) -> bool:
    try:
        return within(canonical(path), root)
    except OSError:
        return False


def _changed(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def grep(
    workdir: str, pattern: str, path: str | None, *, children: Children, env: Mapping[str, str], control: Control
) -> str:
    """The lines that match a regular expression."""
    root = _root(workdir, "grep", path)
    if program := _ripgrep(workdir, env):
        argv = [program, "--no-config", "-n", "--no-heading", "-e", pattern, "--", root]
        code, out, err = _run(argv, b"", children, env, control)
        if code == 1:
            return "no matches"
        if code != 0:
            raise ToolFailure(f"grep: rg failed: {err.decode(errors='replace')}")
        text = out.decode(errors="replace")
        if len(text) > GREP_CHARACTERS:
            text = text[:GREP_CHARACTERS] + f"\n[output truncated at {GREP_CHARACTERS} bytes]"
        return text
    walk = os.path.join(os.path.dirname(os.path.abspath(__file__)), "walk.py")
    code, out, err = _run(
        [*interpreter.python(), walk],
        f"{root}\0{pattern}".encode(errors="surrogatepass"),
        children,
        env,
        control,
    )
    if code == -signal.SIGVTALRM:
        raise ToolFailure(f"grep: timed out after {WALK_CPU_S}s")
    if code == 2:
        raise ToolFailure(out.decode(errors="surrogatepass"))
    if code != 0:
        raise RuntimeError(err.decode(errors="replace")[-1000:] or f"the search ended with status {code}")
    return out.decode(errors="surrogatepass")


def _ripgrep(workdir: str, env: Mapping[str, str]) -> str | None:
    """The first `rg` of the PATH that the file tools can't have put there."""
    root = os.path.realpath(workdir).casefold()
    for folder in env.get("PATH", "").split(":"):
        program = os.path.join(folder, "rg")
        if not os.path.isabs(folder) or not os.access(program, os.X_OK) or os.path.isdir(program):
            continue
        if not within(os.path.realpath(program).casefold(), root):
            return program
    return None


def _run(
    argv: list[str], stdin: bytes, children: Children, env: Mapping[str, str], control: Control
) -> tuple[int, bytes, bytes]:
    """Run a program to its end; (exit code, output, errors), each of the two cut at `_KEPT_BYTES`.

    All of the output is taken, since only then the program tells whether it failed.
    """
    in_read, in_write = os.pipe2(os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    kept = {out_read: bytearray(), err_read: bytearray()}
    child = None
    try:
        try:
            child = children.spawn(argv, env=env, stdin=in_read, stdout=out_write, stderr=err_write, cwd="/")
        finally:
            for fd in (in_read, out_write, err_write):
                os.close(fd)
        # Small enough for a pipe that is empty.
        os.write(in_write, stdin)
        os.close(in_write)
        in_write = -1
        _collect(kept, control)
        while not child.ended.wait(0.5):
            _check(control)
        return child.exit_code, bytes(kept[out_read]), bytes(kept[err_read])
    except BrokenPipeError:
        raise RuntimeError(f"{argv[0]} ended before it read its input") from None
    finally:
        if child and not child.ended.is_set():
            os.killpg(child.pid, signal.SIGKILL)
        for fd in (in_write, out_read, err_read):
            if fd >= 0:
                os.close(fd)


def _collect(kept: dict[int, bytearray], control: Control) -> None:
    poll = select.poll()
    for fd in kept:
        poll.register(fd, select.POLLIN)
    left = len(kept)
    while left:
        _check(control)
        # Short, since an interruption sets a flag and wakes nobody here.
        for fd, _ in poll.poll(100):
            data = os.read(fd, 65536)
            if data:
                kept[fd] += data[: max(0, _KEPT_BYTES - len(kept[fd]))]
            else:
                poll.unregister(fd)
                left -= 1


def _check(control: Control) -> None:
    if control.stopped or control.interrupted or time.monotonic() >= control.deadline:
        raise Stopped
