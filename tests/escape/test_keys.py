"""No key is where it has no business to be: neither in a sandbox, nor in anything that Hourglass writes or starts.

One session is served in full, with its processes as actors of their own, which is when most is handed about. Each kind
of place is searched for every key in every form (`needles.py`), and for a canary that was put there, which must be
found: else the search would be blind there.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic

from actors.machines import cgroups
from actors.machines.drivers import make_driver
from actors.machines.folder import MachineFolder
from actors.machines.gvisor import GvisorDriver
from actors.settings import Settings
from events.snapshots import SnapshotStore
from replay.local import storage
from replay.server.recorded import RecordedServer
from replay.server.settings import ServerSettings
from tests.actors.test_observer import collector
from tests.escape import places
from tests.escape.needles import Found, Needles
from tests.escape.served import Canaries, WithKeys, go_on
from tests.service import remove_sandboxes

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@dataclass
class Searched:
    """What was found, by the kind of place; keys and canaries apart."""

    keys: dict[str, list[Found]] = field(default_factory=dict)
    canaries: dict[str, set[str]] = field(default_factory=dict)
    up: int = 0
    """The process that the user gave the keys to."""
    machine: set[int] = field(default_factory=set)
    """The processes of the sandbox on the host."""
    seen: set[str] = field(default_factory=set)
    """Places whose command lines were read."""


class Search:
    """Searches place after place."""

    def __init__(self, keys: dict[str, str], canaries: Canaries) -> None:
        self.found = Searched()
        self._keys = Needles(keys)
        self._canaries = {name: value.encode() for name, value in vars(canaries).items()}

    def look(self, kind: str, there: Iterable[places.Place]) -> None:
        """Look for everything in the places of one kind; nothing of them is kept."""
        keys, canaries = self.found.keys.setdefault(kind, []), self.found.canaries.setdefault(kind, set())
        for place in there:
            keys += self._keys.search([place])
            canaries |= {name for name, value in self._canaries.items() if value in place[1]}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder, canaries = tmp_path_factory.mktemp("keys"), Canaries()
    with ExitStack() as stack:
        server = stack.enter_context(RecordedServer(ServerSettings(ttl_seconds=6)))
        address, exported = stack.enter_context(collector())
        # Ray's sockets lie below it, whose addresses hold 107 bytes.
        ray = Path(tempfile.mkdtemp(prefix="hg-keys-", dir="/tmp"))
        stack.callback(shutil.rmtree, ray, ignore_errors=True)  # the last of Ray may still be ending
        more = {
            "HOURGLASS_SNAPSHOT_STORE": "",
            "HOURGLASS_LOG_LEVEL": "debug",
            "HOURGLASS_WORKER_ID": canaries.worker,
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "RAY_TMPDIR": str(ray),
        }
        service = WithKeys(server, server.create_environment(), folder / "home", ["--isolation", "process"], more=more)
        stack.callback(lambda: asyncio.run(remove_sandboxes(service.home)))
        app = stack.enter_context(Anthropic(api_key=server.api_key, base_url=server.base_url))
        with service.up() as process:
            session_id = service.session(canaries.recording().recording())
            call = service.waits(session_id)
            keys = service.keys()
            search = Search(keys, canaries)
            search.found.up = process.pid
            snapshot_id = _look_at_the_machine(search, service, session_id)
            _look_at_processes(search, canaries)
            _look_at_the_store(search, service, session_id, snapshot_id)
            # The log as it is while it is written, and what is deleted once it is not.
            search.look("home", places.files(service.home, skipped=service.home / "snapshots" / "chunks"))
            go_on(app, session_id, call)
            service.wait_for(f"session-{session_id}", "session.released")
            service.wait_for(service.sandbox_of(session_id), "sandbox.snapshot_stored", count=2)
            search.look(
                "results",
                ((f"result {number}", repr(one).encode()) for number, one in enumerate(service.results(session_id))),
            )
        assert process.returncode == 0
        _look_at_what_is_left(search, service, session_id, folder)
        search.look("Ray's files", places.files(ray))
        search.look("said", [("what it printed", repr(service.said).encode())])
        assert any(session_id.encode() in body for body in exported.bodies), "there is no trace of the session"
        search.look("traces", ((f"trace {number}", body) for number, body in enumerate(exported.bodies)))
        # What is handed out must be what was handed out to the end: no item came with another token meanwhile.
        assert service.keys() == keys
    return search.found


def _look_at_the_machine(search: Search, service: WithKeys, session_id: str) -> str:
    """A snapshot of it, as it lies on the node, and what runs and lies there for it; the id of the snapshot."""
    snapshot_id = str(service.json("snapshot", session_id)["snapshot_id"])
    sandbox = service.sandbox_of(session_id)
    driver = make_driver(Settings(home=service.home))
    assert isinstance(driver, GvisorDriver)
    node = driver._node
    node.prepare()
    record = node.images.record(snapshot_id)
    search.look("image", places.files(record.image))
    with node.volumes.view(node.images.path(snapshot_id)) as tree:
        search.look("tree", places.tree(tree, node.volumes.templates / record.template_root))
    machine = MachineFolder(storage(), sandbox.removeprefix("sandbox-"))
    known, supervisor = machine.record(), machine.supervisor()
    assert known is not None
    assert supervisor is not None
    search.found.machine = {supervisor, *cgroups.processes(known.machine_id)}
    search.look("memory", (place for pid in search.found.machine for place in places.memory(pid)))
    search.look("machine's folder", places.files(machine.path))
    return snapshot_id


def _look_at_the_store(search: Search, service: WithKeys, session_id: str, snapshot_id: str) -> None:
    """What has gone there by now, the template first, which takes as long as all that was looked at before."""
    service.wait_for(service.sandbox_of(session_id), "sandbox.snapshot_stored")
    store = SnapshotStore.open(str(service.home / "snapshots"))
    assert store.has(snapshot_id)
    search.look("chunks", places.chunks(store))


def _look_at_processes(search: Search, canaries: Canaries) -> None:
    control = subprocess.Popen(
        ["/bin/sh", "-c", "read x", canaries.hosted], env={"HOSTED": canaries.hosted}, stdin=subprocess.PIPE
    )
    with control:  # it ends when its input does
        ours = {control.pid, *places.family(search.found.up), *search.found.machine}
        search.look("environments", places.environments(ours))
        lines = list(places.command_lines())
        search.look("command lines", lines)
        search.found.seen = {name for name, _ in lines}
        programs = b" ".join(line for name, line in lines if int(name.rpartition(" ")[2]) in ours)
        for part in PARTS:
            assert part in programs, f"{part!r} is not among the processes that were looked at"


def _look_at_what_is_left(search: Search, service: WithKeys, session_id: str, folder: Path) -> None:
    """All that it wrote: the home with log, blobs and what commands make of it; what it said."""
    recording, parcel = folder / "served.jsonl", folder / "served.hourglass"
    for command in (
        ("record", session_id, "-o", str(recording)),
        ("export", session_id, "-o", str(parcel), "--no-snapshots"),
    ):
        done = service.command(*command)
        assert done.returncode == 0, done.stderr
        search.look("said", [(command[0], f"{done.stdout}{done.stderr}".encode())])
    chunks = service.home / "snapshots" / "chunks"
    search.look("home", places.files(service.home, skipped=chunks))  # those are searched unpacked
    search.look("recording", places.file(recording))
    search.look("export", places.archive(parcel))
    search.look("said", places.file(folder / "up.log"))


PARTS = (b"raylet", b"gcs_server", b"nursery", b"runsc-sandbox", b"runsc-gofer", b"HostActor", b"SessionActor")
"""Of the command lines of what serves a session."""
CONTROLS = {
    "image": {"held"},  # files stay out of it
    "tree": {"kept"},
    "chunks": {"held", "kept"},
    "memory": {"held"},
    "results": {"held"},
    "environments": {"hosted"},
    "command lines": {"hosted"},
    "home": {"asked"},
    "recording": {"asked"},
    "export": {"asked"},
    "said": {"worker"},
    "Ray's files": {"worker"},
}
"""What is to be found at least, by the kind of place."""


@pytest.mark.parametrize("kind", [*CONTROLS, "machine's folder", "traces"])
def test_no_key_is_there(kind: str, searched: Searched) -> None:
    assert searched.canaries[kind] >= CONTROLS.get(kind, set())
    found = searched.keys[kind]
    if kind == "environments":
        # Whoever gave them to it may look there.
        found = [one for one in found if one.place != f"environ of process {searched.up}"]
    assert found == []


def test_what_was_given_to_the_service_is_seen_with_it(searched: Searched) -> None:
    """The search of environments can find keys."""
    mine = [one for one in searched.keys["environments"] if one.place == f"environ of process {searched.up}"]
    assert {one.secret for one in mine} == {"the environment key", "the API key"}


def test_the_processes_of_the_machine_were_looked_at(searched: Searched) -> None:
    assert len(searched.machine) >= 3  # supervisor, sandbox, gofer
    assert {f"cmdline of process {pid}" for pid in searched.machine} <= searched.seen
