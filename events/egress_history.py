"""What sandboxes reached and were refused, and what another policy would have made of it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from events.egress_policy import DEFAULT_PORTS, INTERNAL_SUFFIX, EntryInvalid, Policy
from events.errors import HourglassError
from events.views import EGRESS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from events.egress_policy import Entry
    from events.sqlite_log import SqliteLog

_HTTP, _HTTPS = DEFAULT_PORTS
_MOST_ENTRIES_BYTES = 1024 * 1024


@dataclass(eq=False)
class PolicyUnreadable(HourglassError):
    """{path} is no policy: {detail}."""

    path: Path
    detail: str
    next_step = "Write one entry on a line, as example.com or *.example.com:443; what follows a # is a remark."


def read_policy(path: Path) -> list[str]:
    """The entries of a file, one on a line; empty lines and what follows a `#` are nothing.

    Raises:
        PolicyUnreadable: the file can't be read, or a line is no entry.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_ENTRIES_BYTES + 1)
    except OSError as error:
        raise PolicyUnreadable(path=path, detail=error.strerror or "it can't be read") from error
    if len(raw) > _MOST_ENTRIES_BYTES:
        raise PolicyUnreadable(path=path, detail="it has more than 1 MiB")
    try:
        lines = [line.partition("#")[0].strip() for line in raw.decode().splitlines()]
        return list(Policy.parse(line for line in lines if line).texts)
    except (UnicodeDecodeError, EntryInvalid) as error:
        detail = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).rstrip(".")
        raise PolicyUnreadable(path=path, detail=detail) from error


def rows(log: SqliteLog, sandboxes: Sequence[str] | None, after: int = 0) -> list[dict[str, Any]]:
    """What was asked of the network, as the view `egress` has it, in order.

    Args:
        sandboxes: ids; None: of all.
        after: a position of the log.
    """
    # Not by the view in the file: that is as old as the last writer of it.
    sql = f"SELECT * FROM ({EGRESS}) WHERE position > ?"
    if sandboxes is None:
        return log.query_dicts(sql, (after,))
    marks = ", ".join("?" * len(sandboxes))
    return log.query_dicts(f"{sql} AND sandbox_id IN ({marks})", (after, *sandboxes))


def decide(policy: Policy, host: str, port: int | None, address: str = "") -> Entry | None:
    """The entry that lets a connection through, or a name be resolved where `port` is None; or None.

    A name with a credential (`NAME.internal`) stands for its real one, which is asked for at 443.

    Args:
        host: a normal name, or a literal address.
        address: what the name led to, where that is known: a private one must be listed as well.
    """
    if host.endswith(INTERNAL_SUFFIX):
        host, port = host.removesuffix(INTERNAL_SUFFIX), _HTTPS if port in (None, _HTTP) else -1
    if port is None:
        return policy.name_allowed(host)
    entry = policy.allowed(host, port)
    if entry is None or not _is_private(address) or policy.lists_address(address, port):
        return entry
    return None


def _is_private(address: str) -> bool:
    try:
        return not ip_address(address).is_global
    except ValueError:
        return False  # not known


@dataclass(slots=True)
class Place:
    """One thing that was asked for, over a history, and what a policy makes of it."""

    host: str
    port: int | None
    protocol: str
    was: str
    """`connected` or `refused`."""
    reason: str
    """Why it was refused; "" where it was not."""
    rule_then: str
    rule_now: str
    """The entry that would allow it; "" where none would."""
    times: int
    first_at: str
    sandboxes: list[str]

    @property
    def changes(self) -> bool:
        """Whether the policy would have decided otherwise."""
        return (self.was == "connected") != bool(self.rule_now)


def judge(told: Iterable[dict[str, Any]], policy: Policy) -> list[Place]:
    """What a policy would have made of a history, each place once.

    What was refused for another reason than the list, as a name that nobody resolves, is refused under any list.
    """
    places: dict[tuple[object, ...], Place] = {}
    closed: dict[tuple[object, ...], int] = {}
    for row in told:
        host, port = str(row["host"]), row["port"]
        if row["decision"] == "closed":
            closed[host, port] = closed.get((host, port), 0) + int(row["times"])
            continue
        was, reason = row["decision"], row["reason"] or ""
        key = (host, port, row["protocol"], was, reason)
        if key not in places:
            entry = None
            if reason in ("", "not_allowed") and row["protocol"] != "udp":
                entry = decide(policy, host, port, row["address"] or "")
            rule = entry.text if entry is not None else ""
            places[key] = Place(host, port, row["protocol"], was, reason, row["rule"] or "", rule, 0, row["time"], [])
        place = places[key]
        place.times += int(row["times"])
        if row["sandbox_id"] not in place.sandboxes:
            place.sandboxes.append(row["sandbox_id"])
    for place in places.values():
        if place.was == "connected":
            # One event stands for several connections, which their ends count.
            place.times = max(place.times, closed.get((place.host, place.port), 0))
    return list(places.values())
