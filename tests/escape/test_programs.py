"""What the lock-down must not cost: programs that know nothing of it work against allowed names."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.escape.conftest import Confined
from tests.internet import Internet

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PORT = 9443
SERVER = f"""
import http.server, os, ssl, sys
os.chdir(sys.argv[1])
server = http.server.ThreadingHTTPServer(("0.0.0.0", {PORT}), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def site(world: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site with a repository, a package index and a Debian archive; its address."""
    folder = tmp_path_factory.mktemp("site")
    _repository(folder)
    _package(folder)
    _archive(folder)
    certificates = world.ca_file.parent
    files = [str(certificates / name) for name in ("server.pem", "server.key")]
    inside = ["nsenter", f"--net=/proc/{world.pid}/ns/net"]
    command = [*inside, sys.executable, "-c", SERVER, str(folder), *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield f"https://site.example.com:{PORT}"
        server.kill()


def _repository(folder: Path) -> None:
    work = folder / "work"
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    for name in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{name}_NAME": "A", f"GIT_{name}_EMAIL": "a@example.com"}
    for command in (
        ["init", "-q", str(work)],
        ["-C", str(work), "commit", "-q", "--allow-empty", "-m", "the first commit"],
        ["clone", "-q", "--bare", str(work), str(folder / "repository.git")],
        ["-C", str(folder / "repository.git"), "update-server-info"],
    ):
        subprocess.run(["git", *command], check=True, env=environment)


def _package(folder: Path) -> None:
    page = folder / "simple" / "smallest"
    page.mkdir(parents=True)
    name = "smallest-1.0-py3-none-any.whl"
    page.joinpath("index.html").write_text(f'<a href="{name}">{name}</a>')
    with zipfile.ZipFile(page / name, "w") as wheel:
        wheel.writestr("smallest.py", "print('the smallest package')\n")
        wheel.writestr("smallest-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: smallest\nVersion: 1.0\n")
        wheel.writestr("smallest-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("smallest-1.0.dist-info/RECORD", "")


def _archive(folder: Path) -> None:
    """One that has no package: `apt-get update` reads it all the same."""
    dists = folder / "debian"
    dists.mkdir()
    dists.joinpath("Packages").write_text("")


async def test_git_clones_and_pip_installs_by_name(confined: Confined, site: str) -> None:
    await confined.allow(f"site.example.com:{PORT}")
    await confined.machine.guest.write_file("/tmp/ca.pem", confined.world.ca_file.read_bytes())
    said = await confined.bash(
        f"""(
        set -e
        git -c http.sslCAInfo=/tmp/ca.pem clone -q {site}/repository.git /tmp/clone
        git -C /tmp/clone log --format=%s
        export PIP_CERT=/tmp/ca.pem PIP_INDEX_URL={site}/simple/ PIP_ROOT_USER_ACTION=ignore
        pip install -q --target /tmp/site smallest 2>&1 | grep -vi -e warning -e notice || true
        PYTHONPATH=/tmp/site python3 -c 'import smallest'
        echo "deb [trusted=yes] {site}/debian ./" > /tmp/list
        apt-get -qq -o Acquire::https::CAInfo=/tmp/ca.pem -o Dir::Etc::sourcelist=/tmp/list \\
            -o Dir::Etc::sourceparts=/dev/null -o APT::Get::List-Cleanup=0 update 2>&1 | grep -v '^W:' || true
        echo apt ${{PIPESTATUS[0]}}
        env | grep -i proxy || echo no proxy
        )"""
    )
    assert said.splitlines() == ["the first commit", "the smallest package", "apt 0", "no proxy"]
    (rule,) = {data.rule for data in confined.events("egress.connected")}
    assert rule == f"site.example.com:{PORT}"


async def test_what_a_program_says_where_it_may_not_is_what_it_says_offline(confined: Confined, site: str) -> None:
    await confined.allow()
    # Another name than before: one that was allowed a moment ago may still resolve, and leads nowhere.
    site = site.replace("site.", "other.")
    said = await confined.bash(
        f"git clone {site}/repository.git /tmp/again 2>&1; echo $?; curl -sS {site} 2>&1; echo $?"
    )
    assert said.count("Could not resolve host: other.example.com") == 2
    assert said.endswith("6"), said
