"""A search without ripgrep: a program of its own, started by `search.grep`.

Standard input: the path, NUL, the regular expression. Standard output: the result. Exit status 0, or 2 where the output
is the error; a search that uses more CPU than it may is ended by SIGVTALRM.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHARACTERS = 100 * 1024
FILES = 50_000
LINE_BYTES = 2000
"""Longer lines are passed over: a backtracking expression takes for ever on them."""
CPU_SECONDS = 30
PASSED_OVER = (".git", "node_modules")


def files(root: str) -> Iterator[str]:
    """The regular files at and below a path, no link followed, at most `FILES`."""
    if os.path.isfile(root):
        yield root
        return
    seen = 0
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in PASSED_OVER]
        for name in names:
            path = os.path.join(folder, name)
            try:
                regular = stat.S_ISREG(os.lstat(path).st_mode)
            except OSError:
                continue
            if not regular:
                continue
            seen += 1
            if seen > FILES:
                return
            yield path


def lines(path: str) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines of a text file; none of a binary file, nor those that are too long."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if b"\0" in file.read(512):
                return
            file.seek(0)
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                if len(line) <= LINE_BYTES:
                    yield number, line.decode(errors="replace").rstrip("\r\n")
                while len(line) > LINE_BYTES and not line.endswith(b"\n"):
                    line = file.readline(1 << 16) or b"\n"
    except OSError:
        # What can't be read is not searched, as with the SDK.
        return


def search(expression: re.Pattern[str], root: str) -> str:
    """`path:line:text` of every line that matches."""
    hits: list[str] = []
    left = CHARACTERS
    for path in files(root):
        for number, line in lines(path):
            if expression.search(line):
                hit = f"{path}:{number}:{line}"
                left -= len(hit) + 1
                if left < 0:
                    return "\n".join([*hits, f"[output truncated at {CHARACTERS} bytes]"])
                hits.append(hit)
    return "\n".join(hits) or "no matches"


def main() -> int:
    """Read what to do, do it, say what came of it."""
    root, _, pattern = sys.stdin.buffer.read().decode(errors="surrogatepass").partition("\0")
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    status = 0
    try:
        result = search(re.compile(pattern), root)
    except re.error as error:
        status, result = 2, f"grep: invalid regex: {error}"
    sys.stdout.buffer.write(result.encode(errors="surrogatepass"))
    return status


if __name__ == "__main__":
    sys.exit(main())
