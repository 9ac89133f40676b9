"""Connections that may not be: each refusal says why, and by which entry."""

from __future__ import annotations

import asyncio
import socket
import threading
from ipaddress import ip_address
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from actors.egress import names as names_module
from actors.egress.credentials import Credentials
from actors.egress.gateway import Gateway
from actors.egress.names import Names, Unresolvable
from actors.egress.refused import Refused
from events.egress_policy import NOTHING, Policy
from tests.actors.egress.programs import running

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.internet import Internet

SITE = "site.example.com"


def _say(monkeypatch: pytest.MonkeyPatch, getaddrinfo: Callable[..., object]) -> None:
    """Have the system's resolver say this, to the gateway alone."""
    kinds = {"SOCK_STREAM": socket.SOCK_STREAM, "IPPROTO_TCP": socket.IPPROTO_TCP}
    monkeypatch.setattr(names_module, "socket", SimpleNamespace(getaddrinfo=getaddrinfo, **kinds))


async def _refused(gateway: Gateway, host: str, port: int, policy: Policy) -> Refused:
    async with running(gateway, host, port, policy) as program:
        refused = await program.refused()
        assert not program.connected
        assert not program.inner.connected.is_set()
        assert program.traffic.sent == program.traffic.received == 0
        with pytest.raises(ConnectionResetError):
            await program.reader.read()
    return refused


@pytest.mark.parametrize(
    ("host", "port"),
    [
        (SITE, 80),
        ("other.example.com", 8080),
        ("a.b.example.com", 443),
        ("44.128.0.2", 80),
        ("::ffff:44.128.0.2", 80),
        ("api.example.com.internal", 80),
    ],
)
async def test_what_is_not_listed_is_refused(gateway: Gateway, host: str, port: int) -> None:
    for policy in (NOTHING, Policy.parse(["other.example.com", f"{SITE}:22"])):
        refused = await _refused(gateway, host, port, policy)
        assert (refused.reason, refused.rule) == ("not_allowed", "")


@pytest.mark.parametrize(
    "host", ["", "a b", "-", "site.example.com/../", "fe80::1%eth0", "a" * 10_000, "\0", "127.1", "0x7f.1", "é" * 400]
)
async def test_what_is_no_name_is_refused(gateway: Gateway, host: str) -> None:
    refused = await _refused(gateway, host, 80, Policy.parse([SITE]))
    assert refused.reason in ("malformed", "not_allowed")
    assert len(refused.detail) < 600
    assert refused.detail.isprintable()


@pytest.mark.parametrize("port", [0, -1, 65536])
async def test_what_is_no_port_is_refused(gateway: Gateway, port: int) -> None:
    assert (await _refused(gateway, SITE, port, Policy.parse([f"{SITE}:*"]))).reason == "malformed"


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1", "loopback"),
        ("10.1.2.3", "private"),
        ("169.254.169.254", "link local"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("64:ff9b::a9fe:a9fe", "link local"),
        ("fd00:ec2::254", "metadata"),
    ],
)
async def test_a_name_that_leads_inside_is_refused(address: str, word: str) -> None:
    gateway = Gateway(names=Names({"trap.example.com": [address]}), credentials=Credentials())
    refused = await _refused(gateway, "trap.example.com", 80, Policy.parse(["*.example.com"]))
    assert (refused.reason, refused.rule) == ("private_address", "*.example.com")
    assert f"{ip_address(address)} is {word}" in refused.detail


async def test_a_listed_network_lifts_that_and_no_more(gateway: Gateway, internet: Internet) -> None:
    network = internet.private.rpartition(".")[0] + ".0/24"
    for port in (7, 22):
        policy = Policy.parse(["private.example.com:*", f"{network}:7"])
        if port == 7:
            async with running(gateway, "private.example.com", port, policy) as program:
                assert await program.ask(b"\0hello") == b"\0hello"
            assert program.connected == [(internet.private, "private.example.com:*")]
        else:
            refused = await _refused(gateway, "private.example.com", port, policy)
            assert refused.reason == "private_address"
            assert "no listed network has it" in refused.detail


async def test_an_address_is_reached_where_its_network_is_listed(gateway: Gateway, internet: Internet) -> None:
    for host, rule in (
        (internet.private, f"{internet.private}/32:7"),
        (internet.public6, f"[{internet.public6}]/128:7"),
    ):
        for spelling in (host, f"::ffff:{host}" if "." in host else host.upper()):
            async with running(gateway, spelling, 7, Policy.parse([rule])) as program:
                assert await program.ask(b"\0hello") == b"\0hello"
            assert program.connected == [(host, rule)]
            assert (await _refused(gateway, spelling, 80, Policy.parse([rule]))).reason == "not_allowed"


async def test_this_hosts_own_addresses_are_never_reached(gateway: Gateway, internet: Internet) -> None:
    refused = await _refused(gateway, "own.example.com", 80, Policy.parse(["own.example.com"]))
    assert (refused.reason, refused.detail) == ("private_address", f"{internet.own} is this host's own")
    refused = await _refused(gateway, internet.own, 80, Policy.parse([f"{internet.own}/32"]))
    assert refused.reason == "private_address"


async def test_of_good_and_bad_addresses_only_the_good_are_tried(gateway: Gateway, internet: Internet) -> None:
    async with running(gateway, "both.example.com", 7, Policy.parse(["both.example.com:7"])) as program:
        assert await program.ask(b"\0hello") == b"\0hello"
    assert program.connected == [(internet.public, "both.example.com:7")]


async def test_the_next_address_is_tried_where_one_fails(internet: Internet) -> None:
    names = Names({SITE: [internet.public6, internet.public]})
    gateway = Gateway(names=names, credentials=Credentials(), connect_timeout=3)
    async with running(gateway, SITE, 5005, Policy.parse([f"{SITE}:5005"])) as program:
        assert await program.ask(b"\0hello") == b"\0hello"
    assert program.connected[0][0] == internet.public


async def test_where_nobody_listens_it_is_unreachable(gateway: Gateway, internet: Internet) -> None:
    refused = await _refused(gateway, "both.example.com", 9, Policy.parse(["both.example.com:9"]))
    assert (refused.reason, refused.rule) == ("unreachable", "both.example.com:9")
    assert f"{internet.public}: Connection refused" in refused.detail
    assert "127.0.0.1 is loopback" in refused.detail


async def test_a_name_that_nobody_knows_is_unresolvable(gateway: Gateway) -> None:
    policy = Policy.parse(["*.example.com"])
    refused = await _refused(gateway, "nobody.wild.example.com", 80, policy)
    assert (refused.reason, refused.rule) == ("unresolvable", "*.example.com")


async def test_a_name_is_resolved_once_so_it_can_not_change_its_mind(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the resolver says first is checked and connected to; what it would say next is not asked for."""
    answers = [internet.public, "127.0.0.1"]
    asked: list[str] = []

    def turncoat(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[len(asked) - 1], 0))]

    _say(monkeypatch, turncoat)
    names = Names()
    gateway = Gateway(names=names, credentials=Credentials())
    policy = Policy.parse(["turncoat.example.com:7"])
    async with running(gateway, "turncoat.example.com", 7, policy) as program:
        assert await program.ask(b"\0hello") == b"\0hello"
    # The final dot: no domain of the host's is tried behind it.
    assert asked == ["turncoat.example.com."]
    assert (await _refused(gateway, "turncoat.example.com", 7, policy)).reason == "private_address"
    names.close()


async def test_who_asks_for_the_same_name_shares_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    may_answer = threading.Event()

    def slow(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(name)
        may_answer.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("44.128.0.2", 0))] * 2

    _say(monkeypatch, slow)
    names = Names()
    waiting = [asyncio.create_task(names.resolve(SITE)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting.pop().cancel()
    may_answer.set()
    assert [[str(address) for address in await one] for one in waiting] == [["44.128.0.2"]] * 19
    assert len(asked) == 1
    names.close()


async def test_a_resolver_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    may_answer = threading.Event()
    _say(monkeypatch, lambda *_, **__: may_answer.wait(10) and [])
    names = Names(timeout=0.05)
    with pytest.raises(Unresolvable, match=r"no answer within 0\.05 s"):
        await names.resolve(SITE)
    may_answer.set()
    names.close()


def test_a_pin_is_an_address() -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        Names({SITE: ["elsewhere.example.com"]})


def test_the_resolver_of_a_guest_is_told_by_the_same_policy() -> None:
    gateway = Gateway(names=Names(), credentials=Credentials())
    policy = Policy.parse(["site.example.com:22", "10.0.0.0/8"])
    assert gateway.name_allowed("Site.Example.com.", policy).text == "site.example.com:22"
    for name, reason in (("other.example.com", "not_allowed"), ("10.0.0.1", "malformed"), ("a..b", "malformed")):
        with pytest.raises(Refused) as refused:
            gateway.name_allowed(name, policy)
        assert refused.value.reason == reason
