"""How a visitor and the process that runs a sandbox speak: frames on a unix socket, one connection for each visit.

The frames are those of `actors.guest.frames`. A visit begins with OPEN and a request in JSON; OPEN and JSON answers
it, or RESET `{"error", "next", "exit_code"}`, which may come later too and ends it. Then, by the kind of the request:

| kind       | visitor sends                                              | it is sent                                 |
|------------|------------------------------------------------------------|--------------------------------------------|
| `find`     |                                                            |                                            |
| `exec`     | DATA 0 its input, END 0; OPEN `{"resize"}` or `{"signal"}` | DATA 1 and 2; CREDIT 0; END `{"exit_code"}`|
| `forward`  | nothing: it lasts until the connection ends                |                                            |
| `connect`  | DATA 0 and END 0; a connection that breaks has no END      | DATA 0 and END 0                           |
| `copy_in`  | a tree (`actors.guest.trees`), END and all                 | END `{"bytes", "files"}`                   |
| `copy_out` |                                                            | a tree, then END `{"bytes", "files"}`      |
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from actors.guest import frames
from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "doors"
"""In the home: the sockets, each of a process that runs sandboxes."""
HOST_DOOR = "host.sock"
"""That of the host, which knows them all."""
REQUEST_MAX = 60_000
"""Bytes of a request: one frame to the guest must hold it with what is added."""
FAILED = 125
"""Exit code of `exec` where it failed itself, as users of containers know it."""


class VisitorGone(Exception):
    """Raised where the visitor's end of the connection is closed, or breaks the protocol."""


@dataclass(eq=False)
class VisitRefused(HourglassError):
    """{reason}."""

    reason: str
    step: str = "`hourglass sandboxes` and `hourglass timeline` show how it stands."
    exit_code: int = FAILED
    next_step = "{step}"


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL byte")
    return text


_Text = Annotated[str, AfterValidator(_no_nul)]
_Path = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_no_nul)]
_Id = Annotated[str, Field(max_length=100)]
_Port = Annotated[int, Field(ge=1, le=65535)]
_Cells = Annotated[int, Field(ge=1, le=65535)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Find(_Asked):
    """Where a target's sandbox is reached: `{"sandbox_id", "session_id", "door"}`."""

    kind: Literal["find"] = "find"
    target: _Text


class Exec(_Asked):
    """Run a program: `{"process_id"}`."""

    kind: Literal["exec"] = "exec"
    sandbox_id: _Id
    argv: Annotated[list[_Text], Field(min_length=1)]
    cwd: _Text = ""
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], _Text] = {}
    terminal: tuple[_Cells, _Cells] | None = None
    """Rows and columns."""
    by: Annotated[str, Field(max_length=40)] = "api"


class Forward(_Asked):
    """Open a forward, for as long as the connection lasts: `{"forward_id"}`."""

    kind: Literal["forward"] = "forward"
    sandbox_id: _Id
    port: _Port


class Connect(_Asked):
    """One connection of an open forward."""

    kind: Literal["connect"] = "connect"
    sandbox_id: _Id
    forward_id: _Id


class CopyIn(_Asked):
    """Write a tree into the sandbox."""

    kind: Literal["copy_in"] = "copy_in"
    sandbox_id: _Id
    path: _Path
    name: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_no_nul)]
    """What it is called where `path` is a folder."""


class CopyOut(_Asked):
    """Read a tree out of the sandbox."""

    kind: Literal["copy_out"] = "copy_out"
    sandbox_id: _Id
    path: _Path
    recursive: bool = False
    max_bytes: Annotated[int, Field(ge=0)]


class Control(_Asked):
    """What a visitor tells of a program that runs."""

    resize: tuple[_Cells, _Cells] | None = None
    signal: Annotated[int, Field(ge=1, le=64)] | None = None


Visit = Exec | Forward | Connect | CopyIn | CopyOut
Request = Find | Visit
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])


def encode_request(request: Request) -> bytes:
    """The frame of a request. Raises `VisitRefused` where it is too long, or no text."""
    try:
        payload = request.model_dump_json().encode()
    except ValueError:
        raise VisitRefused("a request must be UTF-8", "Write it in UTF-8.") from None
    if len(payload) > REQUEST_MAX:
        step = "Put it into a file, `hourglass cp` that into the sandbox, and run it there."
        raise VisitRefused(f"a request of {len(payload):,} bytes is longer than {REQUEST_MAX:,}", step)
    return frames.encode(frames.OPEN, frames.CONTROL, payload)


def checked(make: type[Exec | Forward | CopyIn | CopyOut], **values: Any) -> Any:
    """A request of ours. Raises `VisitRefused` that names what is wrong with it."""
    try:
        return make(**values)
    except ValidationError as error:
        raise VisitRefused(_explained(error), "Correct that.") from None


def parse_request(payload: bytes) -> Request:
    """The request in a frame. Raises `VisitRefused`."""
    try:
        return _REQUEST.validate_json(payload)
    except ValidationError as error:
        step = "Use the same version of Hourglass for the command and for the service."
        raise VisitRefused(f"the request is not understood: {_explained(error)}", step) from None


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])[:100]}: {first['msg']}"


def refusal(error: Exception, exit_code: int = FAILED) -> bytes:
    """The payload of a RESET."""
    said: dict[str, object] = {"error": str(error).rstrip(".")[:4000], "exit_code": exit_code}
    if isinstance(error, HourglassError):
        said["next"] = error.advice[:4000]
    if isinstance(error, VisitRefused):
        said["exit_code"] = error.exit_code
    return json.dumps(said).encode()


def refused(payload: bytes) -> VisitRefused:
    """The error that a RESET stands for."""
    said = json.loads(payload)
    error = VisitRefused(str(said.get("error")), exit_code=int(said.get("exit_code", FAILED)))
    if said.get("next"):
        error.step = str(said["next"])
    return error


@contextmanager
def address(path: Path) -> Iterator[str]:
    """A socket's path by way of its folder's descriptor: an address holds 107 bytes, and a home may lie deep."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


class Line:
    """One end of a connection. Its methods raise `VisitorGone` where the other one is closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def frame(self) -> frames.Frame:
        """The next frame."""
        try:
            kind, channel, length = frames.header(await self.reader.readexactly(frames.HEADER_BYTES))
            return frames.Frame((kind, channel, await self.reader.readexactly(length)))
        except (OSError, asyncio.IncompleteReadError, frames.FrameError) as error:
            raise VisitorGone(str(error)) from error

    async def send(self, kind: int, channel: int, payload: bytes = b"") -> None:
        """Send a frame, as fast as it is read."""
        await self.send_raw(frames.encode(kind, channel, payload))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes, as fast as they are read."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError as error:
            raise VisitorGone(str(error)) from error

    async def tell(self, **said: object) -> None:
        """Answer a request."""
        await self.send(frames.OPEN, frames.CONTROL, json.dumps(said).encode())

    async def conclude(self, **said: object) -> None:
        """Say how it ended."""
        await self.send(frames.END, frames.CONTROL, json.dumps(said).encode())
