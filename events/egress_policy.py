"""What a sandbox may reach: an allowlist of names, ports and networks, and the one evaluator of it.

Only what an entry names is allowed; there are no deny rules, so there is no precedence to get wrong. Entries:

    example.com             this name, at TCP ports 80 and 443
    *.example.com           every name below it, at any depth, and not the name itself
    db.example.com:5432     one port;  example.com:*  any port
    10.1.0.0/16:5432        literal addresses, and names that resolve to private ones of these;  [2001:db8::]/32:443

Pure, and used by all who ask: the resolver, the gateway, the commands and the tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_PORTS = (80, 443)
"""Where an entry names no port: HTTP and HTTPS."""

INTERNAL_SUFFIX = ".internal"
"""Names below it are ours: `api.example.com.internal` stands for a name with a credential."""

NEVER_REACHABLE = tuple(
    (ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "unspecified addresses"),
        ("127.0.0.0/8", "loopback addresses"),
        ("169.254.0.0/16", "link-local addresses, and metadata services"),
        ("168.63.129.16/32", "a metadata service's address"),
        ("100.100.100.200/32", "a metadata service's address"),
        ("192.0.0.192/32", "a metadata service's address"),
        ("198.18.0.0/15", "addresses that stand for names inside a sandbox"),
        ("224.0.0.0/4", "multicast addresses"),
        ("240.0.0.0/4", "reserved addresses, and broadcast"),
        ("::/96", "unspecified and loopback addresses"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast addresses"),
        ("fd00:ec2::/32", "metadata services' addresses"),
        ("fd00:c1::/32", "metadata services' addresses"),
        ("fd00:42::42/128", "a metadata service's address"),
        ("fd20:ce::254/128", "a metadata service's address"),
        # Each holds every IPv4 address, loopback among them, in another spelling.
        ("::ffff:0:0/96", "IPv4 addresses in IPv6 (write the IPv4 network)"),
        ("::ffff:0:0:0/96", "IPv4 addresses in IPv6 (write the IPv4 network)"),
        ("64:ff9b::/96", "IPv4 addresses in IPv6 (write the IPv4 network)"),
        ("64:ff9b:1::/48", "IPv4 addresses in IPv6 (write the IPv4 network)"),
        ("2001::/32", "IPv4 addresses in IPv6 (write the IPv4 network)"),
        ("2002::/16", "IPv4 addresses in IPv6 (write the IPv4 network)"),
    )
)
"""Networks that no entry may overlap, and what each is."""

_LABEL = re.compile(r"[a-z0-9_-]{1,63}\Z")
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
_NAME_MAX = 253
_TEXT_MAX = 512
# Where the two standards of names beyond ASCII disagree, so that a reader and a resolver may mean different names.
_DEVIATIONS = frozenset("\u00df\u1e9e\u03c2\u200c\u200d")


@dataclass(eq=False)
class EntryInvalid(HourglassError):
    """{text} is no entry of an egress list: {reason}."""

    text: str
    """As it was given, printable and shortened."""
    reason: str
    next_step = (
        "Write a name (example.com), all names below one (*.example.com), either with a port (example.com:5432, "
        "example.com:*), or a network (10.1.0.0/16:5432, [2001:db8::]/32:443)."
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an allowlist. Made by `parse`."""

    text: str
    """Canonical: `parse(text)` gives this entry again."""
    name: str
    """What is listed, or what lies above it; "" for a network."""
    below: bool
    """Whether it is `*.name`."""
    network: IPv4Network | IPv6Network | None
    """None for a name."""
    ports: tuple[int, ...] | None
    """None: any."""

    @classmethod
    def parse(cls, text: str) -> Entry:
        """An entry as a person writes it; spaces around it do not matter.

        Raises:
            EntryInvalid: it is none.
        """
        given = text.strip()
        try:
            if len(given) > _TEXT_MAX:
                raise ValueError("it is too long")
            _check_no_url(given)
            if "/" in given:
                return _network_entry(given)
            return _name_entry(given)
        except ValueError as error:
            raise EntryInvalid(text=_shown(given), reason=str(error)) from error

    def covers_name(self, name: str) -> bool:
        """Whether a normal name is listed, whichever the port."""
        if not self.name:
            return False
        return name.endswith(f".{self.name}") if self.below else name == self.name

    def covers_address(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether it is a network with this address in it."""
        return self.network is not None and address.version == self.network.version and address in self.network

    def covers_port(self, port: int) -> bool:
        """Whether a TCP port is listed."""
        return 0 < port < 65536 and (self.ports is None or port in self.ports)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a sandbox may reach: what its entries name, and nothing else."""

    entries: tuple[Entry, ...]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Policy:
        """A policy of these entries, each once, in this order.

        Raises:
            EntryInvalid: one of them is none.
        """
        return cls(tuple({entry.text: entry for entry in map(Entry.parse, texts)}.values()))

    @property
    def texts(self) -> tuple[str, ...]:
        """The entries' canonical texts."""
        return tuple(entry.text for entry in self.entries)

    def name_allowed(self, name: str) -> Entry | None:
        """The entry that lists a normal name at any port, or None: whether it may be resolved."""
        return next((entry for entry in self.entries if entry.covers_name(name)), None)

    def allowed(self, host: str, port: int) -> Entry | None:
        """The first entry that lets a connection through, or None.

        Args:
            host: a normal name (`normal_name`), or a literal address; anything else is not allowed.
        """
        if (address := _literal(host)) is not None:
            return self._lists(address, port)
        return next((one for one in self.entries if one.covers_name(host) and one.covers_port(port)), None)

    def lists_address(self, address: str, port: int) -> Entry | None:
        """The first network entry with a literal address in it, at this port, or None."""
        literal = _literal(address)
        return None if literal is None else self._lists(literal, port)

    def _lists(self, address: IPv4Address | IPv6Address, port: int) -> Entry | None:
        return next((one for one in self.entries if one.covers_address(address) and one.covers_port(port)), None)


NOTHING = Policy(())
"""What a sandbox may reach where nobody said otherwise."""


def normal_name(raw: str) -> str:
    """A host name in the one spelling that entries are compared with: lower case, A-labels, no final dot.

    Raises:
        ValueError: it is no host name, or it is an address in any spelling that a resolver would take for one. The
            text says why, and has nothing of `raw` in it.
    """
    # The codec takes time by the square of the length.
    if len(raw) > _NAME_MAX + 1:
        raise ValueError(f"a name has at most {_NAME_MAX} characters")
    name = (raw if raw.isascii() else _a_labels(raw)).lower().removesuffix(".")
    if not name:
        raise ValueError("it has no name")
    if len(name) > _NAME_MAX:
        raise ValueError(f"a name has at most {_NAME_MAX} characters")
    labels = name.split(".")
    for label in labels:
        if not _LABEL.match(label):
            raise ValueError(_wrong_label(label))
    # `127.1`, `0x7f.1` and `2130706433` are addresses to a resolver, and no top-level domain is a number.
    if _NUMBER.match(labels[-1]):
        raise ValueError(
            "it is an address, or would be taken for one; addresses are listed as networks: 203.0.113.7/32"
        )
    return name


def _a_labels(raw: str) -> str:
    if _DEVIATIONS & set(raw):
        raise ValueError("it has a character whose spelling in DNS is disputed; write its xn-- form")
    try:
        return raw.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError("it is no name of the domain name system") from error


def _wrong_label(label: str) -> str:
    if not label:
        return "it has two dots in a row, or begins with one"
    if "*" in label:
        return "a * stands only at the beginning, for all that is below a name: *.example.com"
    if ":" in label:
        return "it has more than one colon; an IPv6 network is written [2001:db8::]/32:443"
    if len(label) > 63:
        return "between two dots there are at most 63 characters"
    return "a name has letters, digits, -, _ and dots"


def _check_no_url(text: str) -> None:
    if "://" in text:
        raise ValueError("it is a URL; write only the name")
    if "@" in text:
        raise ValueError("it has a user in it; write only the name")


def _name_entry(text: str) -> Entry:
    if text.startswith("[") or text.count(":") > 1:
        bare = text.partition("]")[0].removeprefix("[")
        if _literal(bare) is not None:
            raise ValueError(f"it is an address; addresses are listed as networks: [{bare}]/128")
    written, ports = _split_port(text)
    if written == "*":
        raise ValueError("a bare * would allow everything; list the names")
    below = written.startswith("*.")
    name = normal_name(written.removeprefix("*."))
    if name.endswith(INTERNAL_SUFFIX) or name == INTERNAL_SUFFIX[1:]:
        raise ValueError("names below .internal are those of credentials; list the real name")
    if "." not in name:
        what = "it would allow a whole top-level domain" if below else "it is a name of one label, without a domain"
        raise ValueError(f"{what}; write it out: {'*.' if below else ''}{name}.example.com")
    canonical = f"{'*.' if below else ''}{name}"
    return Entry(f"{canonical}{_port_text(ports)}", name, below, None, ports)


def _network_entry(text: str) -> Entry:
    written, _, rest = text.partition("/")
    if "/" in rest or not (rest[:1].isascii() and rest[:1].isdigit()):
        raise ValueError("it has a path; write only the name, or a network (10.1.0.0/16)")
    length, ports = _split_port(rest)
    bare = written[1:-1] if written.startswith("[") and written.endswith("]") else written
    address = _literal(bare)
    if address is None:
        raise ValueError("before the / stands no address; write only the name, or a network (10.1.0.0/16)")
    if not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= address.max_prefixlen):
        raise ValueError(f"after the / stands a number from 0 to {address.max_prefixlen}")
    network = ip_network((address, int(length)), strict=False)
    if network.network_address != address:
        raise ValueError(f"its address has bits beyond /{int(length)}; write {network}")
    for never, what in NEVER_REACHABLE:
        if network.version == never.version and network.overlaps(never):
            raise ValueError(f"it has {what} in it ({never}), which are never reachable")
    canonical = str(network)
    if ports != DEFAULT_PORTS and network.version == 6:
        canonical = f"[{network.network_address}]/{network.prefixlen}"
    return Entry(f"{canonical}{_port_text(ports)}", "", False, network, ports)


def _split_port(text: str) -> tuple[str, tuple[int, ...] | None]:
    """What stands before the port, and the ports."""
    before, colon, port = text.partition(":")
    if not colon:
        return before, DEFAULT_PORTS
    if ":" in port:
        raise ValueError("it has more than one colon; an IPv6 network is written [2001:db8::]/32:443")
    if port == "*":
        return before, None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError("after the colon stands a port from 1 to 65535, or *")
    return before, (int(port),)


def _port_text(ports: tuple[int, ...] | None) -> str:
    if ports is None:
        return ":*"
    return "" if ports == DEFAULT_PORTS else f":{ports[0]}"


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    """An address in its own spelling; one with a zone is none."""
    if "%" in host:
        return None
    try:
        return ip_address(host)
    except ValueError:
        return None


def _shown(text: str) -> str:
    short = text if len(text) <= 80 else f"{text[:80]}..."
    return short if short and short.isprintable() else ascii(short)
