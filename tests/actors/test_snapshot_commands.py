"""`hourglass snapshots` on a home whose service does not run: what there is, whether it is whole, what may go."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from actors.commands_snapshots import NoStore
from actors.machines.images import Images
from actors.machines.protocol import SnapshotRecord
from actors.machines.volumes import open_volumes
from actors.settings import Settings
from events.cli import build
from events.envelope import new_events
from events.errors import NothingThere
from events.snapshots import SnapshotStore
from events.sqlite_log import SqliteLog
from events.store_errors import PruneRefused, StoreBusy
from events.types import Limits
from tests.events.stores import add, draft, make_image, make_tree
from tests.events.test_pruning import HISTORIES, OWNERS, STORED

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from actors.machines.protocol import FileRecord


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a log and a store in it; nothing lies on the node."""
    monkeypatch.delenv("HOURGLASS_SNAPSHOT_STORE")
    monkeypatch.setenv("HOURGLASS_STORAGE", str(tmp_path / "storage"))
    made = tmp_path / "home"
    made.mkdir()
    with SqliteLog(made / "log.db", durability="normal") as log:
        for name, history in HISTORIES.items():
            log.append(f"sandbox-{name}", new_events(name, history), expected=0)
    store, tree = SnapshotStore.open(str(made / "snapshots")), make_tree(tmp_path / "tree", files=5)
    now = time.time()
    for at, name in enumerate(STORED):
        image = make_image(tmp_path / "images" / name, name.encode(), pages=1)
        add(store, draft(name, OWNERS[name[0]], taken_at=now - 86400 * (10 - at)), image, tree)
    return made


def run(home: Path, *arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(build(), ["snapshots", *arguments, "--home", str(home)], input=given)


def told(home: Path, *arguments: str) -> Any:
    done = run(home, *arguments, "--json")
    assert done.exception is None, done.output
    return json.loads(done.stdout)


def test_ls_says_where_each_is_and_what_needs_it(home: Path) -> None:
    rows = told(home, "ls")
    assert [row["snapshot_id"] for row in rows] == list(STORED)
    assert {(row["stored"], row["local"]) for row in rows} == {(True, False)}
    assert {row["snapshot_id"] for row in rows if not row["needed_by"]} == {"a-2", "o-2"}
    assert [row["snapshot_id"] for row in told(home, "ls", "a")] == ["a-1", "a-2", "a-3"]
    assert [row["snapshot_id"] for row in told(home, "ls", "susp")] == ["s-1"]
    assert told(home, "ls", "s") == rows  # the session's id
    assert isinstance(run(home, "ls", "nobody").exception, NothingThere)
    (home / "snapshots/manifests/o-2.json").write_text("{}")
    shown = run(home, "ls").stdout
    assert "damaged: it is no manifest" in shown
    assert "fork began with it" in shown


def made_of(name: str, fresh: Path, files: dict[str, FileRecord]) -> SnapshotRecord:
    return SnapshotRecord(name, "a", "base-1", "gvisor", "runsc 1", Limits(), time.time(), files, fresh, fresh)


def test_ls_says_what_is_on_the_node_alone(home: Path) -> None:
    settings = Settings(home=home)
    volumes = open_volumes(settings.storage, settings.volumes, settings.pool_bytes)
    images = Images(volumes.snapshots)
    assert "on this node alone" not in run(home, "ls").stdout
    for name in ("turn-1", "turn-2"):
        fresh = images.begin(name)
        (fresh / "image/pages.img").write_bytes(bytes(3 * 1024**2))
        images.seal(fresh, partial(made_of, name, fresh))
    rows = {row["snapshot_id"]: row for row in told(home, "ls")}
    assert [(rows[name]["local"], rows[name]["stored"]) for name in ("turn-1", "a-1")] == [(True, False), (False, True)]
    assert "2 are on this node alone, with 6.0 MiB of images: the store does not have them" in run(home, "ls").stdout
    assert "on this node alone" not in run(home, "ls", "--store", "none").stdout


def test_verify_tells_all_that_is_damaged_and_fails(home: Path) -> None:
    whole = told(home, "verify")
    assert (whole["snapshots"], whole["bad"]) == (7, [])
    store = SnapshotStore.open(str(home / "snapshots"))
    chunks = [store.manifest(name)[0].image[-1].pieces[-1][2] for name in ("a-2", "o-1")]
    for chunk in chunks:
        path = home / "snapshots/chunks" / chunk[:2] / chunk
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    done = run(home, "verify", "--json")
    assert done.exit_code == 1
    assert {(one["snapshot_id"], one["chunk"]) for one in json.loads(done.stdout)["bad"]} == {
        ("a-2", chunks[0]),
        ("o-1", chunks[1]),
    }
    shown = run(home, "verify")
    assert shown.exit_code == 1
    assert "5 of 7 are whole" in shown.stdout
    assert run(home, "verify", "a-1").exit_code == 0
    assert run(home, "verify", "nothing").exit_code == 1


def test_prune_says_first_what_would_go_and_asks(home: Path) -> None:
    planned = told(home, "prune", "--dry-run")
    assert (planned["snapshots"], planned["removed"]) == (["a-2", "o-2"], False)
    refused = run(home, "prune", given="n\n")
    assert "a-2\no-2\n2 snapshots" in refused.stdout
    assert "removed" not in refused.stdout
    assert len(told(home, "ls")) == 7
    assert told(home, "prune", "--older-than", "12d", "--dry-run")["snapshots"] == []
    assert told(home, "prune", "--older-than", "8d", "--dry-run")["snapshots"] == ["a-2"]
    assert told(home, "prune", "--keep", "1", "--dry-run")["snapshots"] == ["a-2"]
    done = run(home, "prune", given="y\n")
    assert "removed 2 snapshots" in done.stdout
    assert [row["snapshot_id"] for row in told(home, "ls")] == ["a-1", "a-3", "s-1", "o-1", "f-1"]
    assert told(home, "verify")["bad"] == []
    again = told(home, "prune", "--yes")
    assert (again["snapshots"], again["chunks"], again["removed"]) == ([], 0, False)


def test_prune_refuses_what_is_needed_and_what_it_can_not_ask(home: Path) -> None:
    refused = run(home, "prune", "s-1", "--yes")
    assert isinstance(refused.exception, PruneRefused)
    assert "lies suspended in it" in str(refused.exception)
    assert run(home, "prune", "--json").exit_code == 2
    assert run(home, "prune", "--older-than", "soon").exit_code == 2
    assert run(home, "prune", "a-2", "--keep", "1").exit_code == 2
    assert len(told(home, "ls")) == 7


def test_prune_waits_for_no_upload_for_ever(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from events import shelf

    store = SnapshotStore.open(str(home / "snapshots"))
    opened = shelf.open_shelf

    def hasty(url: str) -> Any:
        made = opened(url)
        made._wait_seconds = 0.1  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr("events.snapshots.open_shelf", hasty)
    with store.shelf.adding():
        assert isinstance(run(home, "prune", "--yes").exception, StoreBusy)
    assert told(home, "prune", "--yes")["removed"]


def test_without_a_store_there_is_nothing_to_verify(home: Path) -> None:
    assert isinstance(run(home, "verify", "--store", "none").exception, NoStore)
    assert "snapshot_store is none" in str(NoStore())
    assert told(home, "ls", "--store", "none") == []
