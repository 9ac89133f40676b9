"""The timeline: what happened to a session and its sandbox, when, how long it took, what it printed and changed.

Works on the log file alone: beside the running service, after it is gone, and on a copy.

    with SqliteLog(path, read_only=True) as log:
        timeline = read(log, find(log, "sesn_01"))

From the file to the screen: `source` reads the rows of one session, `build` makes calls, notes and claims of them,
`describe` says each in a few words, `text` makes what the guest wrote safe to print, `tree` and `lines` draw it,
`plain` is the same as JSON, and `follow` goes on as the log grows.
"""

from replay.timeline.build import Builder
from replay.timeline.model import Call, Claim, Note, Posted, Status, Timeline, Totals
from replay.timeline.source import Ambiguous, NotInLog, Source, Subject, find, read

__all__ = [
    "Ambiguous",
    "Builder",
    "Call",
    "Claim",
    "NotInLog",
    "Note",
    "Posted",
    "Source",
    "Status",
    "Subject",
    "Timeline",
    "Totals",
    "find",
    "read",
]
