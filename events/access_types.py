"""What people do in a sandbox beside the agent's calls: events of the stream `sandbox-<id>`.

The ids are made by the host, one for each process and each forward. An end is recorded by whoever finds it, so one that
a host's death cut short is ended by the next host, with what is still known of it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from events.payload import Payload


class SandboxProcessStarted(Payload):
    """A program was started in the machine, for a person or another program. Durable before the machine hears of it."""

    type: Literal["sandbox.process_started"] = "sandbox.process_started"
    process_id: str
    command: str
    """As a shell would read it."""
    terminal: bool
    """Whether it has a terminal of its own."""
    by: str
    """What asked for it: `exec`, `shell`, an API."""


class SandboxProcessEnded(Payload):
    """It ended, or nobody is connected to it any more, which ends it."""

    type: Literal["sandbox.process_ended"] = "sandbox.process_ended"
    process_id: str
    exit_code: int | None
    """128 and the signal's number where a signal ended it; None where nobody learnt of it."""
    seconds: float
    bytes_out: int
    """What it printed."""


class SandboxForwardOpened(Payload):
    """Connections from outside reach a port inside."""

    type: Literal["sandbox.forward_opened"] = "sandbox.forward_opened"
    forward_id: str
    port: Annotated[int, Field(ge=1, le=65535)]
    """In the sandbox, on its loopback."""


class SandboxForwardClosed(Payload):
    """They do not any more."""

    type: Literal["sandbox.forward_closed"] = "sandbox.forward_closed"
    forward_id: str
    seconds: float
    bytes_in: int
    """Into the sandbox, all connections together."""
    bytes_out: int


class SandboxFileCopied(Payload):
    """A file or a folder goes into the sandbox, or went out of it."""

    type: Literal["sandbox.file_copied"] = "sandbox.file_copied"
    path: str
    """In the sandbox."""
    direction: Literal["in", "out"]
    bytes: int | None
    """None where one that goes in begins; the next event says that it is there whole, and without it some may be."""
