"""Out by the host: its files, its services, its devices, its kernel; and into another sandbox."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from actors.machines.gvisor import GvisorDriver
from actors.machines.machine import GvisorMachine
from actors.machines.protocol import MachineSpec
from events.types import Limits
from tests.escape.conftest import Confined

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def neighbour(driver: GvisorDriver) -> AsyncIterator[GvisorMachine]:
    spec = MachineSpec(f"sbx-{secrets.token_hex(8)}", "base", Limits())
    machine = await driver.start(spec)
    yield machine
    await machine.kill()
    await driver.remove(spec.sandbox_id)


async def test_services_of_the_host_and_of_its_cluster(confined: Confined) -> None:
    """Whatever listens on the host, at all of its addresses or on its loopback alone."""
    await confined.allow("own.example.com:*", "loopback.example.com:*")
    with socket.create_server(("0.0.0.0", 0)) as everywhere, socket.create_server(("127.0.0.1", 0)) as local:
        for listener in (everywhere, local):
            listener.setblocking(False)
        ports = [everywhere.getsockname()[1], local.getsockname()[1], 6379, 8265, 10001, 8076]
        said = await confined.python(
            f"""
            for port in {ports}:
                for host in ("127.0.0.1", "{confined.world.own}", "own.example.com", "loopback.example.com"):
                    attempt(f"{{host}}:{{port}}", tcp, host, port)
            """
        )
        for listener in (everywhere, local):
            with pytest.raises(BlockingIOError):
                listener.accept()
    assert "GOT" not in said
    for port in ports:
        await confined.refused("own.example.com", port, reason="private_address")
        await confined.refused("loopback.example.com", port, reason="private_address")
        await confined.refused(confined.world.own, port, reason="not_allowed")


async def test_another_sandbox(confined: Confined, neighbour: GvisorMachine) -> None:
    start = "nohup python3 -m http.server 7777 --bind 0.0.0.0 > /dev/null 2>&1 & sleep 1; hostname; cat /etc/machine-id"
    result = await neighbour.guest.run_tool("serve", "bash", {"command": start}, timeout=20)
    hostname = str(result.content[0]["text"]).split()[0]
    inside = await neighbour.guest.run_tool("see", "bash", {"command": "curl -s localhost:7777 | wc -l"}, timeout=20)
    assert int(str(inside.content[0]["text"])) > 3
    await confined.allow("site.example.com:*")
    said = await confined.python(
        f"""
        hosts = ["127.0.0.1", "localhost", "0.0.0.0", "{hostname}", "{neighbour.sandbox_id}", "198.18.0.1", "10.0.0.2"]
        for host in hosts:
            attempt(host, tcp, host, 7777)
        """
    )
    assert "GOT" not in said
    assert "tree" not in await confined.bash(
        f"find / -name '*{neighbour.sandbox_id}*' -not -path '/proc/*' 2>/dev/null"
    )


async def test_files_of_the_host(confined: Confined) -> None:
    """Neither by a path, nor through the first process, nor from a device, nor by a link that the host would follow."""
    secret = f"host-secret-{secrets.token_hex(8)}"
    home = confined.sandbox._context.home
    (home / "secret").write_text(secret)
    storage = confined.machine._node.storage
    said = await confined.bash(
        f"""
        for path in {home} {storage} /proc/1/root{home} /proc/1/cwd /proc/1/root/live /proc/self/root/../../{home}; do
            ls -la $path/secret $path/log.db 2>&1 | grep -v 'No such'
            cat $path/secret 2>/dev/null
        done
        for fd in /proc/1/fd/*; do timeout 1 cat $fd/secret $fd/log.db 2>/dev/null; done
        ln -s {home}/secret /tmp/link; ln -s {home} /workspace/folder
        cat /tmp/link /workspace/folder/secret 2>/dev/null
        cat /proc/mounts /proc/self/mountinfo
        true"""
    )
    assert secret not in said
    assert str(home) not in said
    assert str(storage) not in said
    # What the host itself reads of the sandbox does not follow the guest's links either.
    with pytest.raises(FileNotFoundError):
        await confined.machine.guest.read_file("/tmp/link", max_bytes=1000)


async def test_devices_and_mounts(confined: Confined) -> None:
    numbers = {os.stat(path).st_dev for path in ("/", confined.machine._node.storage)}
    devices = " ".join(f"{os.major(number)}:{os.minor(number)}" for number in numbers)
    said = await confined.bash(
        f"""
        try() {{ what=$1; shift; "$@" > /tmp/out 2>&1 && echo "$what DONE: $(head -c 99 /tmp/out)" || echo no; }}
        for pair in {devices} 8:0 254:0 7:0 1:1 1:2 10:200 10:232; do
            rm -f /tmp/device /workspace/device
            for where in /tmp /workspace /dev; do
                mknod $where/device b ${{pair%:*}} ${{pair#*:}} 2>/dev/null
                try "block $pair $where" head -c 16 $where/device
                rm -f $where/device
                mknod $where/device c ${{pair%:*}} ${{pair#*:}} 2>/dev/null
                try "character $pair $where" head -c 16 $where/device
                rm -f $where/device
            done
        done
        mkdir -p /tmp/m
        for kind in btrfs ext4 9p overlay cgroup cgroup2 debugfs devtmpfs sysfs fuse nfs; do
            try "mount $kind" mount -t $kind none /tmp/m
        done
        try bind mount --bind / /tmp/m
        try pivot unshare -m true
        try kernel dmesg -c
        try module sh -c 'echo > /proc/sysrq-trigger'
        try core sh -c 'echo "|/bin/sh" > /proc/sys/kernel/core_pattern'
        try kvm head -c 1 /dev/kvm
        try memory head -c 1 /dev/mem
        ls /sys/fs/cgroup 2>/dev/null | head -3; true"""
    )
    assert "DONE" not in said, said


async def test_the_agent_is_no_way_to_the_host(confined: Confined) -> None:
    """Root may trace the guest's own first process; that gives it what the host takes for hostile anyway."""
    said = await confined.bash(
        """
        cat /proc/1/environ | tr '\\0' '\\n'
        tr '\\0' ' ' < /proc/1/cmdline
        ls -l /proc/1/fd | awk '{print $NF}'
        grep -i cap /proc/self/status
        python3 - <<'P'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for number in (12, 13, 21, 24, 25):
    print("capability", number, libc.prctl(23, number, 0, 0, 0))
P"""
    )
    assert "HOURGLASS" not in said
    assert "ANTHROPIC" not in said
    for number in (12, 13, 21, 24, 25):
        assert f"capability {number} 0" in said
    await confined.bash("kill -STOP 1; kill -KILL 1; true")
    assert await confined.bash("echo alive") == "alive"


@pytest.fixture(scope="module")
def pins(world: object) -> dict[str, list[str]]:
    pinned: dict[str, list[str]] = dict(getattr(world, "pins", {}))
    return pinned | {"loopback.example.com": ["127.0.0.1"]}


async def test_nothing_of_the_host_is_left_to_a_machine_that_ended(confined: Confined) -> None:
    """The suite's last word: every process of the machine is gone with it."""
    machine = confined.machine
    await confined.sandbox.stop("requested")
    left = [entry for entry in os.listdir("/proc") if entry.isdigit() and _names(entry, machine.machine_id)]
    assert left == []
    await confined.sandbox.start()


def _names(pid: str, machine_id: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return machine_id.encode() in file.read()
    except OSError:
        return False
