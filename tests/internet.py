"""An internet of one machine, for tests: a network namespace with servers, joined to this one by a pair of veths.

The servers are at an address that looks public and at a private one, under whatever names a test gives them. Needs root
and `ip` of iproute2. Several may be at once: each has networks of its own, by its process's id.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("site.example.com", "api.example.com", "other.example.com", "*.wild.example.com")
"""What the servers' certificate is for."""


@dataclass(frozen=True, slots=True)
class Internet:
    """Where its servers are; `tests.internet_servers.SERVERS` says at which ports."""

    public: str
    """An IPv4 address that is global."""
    public6: str
    """An IPv6 address that is global."""
    private: str
    """One of 10.0.0.0/8."""
    own: str
    """The address of this host in the public network."""
    ca_file: Path
    """The authority that signed for `NAMES`."""
    pid: int
    """The servers' process, in whose network they are."""

    @property
    def pins(self) -> dict[str, list[str]]:
        """The setting `egress_hosts`: names of the servers, and of some that must not be reached."""
        return {
            "site.example.com": [self.public],
            "api.example.com": [self.public],
            "other.example.com": [self.public],
            "six.example.com": [self.public6],
            "a.wild.example.com": [self.public],
            "private.example.com": [self.private],
            "both.example.com": ["127.0.0.1", self.private, self.public],
            "own.example.com": [self.own],
        }

    def tls(self) -> ssl.SSLContext:
        """What a client trusts that trusts this authority alone."""
        return ssl.create_default_context(cafile=self.ca_file)


@contextmanager
def made(folder: Path) -> Iterator[Internet]:
    """An internet, running until the end of the context. `folder` gets its certificates."""
    authority = trustme.CA()
    certificate = authority.issue_cert(*NAMES)
    ca_file, chain, key = (folder / name for name in ("ca.pem", "server.pem", "server.key"))
    authority.cert_pem.write_to_path(ca_file)
    certificate.private_key_pem.write_to_path(key)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)

    number = os.getpid() % 2**14
    link = f"hgnet{os.getpid()}"
    third, fourth = number >> 6, (number & 63) * 4
    public, private, six = f"44.128.{third}.", f"10.219.{third}.", f"2a0f:6284:{number:x}::"
    with _servers(chain, key) as pid:
        inside = f"nsenter --net=/proc/{pid}/ns/net ip"
        _run(f"ip link add {link} type veth peer name outside netns {pid}")
        for network in (public, private):
            _run(f"ip address add {network}{fourth + 1}/30 dev {link}")
            _run(f"{inside} address add {network}{fourth + 2}/30 dev outside")
        _run(f"ip -6 address add {six}1/64 dev {link} nodad")
        _run(f"{inside} -6 address add {six}2/64 dev outside nodad")
        _run(f"ip link set {link} up")
        _run(f"{inside} link set lo up")
        _run(f"{inside} link set outside up")
        yield Internet(
            f"{public}{fourth + 2}", f"{six}2", f"{private}{fourth + 2}", f"{public}{fourth + 1}", ca_file, pid
        )


@contextmanager
def _servers(chain: Path, key: Path) -> Iterator[int]:
    """The id of their process, which ends with this one; its network goes with it, however it ends."""
    command = ["unshare", "--net", sys.executable, "-m", "tests.internet_servers", str(chain), str(key)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid


def _run(words: str) -> None:
    subprocess.run(words.split(), check=True)
