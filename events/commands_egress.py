"""`hourglass egress`: what sandboxes reached, what another policy would have made of it, and single decisions.

The commands that change a list are in `actors.commands_egress`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from events import sandbox_state, targets
from events.commands_entities import AsJson, Home, LogFile
from events.console import clean, console, duration, print_json, print_table, say, size, table
from events.egress_history import decide, judge, read_policy, rows
from events.egress_policy import INTERNAL_SUFFIX, Policy, normal_name
from events.errors import HourglassError
from events.home import log_path
from events.log import CaughtUp
from events.sqlite_log import SqliteLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from events.egress_history import Place

app = typer.Typer(
    name="egress",
    help="What sandboxes may reach of the network, what they reached, and what they were refused.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Target = Annotated[str, typer.Argument(help="A session's or a sandbox's id, or a beginning of it.")]
_Entries = Annotated[
    list[str] | None, typer.Argument(help="example.com, *.example.com, db.example.com:5432, 10.1.0.0/16:5432 …")
]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="A file with one entry on a line.")]

_COLUMNS = ("time", "sandbox", "decision", "host", "address", "rule", ">times", ">sent", ">received", ">for")
_STYLES = {"connected": "green", "refused": "red", "closed": ""}


@dataclass(eq=False)
class NothingToJudge(HourglassError):
    """There is no policy to judge by."""

    next_step = "Name entries (example.com …), or a file of them with --policy."


@dataclass(eq=False)
class NoPolicyNamed(HourglassError):
    """It is not said by whose list."""

    next_step = "Name a sandbox with --sandbox, or entries with --entry."


@dataclass(eq=False)
class HostInvalid(HourglassError):
    """{text} is no host: {reason}."""

    text: str
    reason: str
    next_step = "Write a name or an address, and maybe a port: example.com:443, 10.1.0.5:5432, [2001:db8::7]:443."


@app.command()
def log(
    target: Annotated[
        str | None, typer.Argument(help="A session's or a sandbox's id, or a beginning of it; default: all.")
    ] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused.")] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with each new event, until Ctrl-C.")] = False,
    home: Home = None,
    log_file: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Show who reached what, by which entry, and what was refused; with --json, one object on a line for each.

    A connection is told when it stands, and the ends of those to one place together, with their bytes and time.
    """
    path = log_path(home, log_file)
    with SqliteLog(path, read_only=True) as opened:
        boxes = None if target is None else targets.sandboxes(opened, target)
        last = opened.position()
        found = _wanted(rows(opened, boxes), refused=refused)
        if not found and not as_json and not follow:
            say("Nothing was refused." if refused else "Nothing was asked of the network.")
        _show(found, as_json=as_json)
        if follow:
            _follow(opened, target, last, refused=refused, as_json=as_json)


def _wanted(found: list[dict[str, Any]], *, refused: bool) -> list[dict[str, Any]]:
    return [row for row in found if not refused or row["decision"] == "refused"]


def _follow(opened: SqliteLog, target: str | None, after: int, *, refused: bool, as_json: bool) -> None:
    for row in opened.subscribe_rows(after):
        if isinstance(row, CaughtUp):
            sys.stdout.flush()
        elif row.type.startswith("egress."):
            # Asked for again each time: a session may have got another sandbox.
            boxes = None if target is None else targets.sandboxes(opened, target)
            found = [one for one in rows(opened, boxes, row.position - 1) if one["position"] == row.position]
            _show(_wanted(found, refused=refused), as_json=as_json, heading=False)


def _show(found: list[dict[str, Any]], *, as_json: bool, heading: bool = True) -> None:
    if as_json:
        for row in found:
            print_json(row)
    elif found:
        made = table(_COLUMNS, map(_cells, found))
        made.show_header = heading
        if not heading:
            # Each is a table of its own, and must stand under those before it.
            for column, width in zip(made.columns, (19, 20, 12, 30, 15, 20), strict=False):
                column.min_width = width
        console().print(made)


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    decision, reason = row["decision"], row["reason"] or ""
    said = f"{decision}: {reason.replace('_', ' ')}" if reason else decision
    over = "" if row["protocol"] == "tcp" else f" ({row['protocol']})"
    return (
        row["time"][:19].replace("T", " "),
        row["sandbox_id"],
        Text(clean(said), style=_STYLES.get(decision, "")),
        clean(f"{where(row['host'], row['port'])}{over}"),
        row["address"] or "",
        row["rule"] or "",
        f"{row['times']:,}",
        size(row["bytes_sent"]),
        size(row["bytes_received"]),
        duration(row["seconds"]),
    )


def where(host: str, port: int | None) -> str:
    """A place in one word."""
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@app.command("dry-run")
def dry_run(
    target: Target,
    entries: _Entries = None,
    policy: PolicyFile = None,
    home: Home = None,
    log_file: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what a policy, and no other entry, would have made of all that a session or a sandbox asked for.

    Names the connections that it would have refused, and the refusals that it would have allowed. Changes nothing.
    """
    given = [*(entries or []), *(read_policy(policy) if policy is not None else [])]
    if not given and policy is None:
        raise NothingToJudge
    parsed = Policy.parse(given)
    with SqliteLog(log_path(home, log_file), read_only=True) as opened:
        show_judged(opened, targets.sandboxes(opened, target), parsed, as_json=as_json)


def show_judged(opened: SqliteLog, boxes: Sequence[str], policy: Policy, *, as_json: bool) -> None:
    """Print what a policy would have made of the history of these sandboxes."""
    places = judge(rows(opened, boxes), policy)
    refused = [one for one in places if one.was == "connected" and one.changes]
    allowed = [one for one in places if one.was == "refused" and one.changes]
    alike = len(places) - len(refused) - len(allowed)
    if as_json:
        print_json(
            {
                "sandboxes": list(boxes),
                "policy": list(policy.texts),
                "would_refuse": [asdict(one) for one in refused],
                "would_allow": [asdict(one) for one in allowed],
                "unchanged": [asdict(one) for one in places if not one.changes],
            }
        )
        return
    if not places:
        say("Nothing was asked of the network, so any policy would do.")
        return
    _show_places("would have been refused, and was reached", refused)
    _show_places("would have been allowed, and was refused", allowed)
    same = "as it was" if refused or allowed else "all as it was"
    say(f"{alike} of {len(places)} {'place' if len(places) == 1 else 'places'}: {same}")


def _show_places(title: str, places: list[Place]) -> None:
    if places:
        columns = ("host", ">times", "first", "rule then", "rule now", "sandbox")
        print_table(
            columns,
            (
                (
                    where(one.host, one.port),
                    f"{one.times:,}",
                    one.first_at[:19].replace("T", " "),
                    one.rule_then,
                    one.rule_now,
                    ", ".join(one.sandboxes),
                )
                for one in places
            ),
            title,
        )


@app.command("test")
def decision(
    host: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="A name or an address; port 443 if not said.")],
    sandbox: Annotated[str | None, typer.Option("--sandbox", help="By the list of this sandbox or session.")] = None,
    entry: Annotated[list[str] | None, typer.Option("--entry", help="By this entry; may be given again.")] = None,
    home: Home = None,
    log_file: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a list lets a connection through, and by which entry; exit 1 where it does not.

    Nothing is resolved: what a name leads to is looked at when it is connected to.
    """
    name, port = parse_host(host)
    if sandbox is None and not entry:
        raise NoPolicyNamed
    allow = list(entry or [])
    if sandbox is not None:
        with SqliteLog(log_path(home, log_file), read_only=True) as opened:
            # A session's last one is the one that it uses, or will fork from.
            allow += sandbox_state.load(opened, targets.current(opened, sandbox)).egress
    found = decide(Policy.parse(allow), name, port)
    rule = found.text if found is not None else ""
    if as_json:
        print_json({"host": name, "port": port, "allowed": found is not None, "rule": rule})
    elif found is not None:
        say(f"{where(name, port)} is allowed, by {rule}", "green")
    else:
        say(f"{where(name, port)} is refused: no entry lists it", "red")
    if found is None:
        raise typer.Exit(1)


def parse_host(text: str) -> tuple[str, int]:
    """A normal name or a literal address, and a port. Raises `HostInvalid`."""
    shown = clean(text, 80)
    if "/" in text:
        raise HostInvalid(text=shown, reason="it is a URL, or a network; write only the name")
    bare, port = text, "80" if text.lower().endswith(INTERNAL_SUFFIX) else "443"
    if text.startswith("["):
        bare, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else port
        if rest and not rest.startswith(":"):
            raise HostInvalid(text=shown, reason="after the ] stands a port, as :443")
    elif text.count(":") == 1:
        bare, _, port = text.partition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise HostInvalid(text=shown, reason="a port is a number from 1 to 65535")
    try:
        return str(ip_address(bare)), int(port)
    except ValueError:
        pass
    try:
        return normal_name(bare), int(port)
    except ValueError as error:
        raise HostInvalid(text=shown, reason=str(error)) from error
