"""What an entry means, and that nothing else is ever allowed."""

from __future__ import annotations

import ipaddress
import pickle
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events.egress_policy import NEVER_REACHABLE, NOTHING, Entry, EntryInvalid, Policy, normal_name

if TYPE_CHECKING:
    from collections.abc import Callable

labels = st.from_regex(r"[a-z0-9_-]{0,8}[a-z][a-z0-9_-]{0,8}", fullmatch=True)
names = st.lists(labels, min_size=2, max_size=5).map(".".join).filter(lambda name: not name.endswith(".internal"))
ports = st.sampled_from(["", ":*", ":1", ":80", ":443", ":5432", ":65535"])
networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address), st.integers(0, 32)),
    st.tuples(st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address), st.integers(0, 128)),
).map(lambda pair: ipaddress.ip_network(pair, strict=False))
named = st.builds(lambda star, name, port: f"{star}{name}{port}", st.sampled_from(["", "*."]), names, ports)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("example.com", "example.com"),
        (" Example.COM. \n", "example.com"),
        ("*.Example.com", "*.example.com"),
        ("db.example.com:5432", "db.example.com:5432"),
        ("example.com:*", "example.com:*"),
        ("example.com.:0080", "example.com:80"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.\uff22Ücher\u3002example:443", "*.xn--bcher-kva.example:443"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("10.1.0.0/16:5432", "10.1.0.0/16:5432"),
        ("203.0.113.7/32", "203.0.113.7/32"),
        ("10.0.0.0/8:*", "10.0.0.0/8:*"),
        ("[2001:db8::]/32:443", "[2001:db8::]/32:443"),
        ("2001:DB8:0::/32:443", "[2001:db8::]/32:443"),
        ("[2001:db8::]/32", "2001:db8::/32"),
        ("fd12:3456::/32:*", "[fd12:3456::]/32:*"),
    ],
)
def test_an_entry_has_one_spelling(text: str, canonical: str) -> None:
    assert Entry.parse(text).text == canonical
    assert Entry.parse(canonical) == Entry.parse(text)


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("", "it has no name"),
        (".", "it has no name"),
        (":443", "it has no name"),
        ("*", "would allow everything"),
        ("*:443", "would allow everything"),
        ("*.", "it has no name"),
        ("*.com", "a whole top-level domain"),
        ("*.COM.:443", "a whole top-level domain"),
        ("a.*.example.com", "only at the beginning"),
        ("*a.example.com", "only at the beginning"),
        ("*.*.example.com", "only at the beginning"),
        ("example.*", "only at the beginning"),
        ("localhost", "one label"),
        ("db:5432", "one label"),
        ("internal", "those of credentials"),
        ("api.example.com.internal", "those of credentials"),
        ("*.Internal.", "those of credentials"),
        ("https://example.com", "it is a URL; write only the name"),
        ("http://example.com/path", "it is a URL; write only the name"),
        ("example.com/", "it has a path; write only the name"),
        ("example.com/path", "it has a path; write only the name"),
        ("example.com/24", "before the / stands no address"),
        ("user@example.com", "it has a user in it"),
        ("example.com:0", "a port from 1 to 65535"),
        ("example.com:65536", "a port from 1 to 65535"),
        ("example.com:", "a port from 1 to 65535"),
        ("example.com:http", "a port from 1 to 65535"),
        ("example.com:-1", "a port from 1 to 65535"),
        ("example.com:+1", "a port from 1 to 65535"),
        ("example.com:²", "a port from 1 to 65535"),
        ("example.com:80:443", "more than one colon"),
        ("example.com::443", "more than one colon"),
        ("example..com", "two dots in a row"),
        (".example.com", "two dots in a row, or begins"),
        ("example.com..", "two dots in a row"),
        ("exa mple.com", "letters, digits"),
        ("exam\x00ple.com", "letters, digits"),
        ("a" * 64 + ".com", "at most 63"),
        (".".join(["a" * 60] * 5), "at most 253"),
        ("a" * 600, "too long"),
        ("faß.example", "disputed"),
        ("a\u200db.example", "disputed"),
        ("ex\u2100mple.com", "letters, digits"),
        ("\ud800.example", "no name of the domain name system"),
        ("127.1", "it is an address"),
        ("0x7f.1", "it is an address"),
        ("0x7f000001", "it is an address"),
        ("2130706433", "it is an address"),
        ("0177.0.0.1", "it is an address"),
        ("\uff11\uff12\uff17.0.0.1", "it is an address"),
        ("10.0.0.1", "it is an address"),
        ("10.0.0.1.:80", "it is an address"),
        ("*.0.0.1", "it is an address"),
        ("example.0x", "it is an address"),
        ("::1", "it is an address"),
        ("[::1]:443", "it is an address"),
        ("::ffff:10.0.0.1", "it is an address"),
        ("10.1.2.3/16", "bits beyond /16; write 10.1.0.0/16"),
        ("10.0.0.0/33", "a number from 0 to 32"),
        ("10.0.0.0/8.5", "a number from 0 to 32"),
        ("10.0.0.0/255.0.0.0", "a number from 0 to 32"),
        ("2001:db8::/129", "a number from 0 to 128"),
        ("10.0.0.0/", "it has a path"),
        ("10.0.0.0/8/8", "it has a path"),
        ("10.1/16", "before the / stands no address"),
        ("fe80::1%eth0/128", "before the / stands no address"),
        ("0.0.0.0/0", "never reachable"),
        ("::/0", "never reachable"),
        ("127.0.0.0/8:80", "loopback"),
        ("127.0.0.1/32", "loopback"),
        ("169.254.169.254/32", "link-local"),
        ("168.63.129.0/24", "metadata"),
        ("100.64.0.0/10", "metadata"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("198.18.0.0/15", "stand for names"),
        ("::1/128", "loopback"),
        ("fe80::/64", "link-local"),
        ("ff02::1/128", "multicast"),
        ("fd00:ec2::254/128", "metadata"),
        ("fd20:ce::/64", "metadata"),
        ("::ffff:10.0.0.0/104", "IPv4 addresses in IPv6"),
        ("64:ff9b::a00:0/104", "IPv4 addresses in IPv6"),
        ("2002::/16", "IPv4 addresses in IPv6"),
    ],
)
def test_what_is_no_entry_is_told_why(text: str, because: str) -> None:
    with pytest.raises(EntryInvalid) as refused:
        Entry.parse(text)
    assert because in str(refused.value)
    assert "example.com:5432" in refused.value.advice
    assert str(refused.value).isprintable()
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
    with pytest.raises(EntryInvalid):
        Policy.parse(["example.com", text])


@given(st.one_of(named, networks.map(str), st.builds(lambda net, port: f"{net}{port}", networks, ports), st.text()))
def test_an_entrys_text_is_that_entry(text: str) -> None:
    try:
        entry = Entry.parse(text)
    except EntryInvalid:
        return
    assert Entry.parse(entry.text) == entry
    assert entry.text.isascii()
    assert entry.text.isprintable()


@given(networks, ports)
def test_no_network_has_what_is_never_reachable_in_it(network: ipaddress.IPv4Network, port: str) -> None:
    try:
        entry = Entry.parse(f"[{network.network_address}]/{network.prefixlen}{port}")
    except EntryInvalid:
        assert any(network.version == one.version and network.overlaps(one) for one, _ in NEVER_REACHABLE)
        return
    assert entry.network == network
    assert not any(network.version == one.version and network.overlaps(one) for one, _ in NEVER_REACHABLE)


LISTED = Policy.parse(
    [
        "example.com",
        "*.example.org",
        "db.example.net:5432",
        "any.example.net:*",
        "example.com",
        "10.1.0.0/16:5432",
        "[2001:db8::]/32:443",
    ]
)


@pytest.mark.parametrize(
    ("host", "port", "rule"),
    [
        ("example.com", 80, "example.com"),
        ("example.com", 443, "example.com"),
        ("example.com", 22, ""),
        ("a.example.com", 443, ""),
        ("notexample.com", 443, ""),
        ("example.com.evil.net", 443, ""),
        ("example.org", 443, ""),
        ("a.example.org", 443, "*.example.org"),
        ("a.b.c.example.org", 80, "*.example.org"),
        (".example.org", 8080, ""),
        ("aexample.org", 443, ""),
        ("db.example.net", 5432, "db.example.net:5432"),
        ("db.example.net", 443, ""),
        ("any.example.net", 1, "any.example.net:*"),
        ("any.example.net", 65535, "any.example.net:*"),
        ("any.example.net", 0, ""),
        ("any.example.net", 65536, ""),
        ("any.example.net", -1, ""),
        ("10.1.2.3", 5432, "10.1.0.0/16:5432"),
        ("10.1.2.3", 80, ""),
        ("10.2.2.3", 5432, ""),
        ("2001:db8::7", 443, "[2001:db8::]/32:443"),
        ("2001:db8::7%1", 443, ""),
        ("::ffff:10.1.2.3", 5432, ""),
        ("167838211", 5432, ""),
        ("10.1.515", 5432, ""),
        ("", 443, ""),
    ],
)
def test_what_is_listed_is_allowed_and_nothing_else(host: str, port: int, rule: str) -> None:
    found = LISTED.allowed(host, port)
    assert (found.text if found else "") == rule
    assert NOTHING.allowed(host, port) is None


def test_a_policy_has_each_entry_once() -> None:
    assert LISTED.texts[:2] == ("example.com", "*.example.org")
    assert len(LISTED.texts) == 6
    assert Policy.parse(LISTED.texts) == LISTED
    assert NOTHING.texts == ()


def test_a_name_may_be_resolved_where_any_port_of_it_is_listed() -> None:
    for name in ("db.example.net", "example.com", "x.example.org"):
        assert LISTED.name_allowed(name)
        assert NOTHING.name_allowed(name) is None
    for name in ("example.org", "a.example.com", "10.1.2.3", ""):
        assert LISTED.name_allowed(name) is None


def test_a_network_is_listed_for_what_names_resolve_to() -> None:
    found = LISTED.lists_address("10.1.0.9", 5432)
    assert found is not None
    assert found.text == "10.1.0.0/16:5432"
    for address, port in (("10.1.0.9", 443), ("11.1.0.9", 5432), ("example.com", 443), ("::ffff:10.1.0.9", 5432)):
        assert LISTED.lists_address(address, port) is None


def _spelled_out(texts: tuple[str, ...], host: str, port: int) -> bool:
    """The rules once more, by text alone."""
    for text in texts:
        name, _, listed = text.partition(":")
        if listed not in ("*", str(port)) and (listed or port not in (80, 443)):
            continue
        if host == name or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


@given(st.lists(named, max_size=4), names, st.integers(1, 65535), st.data())
def test_nothing_that_is_not_listed_is_allowed(texts: list[str], name: str, port: int, data: st.DataObject) -> None:
    policy = Policy.parse(texts)
    host = name
    if data.draw(st.booleans()) and policy.entries:
        listed: Entry = data.draw(st.sampled_from(policy.entries))
        near = listed.name
        host = data.draw(st.sampled_from([near, f"{name}.{near}", f"{name}{near}", f"{near}.{name}"]))
        port = data.draw(st.sampled_from([80, 443, 5432, port]))
    found = policy.allowed(host, port)
    assert (found is not None) == _spelled_out(policy.texts, host, port)
    if found is not None:
        assert found in policy.entries
        assert policy.name_allowed(host)


@given(st.text(max_size=300))
@example("127.1")
@example("0x7F.0x1")
@example("\uff11.2.3.4")
@example("::ffff:1.2.3.4")
@example("1.2.3.4.")
def test_a_normal_name_is_one_and_stays_one(raw: str) -> None:
    try:
        name = normal_name(raw)
    except ValueError:
        return
    assert normal_name(name) == normal_name(name.upper()) == normal_name(f"{name}.") == name
    assert len(name) <= 253
    assert all(0 < len(label) <= 63 for label in name.split("."))
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    with pytest.raises(ValueError, match="does not appear"):
        ipaddress.ip_address(name)


@given(st.integers(0, 2**32 - 1), st.data())
def test_no_spelling_of_an_address_is_a_name(number: int, data: st.DataObject) -> None:
    first, second, third, fourth = number.to_bytes(4, "big")
    styles: list[Callable[[int], str]] = [str, hex, lambda part: f"0{part:o}"]
    style = data.draw(st.sampled_from(styles))
    splits: list[tuple[int, ...]] = [
        (number,),
        (first, number & 0xFFFFFF),
        (first, second, number & 0xFFFF),
        (first, second, third, fourth),
    ]
    parts = data.draw(st.sampled_from(splits))
    spelled = ".".join(style(part) for part in parts)
    with pytest.raises(ValueError, match="an address"):
        normal_name(spelled)
    with pytest.raises(EntryInvalid):
        Entry.parse(spelled)
