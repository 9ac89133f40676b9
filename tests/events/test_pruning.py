"""Pruning: what is needed stays, what nothing refers to goes, and nothing of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from events.envelope import new_events
from events.manifest import Manifest
from events.needs import needs, sandboxes_of
from events.pruning import Choice, Plan, plan, prune
from events.snapshots import SnapshotStore
from events.store_errors import ChunkBroken, ManifestBroken, PruneForeign, PruneRefused, SnapshotNotStored
from events.types import (
    EventData,
    Limits,
    SandboxBranched,
    SandboxCreated,
    SandboxKilled,
    SandboxResumed,
    SandboxSnapshotted,
    SandboxStarted,
    SandboxSuspended,
)
from tests.events.stores import add, draft, make_image, make_tree, put

if TYPE_CHECKING:
    from pathlib import Path

    from events.sqlite_log import SqliteLog


def taken(snapshot_id: str) -> SandboxSnapshotted:
    return SandboxSnapshotted(snapshot_id=snapshot_id, node="n", image_bytes=1, seconds=0.1)


def created(parent: str = "") -> SandboxCreated:
    return SandboxCreated(session_id="s", driver="gvisor", template="base", limits=Limits(), parent=parent)


STARTED = SandboxStarted(machine_id="m", node="n", seconds=0.1, agent_version="1")
KILLED = SandboxKilled(reason="session_over")

HISTORIES: dict[str, list[EventData]] = {
    "a": [created(), STARTED, taken("a-1"), taken("a-2"), taken("a-3")],
    "suspended": [created(), STARTED, taken("s-1"), SandboxSuspended(reason="idle", snapshot_id="s-1")],
    "over": [created(), STARTED, taken("o-1"), taken("o-2"), KILLED],
    "fork": [
        created("a"),
        SandboxSuspended(reason="fork", snapshot_id="a-1"),
        SandboxResumed(machine_id="m", node="n", snapshot_id="a-1", seconds=0.1),
        taken("f-1"),
    ],
    "branch": [
        SandboxBranched(
            parent="over", parent_version=3, snapshot_id="o-1", session_id="", driver="g", template="b", limits=Limits()
        )
    ],
    "old-fork": [created("a"), SandboxSuspended(reason="fork", snapshot_id="a-2"), KILLED],
}
STORED = ("a-1", "a-2", "a-3", "s-1", "o-1", "o-2", "f-1")
OWNERS = {"a": "a", "s": "suspended", "o": "over", "f": "fork", "x": "of-another-home"}


@pytest.fixture
def kept_log(log: SqliteLog) -> SqliteLog:
    for name, history in HISTORIES.items():
        log.append(f"sandbox-{name}", new_events(name, history), expected=0)
    return log


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """Seven snapshots of these sandboxes, and one of another home's, each with chunks of its own."""
    made = SnapshotStore.open(str(tmp_path / "store"))
    tree = make_tree(tmp_path / "tree")
    for at, name in enumerate((*STORED, "x-1")):
        image = make_image(tmp_path / "images" / name, name.encode())
        add(made, draft(name, OWNERS[name[0]], taken_at=float(at)), image, tree)
    root = Manifest(
        snapshot_id="template-base-1",
        kind="template",
        template_root="base-1",
        taken_at=0.0,
        tree=draft("x").tree,
    )
    add(made, root, None, make_tree(tmp_path / "base"))
    return made


def planned(store: SnapshotStore, log: SqliteLog, choice: Choice | None = None, *, really: bool = False) -> Plan:
    return (prune if really else plan)(
        store, choice or Choice(), known=sandboxes_of(log), needs=lambda stored: needs(log, stored)
    )


def test_what_is_needed_and_why(kept_log: SqliteLog) -> None:
    manifests = [draft(name, OWNERS[name[0]], taken_at=float(at)) for at, name in enumerate(STORED)]
    found = needs(kept_log, manifests)
    assert found == {
        "a-3": ["a was last snapshotted in it"],
        "s-1": ["suspended lies suspended in it"],
        "a-1": ["fork began with it"],
        "f-1": ["fork was last snapshotted in it"],
        "o-1": ["branch was last snapshotted in it"],
    }
    # The newest one never came to the store: the one before it is what there is.
    found = needs(kept_log, [one for one in manifests if one.snapshot_id != "a-3"])
    assert found["a-2"] == ["a has no newer one in the store"]


def test_a_plan_changes_nothing_and_is_what_happens(store: SnapshotStore, kept_log: SqliteLog, tmp_path: Path) -> None:
    before = store.chunks.names()
    made = planned(store, kept_log)
    assert made.snapshots == ["a-2", "o-2"]
    assert made.templates == []
    assert store.chunks.names() == before
    assert 0 < made.bytes < sum(before.values())
    done = planned(store, kept_log, really=True)
    assert done == made
    assert store.ids() == ["a-1", "a-3", "f-1", "o-1", "s-1", "template-base-1", "x-1"]
    assert store.chunks.names().keys() == before.keys() - made.chunks.keys()
    assert [store.verify(name, set()) for name in store.ids()] == [[]] * 7
    assert planned(store, kept_log, really=True) == Plan([], [], {})


def test_the_newest_and_the_young_stay_where_that_is_asked(store: SnapshotStore, kept_log: SqliteLog) -> None:
    assert planned(store, kept_log, Choice(keep=1)).snapshots == ["a-2"]
    assert planned(store, kept_log, Choice(keep=2)).snapshots == []
    assert planned(store, kept_log, Choice(taken_before=5.0)).snapshots == ["a-2"]
    assert planned(store, kept_log, Choice(taken_before=1.0)).snapshots == []
    assert planned(store, kept_log, Choice(ids=["o-2"])).snapshots == ["o-2"]


def test_another_homes_goes_only_where_that_is_said(store: SnapshotStore, kept_log: SqliteLog) -> None:
    with pytest.raises(PruneForeign, match="x-1 is of of-another-home"):
        planned(store, kept_log, Choice(ids=["x-1"]))
    assert planned(store, kept_log, Choice(ids=["x-1"], foreign=True)).snapshots == ["x-1"]


@pytest.mark.parametrize(
    ("name", "need"),
    [
        ("s-1", "suspended lies suspended in it"),
        ("a-1", "fork began with it"),
        ("o-1", "branch"),
        ("a-3", "a was last"),
    ],
)
def test_what_is_needed_is_not_cut_by_name(name: str, need: str, store: SnapshotStore, kept_log: SqliteLog) -> None:
    for really in (False, True):
        with pytest.raises(PruneRefused, match=f"{name} is needed: {need}"):
            planned(store, kept_log, Choice(ids=["o-2", name]), really=really)
    assert len(store.ids()) == 9


def test_a_template_goes_with_the_last_snapshot_of_it(
    store: SnapshotStore, kept_log: SqliteLog, tmp_path: Path
) -> None:
    for sandbox in ("a", "suspended", "fork", "branch"):
        stream = f"sandbox-{sandbox}"
        kept_log.append(stream, new_events(f"{stream}-end", [KILLED]), expected=len(HISTORIES[sandbox]))
    assert planned(store, kept_log).templates == []
    planned(store, kept_log, Choice(ids=["x-1"], foreign=True), really=True)
    done = planned(store, kept_log, really=True)
    assert done.templates == ["template-base-1"]
    assert store.ids() == []
    assert store.chunks.names() == {}


def test_leftovers_of_an_interrupted_upload_go(store: SnapshotStore, kept_log: SqliteLog) -> None:
    planned(store, kept_log, really=True)
    left = put(store.chunks, b"of one that died")
    assert planned(store, kept_log).chunks.keys() == {left}
    planned(store, kept_log, really=True)
    assert left not in store.chunks.names()


def test_where_it_is_unknown_what_a_snapshot_needs_no_chunk_is_free(
    store: SnapshotStore, kept_log: SqliteLog, tmp_path: Path
) -> None:
    manifest = tmp_path / "store/manifests/o-2.json"
    manifest.write_text("{}")
    count = len(store.chunks.names())
    with pytest.raises(ManifestBroken, match="of o-2"):
        planned(store, kept_log, really=True)
    assert len(store.chunks.names()) == count
    assert planned(store, kept_log, Choice(ids=["o-2"]), really=True).snapshots == ["o-2"]
    # Likewise a template's, which is no snapshot that could be named else.
    (tmp_path / "store/manifests/template-base-1.json").write_text("{}")
    with pytest.raises(ManifestBroken, match="of template-base-1") as error:
        planned(store, kept_log)
    assert "hourglass snapshots prune template-base-1" in error.value.advice
    assert planned(store, kept_log, Choice(ids=["template-base-1"]), really=True).snapshots == ["template-base-1"]
    (page, *_) = store.manifest("a-3")[0].tree.pages
    with store.shelf.pruning() as pruning:
        store.chunks.remove(page, pruning)
    with pytest.raises(ChunkBroken, match="it is missing"):
        planned(store, kept_log, really=True)
    with pytest.raises(SnapshotNotStored):
        planned(store, kept_log, Choice(ids=["nothing"]))
    with pytest.raises(SnapshotNotStored):
        planned(store, kept_log, Choice(ids=["template-base-1"]))


def test_a_file_that_is_a_page_byte_for_byte_hides_nothing(
    store: SnapshotStore, kept_log: SqliteLog, tmp_path: Path
) -> None:
    """A guest that knows the format could make a file like a page, whose chunks must not pass for free then."""
    victim = store.manifest("a-3")[0]
    page = store.chunks.get(victim.tree.pages[0], "a-3")
    tree = tmp_path / "evil"
    tree.mkdir()
    (tree / "file").write_bytes(page)
    add(store, draft("a-0", "a", taken_at=-1.0), make_image(tmp_path / "evil-image"), tree)
    planned(store, kept_log, Choice(keep=9), really=True)
    assert store.verify("a-3", set()) == []
