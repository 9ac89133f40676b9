"""`hourglass egress log`, `dry-run` and `test`, from a log alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from events import cli
from events.commands_egress import HostInvalid, NoPolicyNamed, NothingToJudge, parse_host
from events.egress_history import PolicyUnreadable, decide, read_policy
from events.egress_policy import EntryInvalid, Policy
from events.envelope import new_events
from events.sqlite_log import SqliteLog
from events.targets import AmbiguousTarget, NoSuchTarget
from events.types import (
    EgressClosed,
    EgressConnected,
    EgressPolicyChanged,
    EgressRefused,
    Limits,
    SandboxCreated,
    SessionClaimed,
)

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from events.types import EventData

EVIL = "\x1b]0;owned\x07[red]x[/] \u202egnp"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A session with a sandbox and a fork of it, each of which used the network; and another's sandbox."""
    created = SandboxCreated(session_id="sesn_1", driver="gvisor", template="base", limits=Limits())
    first: list[EventData] = [
        created,
        EgressPolicyChanged(allow=["*.example.com", "10.0.0.0/8"], settings=[], by="ann"),
        EgressConnected(host="a.example.com", port=443, address="93.184.216.34", rule="*.example.com"),
        EgressClosed(host="a.example.com", port=443, connections=5, bytes_sent=10, bytes_received=2048, seconds=1.5),
        EgressConnected(host="db.example.com", port=443, address="10.0.0.5", rule="*.example.com"),
        EgressConnected(host="api.example.com.internal", port=80, address="93.184.216.34", rule="*.example.com"),
        EgressRefused(host="evil.example.net", protocol="dns", reason="not_allowed", count=7),
        EgressRefused(host="gone.example.com", port=443, reason="unresolvable", rule="*.example.com"),
        EgressRefused(host=EVIL, port=443, reason="malformed", detail=EVIL),
    ]
    fork: list[EventData] = [
        created.model_copy(update={"parent": "sbx-first", "parent_version": 3}),
        EgressConnected(host="a.example.com", port=443, address="93.184.216.34", rule="*.example.com"),
        EgressRefused(host="8.8.8.8", port=53, protocol="udp", reason="protocol"),
    ]
    other: list[EventData] = [
        created.model_copy(update={"session_id": "sesn_2"}),
        EgressConnected(host="other.example.org", port=443, address="93.184.216.34", rule="other.example.org"),
    ]
    claimed = SessionClaimed(
        environment_id="env_1", work_id="sesn_1", claim_id="c1", worker_id="w", credential="session_token"
    )
    with SqliteLog(tmp_path / "log.db", durability="normal") as log:
        for stream, data in (
            ("session-sesn_1", [claimed]),
            ("sandbox-sbx-first", first),
            ("sandbox-sbx-fork", fork),
            ("sandbox-other", other),
        ):
            log.append(stream, new_events(stream, data), expected=0)
    return tmp_path


def run(*arguments: str | Path) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    cli.register(app)
    return CliRunner().invoke(app, ["egress", *map(str, arguments)])


def output(*arguments: str | Path, code: int = 0) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.exception
    return str(result.stdout)


def lines(*arguments: str | Path) -> list[Any]:
    return [json.loads(line) for line in output(*arguments, "--json").splitlines()]


def test_the_log_says_who_reached_what_by_which_entry(home: Path) -> None:
    told = lines("log", "--home", home)
    assert [(one["sandbox_id"], one["decision"], one["host"]) for one in told[:3]] == [
        ("sbx-first", "connected", "a.example.com"),
        ("sbx-first", "closed", "a.example.com"),
        ("sbx-first", "connected", "db.example.com"),
    ]
    assert (told[0]["address"], told[0]["rule"]) == ("93.184.216.34", "*.example.com")
    assert (told[1]["times"], told[1]["bytes_received"], told[1]["seconds"]) == (5, 2048, 1.5)
    text = output("log", "--home", home)
    for said in ("a.example.com:443", "2.0 KiB", "refused: not allowed", "evil.example.net (dns)", "8.8.8.8:53 (udp)"):
        assert said in text
    assert not set(text) & set("\x1b\x07\u202e")
    assert "[red]x[/]" in text


def test_the_log_of_a_session_is_that_of_all_its_sandboxes(home: Path) -> None:
    whose = {one["sandbox_id"] for one in lines("log", "sesn_1", "--home", home)}
    assert whose == {"sbx-first", "sbx-fork"}
    assert {one["sandbox_id"] for one in lines("log", "sbx-fo", "--log", home / "log.db")} == {"sbx-fork"}
    refused = lines("log", "sesn_1", "--refused", "--home", home)
    assert [one["reason"] for one in refused] == ["not_allowed", "unresolvable", "malformed", "protocol"]
    assert "Nothing was refused." in output("log", "other", "--refused", "--home", home)
    assert isinstance(run("log", "nobody", "--home", home).exception, NoSuchTarget)
    assert isinstance(run("log", "sbx-", "--home", home).exception, AmbiguousTarget)


def test_the_log_is_followed_until_it_is_stopped(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "events", "egress", "log", "other", "-f", "--json", "--home", str(home)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["host"] == "other.example.org"
        with SqliteLog(home / "log.db", durability="normal") as log:
            for stream, host in (("sandbox-sbx-first", "not.this.example"), ("sandbox-other", "new.example.org")):
                refused = EgressRefused(host=host, port=443, reason="not_allowed")
                log.append(stream, new_events(host, [refused]), expected=log.version(stream))
        assert json.loads(process.stdout.readline())["host"] == "new.example.org"
        process.terminate()


def judged(*arguments: str | Path) -> dict[str, Any]:
    [found] = lines("dry-run", *arguments)
    return dict(found)


def test_a_dry_run_says_what_would_have_been_otherwise(home: Path) -> None:
    found = judged("sesn_1", "a.example.com", "evil.example.net", "--home", home)
    assert found["sandboxes"] == ["sbx-first", "sbx-fork"]
    refused = {(one["host"], one["port"]): one for one in found["would_refuse"]}
    assert set(refused) == {("db.example.com", 443), ("api.example.com.internal", 80)}
    assert refused["db.example.com", 443]["rule_then"] == "*.example.com"
    [allowed] = found["would_allow"]
    assert (allowed["host"], allowed["times"], allowed["rule_now"]) == ("evil.example.net", 7, "evil.example.net")
    alike = {one["host"]: one for one in found["unchanged"]}
    assert set(alike) == {"a.example.com", "gone.example.com", EVIL, "8.8.8.8"}
    # One event stands for five connections.
    assert (alike["a.example.com"]["times"], alike["a.example.com"]["sandboxes"]) == (5, ["sbx-first", "sbx-fork"])
    text = output("dry-run", "sesn_1", "a.example.com", "evil.example.net", "--home", home)
    assert "would have been refused, and was reached" in text
    assert "4 of 7 places: as it was" in text


def test_a_private_address_needs_its_network_in_a_dry_run_too(home: Path) -> None:
    names = judged("sbx-first", "*.example.com", "--home", home)
    assert [one["host"] for one in names["would_refuse"]] == ["db.example.com"]
    both = judged("sbx-first", "*.example.com", "10.0.0.0/8", "--home", home)
    assert both["would_refuse"] == both["would_allow"] == []


def test_a_policy_may_be_a_file(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "policy.txt"
    file.write_text("# ours\n\n*.example.com   # all of it\n10.0.0.0/8\n")
    assert judged("sbx-first", "--policy", file, "--home", home)["policy"] == ["*.example.com", "10.0.0.0/8"]
    file.write_text("")
    assert len(judged("sbx-first", "--policy", file, "--home", home)["would_refuse"]) == 3
    assert isinstance(run("dry-run", "sbx-first", "--home", home).exception, NothingToJudge)
    assert isinstance(run("dry-run", "sbx-first", "*", "--home", home).exception, EntryInvalid)
    assert "any policy would do" in output("dry-run", "sesn_3", "a.example", "--home", with_nothing(home))


def with_nothing(home: Path) -> Path:
    with SqliteLog(home / "log.db", durability="normal") as log:
        created = SandboxCreated(session_id="sesn_3", driver="gvisor", template="base", limits=Limits())
        claimed = SessionClaimed(
            environment_id="env_1", work_id="w", claim_id="c1", worker_id="w", credential="session_token"
        )
        log.append("sandbox-quiet", new_events("quiet", [created]), expected=0)
        log.append("session-sesn_3", new_events("sesn_3", [claimed]), expected=0)
    return home


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"https://example.com\n", "it is a URL"),
        (b"\xff\xfe", "it is no UTF-8"),
        (b"a.example\n" * 200_000, "more than 1 MiB"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_policy(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "policy"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PolicyUnreadable, match=said) as refused:
        read_policy(file)
    assert "one entry on a line" in refused.value.advice


def test_one_decision_with_its_entry(home: Path) -> None:
    assert "db.example.com:443 is allowed, by *.example.com" in output(
        "test", "DB.example.com", "--sandbox", "sbx-first", "--home", home
    )
    refused = output("test", "db.example.com:22", "--sandbox", "sbx-first", "--home", home, code=1)
    assert "refused: no entry lists it" in refused
    [told] = [json.loads(output("test", "[2001:db8::7]:443", "--entry", "[2001:db8::]/32:443", "--json"))]
    assert told == {"host": "2001:db8::7", "port": 443, "allowed": True, "rule": "[2001:db8::]/32:443"}
    # Of a session, what its sandbox may reach, and one entry more.
    assert "by b.example" in output("test", "b.example", "--sandbox", "sesn_1", "--entry", "b.example", "--home", home)
    assert isinstance(run("test", "a.example").exception, NoPolicyNamed)
    assert isinstance(run("test", "a.example", "--sandbox", "nobody", "--home", home).exception, NoSuchTarget)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Example.com.", ("example.com", 443)),
        ("example.com:5432", ("example.com", 5432)),
        ("api.example.com.internal", ("api.example.com.internal", 80)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("2001:DB8::7", ("2001:db8::7", 443)),
        ("[2001:db8::7]", ("2001:db8::7", 443)),
        ("[2001:db8::7]:80", ("2001:db8::7", 80)),
    ],
)
def test_a_host_is_read_as_people_write_it(text: str, found: tuple[str, int]) -> None:
    assert parse_host(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://example.com", "it is a URL"),
        ("example.com:0", "from 1 to 65535"),
        ("example.com:http", "from 1 to 65535"),
        ("[2001:db8::7]x", "after the ]"),
        ("127.1", "it is an address"),
        ("a b", "letters, digits"),
        ("", "it has no name"),
    ],
)
def test_what_is_no_host(text: str, said: str) -> None:
    with pytest.raises(HostInvalid, match=said) as refused:
        parse_host(text)
    assert "example.com:443" in refused.value.advice


def test_a_name_with_a_credential_stands_for_its_real_one() -> None:
    listed = Policy.parse(["api.example.com"])
    for port, allowed in ((80, True), (None, True), (443, False), (22, False)):
        assert (decide(listed, "api.example.com.internal", port) is not None) == allowed
    assert decide(Policy.parse(["api.example.com:80"]), "api.example.com.internal", 80) is None
    assert decide(Policy.parse(["other.example.com"]), "api.example.com.internal", 80) is None
