"""The recorded-session server: the public API of Claude Managed Agents, with a recording in the model's place."""

from replay.server.faults import Wrong
from replay.server.recorded import (
    EnvironmentAccess,
    RecordedServer,
    ServerNotStarted,
    WaitTimedOut,
    has_ended,
    has_status,
)
from replay.server.settings import ServerSettings

__all__ = [
    "EnvironmentAccess",
    "RecordedServer",
    "ServerNotStarted",
    "ServerSettings",
    "WaitTimedOut",
    "Wrong",
    "has_ended",
    "has_status",
]
