"""What the processes of a machine are on the host: nobody, who can do nothing, in namespaces of their own.

SECURITY.md says the same in words. Where a node can't give machines user ids of their own (`own_ids`), the rest holds.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from actors.machines import cgroups, idmap
from actors.machines.gvisor import GvisorDriver
from actors.machines.machine import GvisorMachine
from actors.machines.protocol import MachineGone
from tests.conformance.conftest import NewSandbox
from tests.conformance.test_limits import run

pytestmark = [pytest.mark.conformance, pytest.mark.asyncio(loop_scope="module")]

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts")
GVISOR = frozenset({"gofer", "sandbox"})


@dataclass(frozen=True)
class Process:
    """A process of the host, as `/proc` has it."""

    pid: int
    status: dict[str, list[str]]
    namespaces: dict[str, str]
    ids: list[list[int]]
    """What its user namespace's ids are on the host: first inside, first outside, how many."""
    command: str


def look(pid: int) -> Process:
    folder = Path("/proc", str(pid))
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Process(
        pid,
        {name: value.split() for name, value in status.items()},
        {name: os.readlink(folder / "ns" / name) for name in NAMESPACES},
        [[int(number) for number in line.split()] for line in (folder / "uid_map").read_text().splitlines()],
        (folder / "cmdline").read_bytes().partition(b"\0")[0].decode(),
    )


def below(pid: int) -> list[Process]:
    """All processes that descend from one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    family = {pid}
    while more := {one for one, parent in parents.items() if parent in family} - family:
        family |= more
    return [look(one) for one in sorted(family - {pid})]


def cradle(machine: GvisorMachine) -> int:
    return machine._folder.cradle()


def host_ids(processes: list[Process]) -> set[int]:
    """Every user and group id that one of them has: real, effective, saved, of files, and other groups."""
    return {
        int(number) for one in processes for kind in ("Uid", "Gid", "Groups") for number in one.status.get(kind, [])
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def family(machine: GvisorMachine) -> list[Process]:
    """The host's processes of a machine."""
    await machine.freeze()  # none begins or ends meanwhile
    found = below(cradle(machine))
    grouped = cgroups.processes(machine.machine_id)
    await machine.thaw()
    # The others are the stubs in which the guest's own programs run.
    assert {one.command.removeprefix("runsc-") for one in found} >= GVISOR
    assert len(found) > len(GVISOR)
    assert {one.pid for one in found} == grouped, "every process is in the machine's control group, and no other one is"
    return found


async def test_no_process_of_a_machine_shares_a_namespace_with_the_host(family: list[Process]) -> None:
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
    for one in family:
        shared = [name for name in NAMESPACES if one.namespaces[name] == host[name]]
        assert not shared, (one.pid, one.command)


async def test_no_process_of_a_machine_can_gain_a_right_or_make_a_strange_system_call(family: list[Process]) -> None:
    for one in family:
        assert one.status["NoNewPrivs"] == ["1"], (one.pid, one.command)
        assert one.status["Seccomp"] == ["2"], (one.pid, one.command)


async def test_every_process_of_a_machine_is_nobody_on_the_host(
    driver: GvisorDriver, machine: GvisorMachine, family: list[Process]
) -> None:
    if not driver._node.own_ids:
        pytest.skip(f"machines on {driver.volumes.kind} run as root of this host, in namespaces of their own")
    (first,) = host_ids(family)
    assert first >= idmap.FIRST
    assert (first - idmap.FIRST) % idmap.RANGE == 0
    initial = os.readlink("/proc/self/ns/user")
    for one in family:
        # Capabilities are those of a user namespace in which no id of a user, a service or root is.
        assert one.namespaces["user"] != initial
        assert [tuple(extent) for extent in one.ids] == idmap.ids(first)


async def test_a_machine_shares_no_user_id_with_another(
    driver: GvisorDriver, machine: GvisorMachine, new_sandbox: NewSandbox
) -> None:
    if not driver._node.own_ids:
        pytest.skip(f"machines on {driver.volumes.kind} run as root of this host, in namespaces of their own")
    other = await driver.start(new_sandbox())
    ours, theirs = below(cradle(machine)), below(cradle(other))
    assert not host_ids(ours) & host_ids(theirs)
    assert not {one.namespaces["pid"] for one in ours} & {one.namespaces["pid"] for one in theirs}
    await other.kill()


async def test_files_of_any_owner_are_the_guests_and_lie_on_the_disk_as_the_guest_has_them(
    driver: GvisorDriver, machine: GvisorMachine
) -> None:
    owners = (0, 1000, 65534, 65535, 65536, 1_000_680_000, 0x7FFFFFFE, 0xFFFFFFFE)
    made = " && ".join(f"touch of-{owner} && chown {owner}:{owner} of-{owner}" for owner in owners)
    result, text = await run(
        machine,
        f"mkdir /workspace/owners && cd /workspace/owners && {made} && "
        "cp /usr/bin/id as-root && chmod 4755 as-root && mkfifo pipe && ln -s of-0 link && chown -h 7:8 link && "
        "stat -c '%n %u %g' of-* | sort && echo seen > of-1000 && cat of-1000 && sync",
    )
    assert not result.is_error, text
    assert text.splitlines() == [*sorted(f"of-{owner} {owner} {owner}" for owner in owners), "seen"]
    tree = driver.tree(machine.sandbox_id)
    assert tree is not None
    folder = tree / "workspace" / "owners"
    on_disk = {entry.name: entry.lstat() for entry in folder.iterdir()}
    assert {name: status.st_uid for name, status in on_disk.items() if name.startswith("of-")} == {
        f"of-{owner}": owner for owner in owners
    }
    assert (on_disk["link"].st_uid, on_disk["link"].st_gid) == (7, 8)
    assert on_disk["as-root"].st_mode & 0o7777 == 0o4755
    result, text = await run(
        machine, "rm -r /workspace/owners && mknod /dev/zero2 c 1 5 && head -c 3 /dev/zero2 | wc -c"
    )
    assert (result.is_error, text) == (False, "3")


async def test_no_process_outlives_the_supervisor(driver: GvisorDriver, new_sandbox: NewSandbox) -> None:
    machine = await driver.start(new_sandbox())
    processes = [cradle(machine), *(one.pid for one in below(cradle(machine)))]
    watched = [os.pidfd_open(pid) for pid in processes]
    supervisor = machine._folder.supervisor()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    loop = asyncio.get_running_loop()
    for pidfd in watched:
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        await asyncio.wait_for(ended.wait(), 20)
        loop.remove_reader(pidfd)
        os.close(pidfd)
    with pytest.raises(MachineGone):
        await run(machine, "echo still here")
    await machine.wait_ended()
    await machine.release()
