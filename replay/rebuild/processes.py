"""The processes of a machine, and the environment of its shell, as the guest itself tells them.

A program of bash's own words reads /proc, in which there is all but what a shell set since it began: that the shell's
own `bash` tool is asked. A guest may say what it likes. It is bounded and read strictly, and nothing but shown.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.machines.visiting import Program
from replay.rebuild.errors import ProcessesUnreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actors.machines.protocol import Machine

_LOOK = r"""
for folder in /proc/[0-9]*; do
  pid=${folder#/proc/}
  # The agent, and this.
  if [ "$pid" = 1 ] || [ "$pid" = "$$" ]; then continue; fi
  line= words=() variables=()
  { IFS= read -r -d '' line < "$folder/stat"; } 2> /dev/null
  { mapfile -d '' -t -n 4096 words < "$folder/cmdline"; } 2> /dev/null
  { mapfile -d '' -t -n 4096 variables < "$folder/environ"; } 2> /dev/null
  printf '%s\0' "$pid" "$line" "${#words[@]}" "${words[@]}" "${#variables[@]}" "${variables[@]}"
done
"""
_ENVIRONMENT = "base64 /proc/self/environ"
_MOST_BYTES = 8 * 1024**2
_MOST_PROCESSES = 10_000
_SECONDS = 30.0
_PID = re.compile(r"[1-9][0-9]{0,9}")
_COUNT = re.compile(r"0|[1-9][0-9]{0,3}")
_STAT = re.compile(r"([0-9]{1,10}) \((.{0,256})\) ([A-Za-z]) ([0-9]{1,10})( -?[0-9]+)*\s*", re.DOTALL)
_STATES = {"T": "stopped", "t": "stopped", "Z": "ended", "X": "ended"}
"""The others are running: whether on a CPU or waiting is chance."""
_NOT_ITS_OWN = "_"
"""A variable that names the program that asks."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a guest. Text that is no UTF-8 has escapes."""

    pid: int
    parent: int
    name: str
    state: str
    """`running`, `stopped` or `ended`: nobody has asked for its status yet."""
    command: tuple[str, ...]
    """Its arguments, the program first; empty for one that ended."""
    environment: dict[str, str]
    """That it began with."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it, without the environment."""
        return {
            "pid": self.pid,
            "parent": self.parent,
            "name": self.name,
            "state": self.state,
            "command": list(self.command),
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """What a machine's guest says of itself."""

    processes: tuple[Process, ...]
    """All but the agent, by pid."""
    environment: dict[str, str] | None
    """What the agent's shell gives to the next command; None where it does not tell."""
    because: str
    """Why not, for people."""


async def look(machine: Machine, target: str) -> Seen:
    """Ask the machine of a version whose guest is not quiet. Raises `ProcessesUnreadable`, `MachineError`."""
    try:
        processes = parse_processes(await _ask(machine))
    except ValueError as error:
        raise ProcessesUnreadable(target=target, detail=str(error)) from error
    # After it: where there is no shell, this starts one.
    result = await machine.guest.run_tool(
        f"look-{secrets.token_hex(8)}", "bash", {"command": _ENVIRONMENT}, timeout=_SECONDS
    )
    text = "\n".join(str(block.get("text", "")) for block in result.content)
    if result.is_error:
        return Seen(processes, None, f"its shell can't be asked: {text[:200]}")
    try:
        return Seen(processes, parse_environment(text), "")
    except ValueError:
        return Seen(processes, None, f"what its shell says is no environment: {text[:200]}")


async def _ask(machine: Machine) -> bytes:
    """What it says of its processes. Raises `ValueError` where it does not, or too much."""
    program = Program(f"prc-{secrets.token_hex(8)}", ["/bin/bash", "--norc", "-c", _LOOK], env={"LC_ALL": "C"})
    said = bytearray()
    try:
        async with asyncio.timeout(_SECONDS), machine.guest.process(program) as process:
            while piece := await process.read():
                said += piece[1] if piece[0] == 1 else b""
                if len(said) > _MOST_BYTES:
                    raise ValueError(f"its guest says more than {_MOST_BYTES:,} bytes of them")
    except TimeoutError:
        raise ValueError(f"its guest did not tell them within {_SECONDS:g} s") from None
    except OSError as error:
        raise ValueError(f"bash can't be run in it: {error.strerror}") from error
    return bytes(said)


def parse_processes(said: bytes) -> tuple[Process, ...]:
    """What the program in the guest printed. Raises `ValueError` where it can't have."""
    if said and not said.endswith(b"\0"):
        raise _unreadable("it ends in the middle")
    fields = iter([_text(one) for one in said.split(b"\0")[:-1]])
    found: dict[int, Process] = {}
    for pid in fields:
        line = next(fields, "")
        words = tuple(_counted(fields))
        variables = _variables(_counted(fields))
        if not _PID.fullmatch(pid) or int(pid) in found or len(found) == _MOST_PROCESSES:
            raise _unreadable("the list of them can't be")
        if not line:
            continue  # it ended meanwhile
        stat = _STAT.fullmatch(line)
        if stat is None or stat[1] != pid:
            raise _unreadable(f"its line of process {pid} can't be")
        state = _STATES.get(stat[3], "running")
        found[int(pid)] = Process(int(pid), int(stat[4]), stat[2], state, words, variables)
    return tuple(found[pid] for pid in sorted(found))


def parse_environment(text: str) -> dict[str, str]:
    """The variables in base64, with any white space. Raises `ValueError`."""
    content = base64.b64decode("".join(text.split()), validate=True)
    if content and not content.endswith(b"\0"):
        raise ValueError("it ends in the middle")
    found = _variables(_text(one) for one in content.split(b"\0")[:-1])
    found.pop(_NOT_ITS_OWN, None)
    return found


def _counted(fields: Iterator[str]) -> Sequence[str]:
    count = next(fields, "")
    if not _COUNT.fullmatch(count):
        raise _unreadable("the list of them can't be")
    found = [one for _, one in zip(range(int(count)), fields, strict=False)]
    if len(found) != int(count):
        raise _unreadable("it ends in the middle")
    return found


def _variables(given: Sequence[str] | Iterator[str]) -> dict[str, str]:
    """As `getenv` finds them: the first of a name."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if equals and name:
            found.setdefault(name, value)
    return found


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _unreadable(detail: str) -> ValueError:
    return ValueError(f"what its guest says of them is malformed: {detail}")
