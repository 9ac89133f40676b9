"""Plans: golden ones over hand-made histories, and what must hold of every plan."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from actors.machines import images
from actors.machines.btrfs import BtrfsVolumes
from actors.machines.overlay import OverlayVolumes
from events import types
from events.cli import build
from events.sqlite_log import SqliteLog
from events.store_errors import StoreUnavailable
from replay import Fate, Plan, Snapshots, plan
from replay.history import presence
from replay.history.errors import LineageBroken, NoMachine, StreamNotThere, VersionNotThere
from replay.history.planned import Version
from replay.history.show_plan import drawn
from tests.events.stores import add, draft, make_image, make_tree
from tests.replay.history.boxes import (
    A,
    B,
    C,
    begin,
    branched,
    call,
    created,
    cut,
    end,
    put,
    resumed,
    rewrite,
    started,
    suspended,
    taken,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from events.snapshots import SnapshotStore
    from events.types import EventData

GOLDEN = Path(__file__).parent / "plans"
BOX, FORK, BRANCH = f"sandbox-{A}", f"sandbox-{B}", f"sandbox-{C}"


def crashed() -> types.SandboxCrashed:
    return types.SandboxCrashed(reason="out_of_memory")


def recovered() -> types.SandboxRecovered:
    return types.SandboxRecovered(machine_id="hg-9", node="node-a", kept="files", seconds=0.2)


def exec_(id_: str, command: str = "vi x") -> types.SandboxProcessStarted:
    return types.SandboxProcessStarted(process_id=id_, command=command, terminal=True, by="exec")


def exec_ended(id_: str) -> types.SandboxProcessEnded:
    return types.SandboxProcessEnded(process_id=id_, exit_code=0, seconds=1.0, bytes_out=5)


def connected(host: str = "example.com") -> types.EgressConnected:
    return types.EgressConnected(host=host, port=443, address="198.18.0.1", rule="*")


def hung_up(connections: int = 1, seconds: float = 0.01, host: str = "example.com") -> types.EgressClosed:
    return types.EgressClosed(
        host=host, port=443, connections=connections, bytes_sent=1, bytes_received=2, seconds=seconds
    )


def existing(*ids: str) -> Callable[[str], tuple[Any, ...]]:
    return lambda name: ("store",) if name in ids else ()


# Stories: the log is filled, and what is to be planned is returned, with the snapshots that are left


def turns(log: SqliteLog) -> tuple[str, int, tuple[str, ...]]:
    """Snapshots after each turn; the version lies after the second, which came late, and has reads among its calls."""
    events: list[EventData] = [
        created(),
        started(),
        *call("c1"),
        *call("c2", "write", {"file_path": "a.py", "content": "x"}),
        taken("turn-1"),
        *call("c3", "edit", {"file_path": "a.py", "old_string": "x", "new_string": "y"}),
        begin("c4"),
        taken("turn-2", of_version=9),
        end("c4"),
        *call("c5", "read", {"file_path": "a.py"}),
        *call("c6", "grep", {"pattern": "y"}),
        *call("c7", "bash", {"command": "make\nmake install"}),
    ]
    version = put(log, A, events)
    put(log, A, [taken("turn-3", of_version=version - 2), *call("c8")])
    return BOX, version, ("turn-1", "turn-2")


def pruned(log: SqliteLog) -> tuple[str, int, tuple[str, ...]]:
    """The same, and the store has lost the nearest."""
    stream, version, _ = turns(log)
    return stream, version, ("turn-1",)


def templated(log: SqliteLog) -> tuple[str, int, tuple[str, ...]]:
    """The same, and nothing is left."""
    stream, version, _ = turns(log)
    return stream, version, ()


def troubled(log: SqliteLog) -> tuple[str, int, tuple[str, ...]]:
    """All that can't be reproduced."""
    events: list[EventData] = [
        created(),
        started(),
        exec_("p0", "top"),
        *call("c1"),
        taken("snap-1"),
        begin("c2"),
        connected(),
        end("c2"),
        *call("c3"),
        begin("c4"),
        cut("c4"),
        exec_("p1", "rm -rf \x1b[2J/tmp/x"),
        exec_ended("p1"),
        types.SandboxFileCopied(path="/workspace/in", direction="in", bytes=None),
        types.SandboxFileCopied(path="/workspace/in", direction="in", bytes=5),
        types.SandboxFileCopied(path="/workspace/out", direction="out", bytes=5),
        types.SandboxForwardOpened(forward_id="f1", port=80),
        connected("background.example"),
        *call("c5", "read", {"file_path": "a.py"}),
        *call("c6", "teleport", {"to": "mars"}),
        begin("c7"),
        crashed(),
        cut("c7", "out_of_memory"),
        recovered(),
        *call("c8"),
        *call("c9", "glob", {"pattern": "*"}),
        begin("c10"),
    ]
    version = put(log, A, events)
    put(log, A, [end("c10"), taken("snap-2")])
    return BOX, version, ("snap-1", "snap-2")


def forked(log: SqliteLog) -> tuple[str, int, tuple[str, ...]]:
    """A branch of a fork, whose own snapshot is gone: it begins in the parent of its parent."""
    first: list[EventData] = [created(), started(), *call("a1"), taken("turn-1"), *call("a2")]
    at = put(log, A, [*first, begin("try", "try_in_parallel"), taken("fork-1")])
    forks = types.SandboxForked(child=B, snapshot_id="fork-1")
    put(log, A, [forks, end("try"), *call("a3"), types.SandboxKilled(reason="replaced")])
    began: list[EventData] = [created(A, at), suspended("fork-1", "fork"), resumed("fork-1")]
    put(log, B, [*began, *call("b1"), taken("turn-2"), *call("b2"), *call("b3")])
    over = types.SandboxKilled(reason="session_over")
    version = put(log, C, [branched(B, 8, "turn-2"), started(), *call("c1"), over])
    return BRANCH, version, ("turn-1",)


STORIES = [turns, pruned, templated, troubled, forked]


def show(made: Plan, *, every: bool = False, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, emoji=False).print(drawn(made, every=every))
    return "\n".join(one.rstrip() for one in out.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize("story", STORIES, ids=lambda one: one.__name__)
def test_a_golden_plan_is_drawn_as_it_was(log: SqliteLog, story: Callable[..., Any]) -> None:
    stream, version, left = story(log)
    made = plan(log, stream, version, existing(*left))
    assert show(made) == (GOLDEN / f"{story.__name__}.txt").read_text()
    assert all(char.isprintable() for char in show(made, every=True, width=60).replace("\n", ""))
    again = json.loads(json.dumps(made.plain()))
    assert again == made.plain()
    assert pickle.loads(pickle.dumps(made)) == made


def fates(made: Plan) -> dict[str, str]:
    return {one.tool_use_id: one.fate.value for one in made.calls}


def test_each_call_has_the_fate_of_its_place(log: SqliteLog) -> None:
    stream, version, left = turns(log)
    made = plan(log, stream, version, existing(*left))
    assert made.start.at == Version(BOX, 9)
    assert made.reproducible
    assert made.before is None
    assert made.after is None
    assert fates(made) == dict.fromkeys(("c1", "c2", "c3"), "in_snapshot") | {
        "c4": "again",
        "c5": "skipped",
        "c6": "skipped",
        "c7": "again",
    }


def test_a_snapshot_that_was_recorded_later_is_used_and_one_of_a_later_state_is_not(log: SqliteLog) -> None:
    stream, version, _ = turns(log)
    late = plan(log, stream, version - 2, existing("turn-3"))
    assert (late.start.snapshot_id, late.start.at) == ("turn-3", Version(BOX, version - 2))
    assert not late.of(Fate.AGAIN)
    early = plan(log, stream, version - 3, existing("turn-3"))
    assert early.start.kind == "template"


@pytest.mark.parametrize(
    ("id_", "because"),
    [
        ("c2", "connected to example.com:443"),
        ("c4", "interrupted (user)"),
        ("c6", "no such tool"),
        ("c7", "interrupted (out of memory)"),
        ("c8", "crashed (out of memory) at version 26"),
    ],
)
def test_a_lost_call_says_why(log: SqliteLog, id_: str, because: str) -> None:
    stream, version, left = troubled(log)
    made = plan(log, stream, version, existing(*left))
    [found] = [one for one in made.calls if one.tool_use_id == id_]
    assert found.fate is Fate.LOST
    assert because in found.because
    others = {"c1": "in_snapshot", "c3": "again", "c5": "skipped", "c9": "skipped"}
    assert {name: fates(made)[name] for name in others} == others


def test_what_is_no_call_is_a_gap(log: SqliteLog) -> None:
    stream, version, left = troubled(log)
    made = plan(log, stream, version, existing(*left))
    assert [gap.type for gap in made.gaps] == [
        "sandbox.process_started",
        "sandbox.process_started",
        "sandbox.file_copied",
        "sandbox.forward_opened",
        "egress.connected",
        "sandbox.crashed",
    ]
    assert "had not ended when the snapshot was taken" in made.gaps[0].what
    assert not made.reproducible
    assert made.before == Version(BOX, 5)
    assert made.after is not None
    assert (made.after.snapshot_id, made.after.at) == ("snap-2", Version(BOX, version + 1))


TROUBLES = [
    ([connected(), hung_up(), end("c1"), taken("s"), *call("c2")], True),
    # Told late, of what had ended before.
    ([connected(), end("c1"), taken("s"), hung_up(), *call("c2")], True),
    ([connected(), end("c1"), taken("s", of_version=5), begin("c2"), hung_up(), end("c2")], True),
    # Refusals and a person's changes are nothing to a machine, in a call, between calls and after the last.
    ([end("c1"), taken("s"), types.EgressPolicyChanged(allow=[], settings=[], by="ann"), *call("c2")], True),
    ([end("c1"), taken("s"), begin("c2"), types.EgressRefused(host="x", reason="malformed"), end("c2")], True),
    # It stood when the snapshot was taken, or may have.
    ([connected(), end("c1"), taken("s"), *call("c2")], False),
    ([connected(), end("c1"), taken("s"), *call("c2"), hung_up(seconds=9)], False),
    ([connected(), connected(), hung_up(), end("c1"), taken("s"), *call("c2")], False),
    # Others to the same place, which their ends alone tell, as long as they may have been after the snapshot.
    ([connected(), hung_up(connections=4), end("c1"), taken("s"), *call("c2")], True),
    ([connected(), hung_up(), end("c1"), taken("s"), *call("c2"), hung_up()], False),
    ([connected(), end("c1"), taken("s"), hung_up(connections=4), *call("c2")], False),
    # All ended with the machine, and it came back without.
    ([connected(), end("c1"), taken("s"), suspended("s"), hung_up(seconds=9), resumed("s"), *call("c2")], True),
    ([connected(), end("c1"), taken("t"), taken("s"), suspended("s"), hung_up(connections=3), resumed("s")], True),
    ([connected(), end("c1"), crashed(), hung_up(), recovered(), taken("s"), *call("c2")], True),
]


@pytest.mark.parametrize(("then", "reproducible"), TROUBLES)
def test_what_connections_mean_for_a_version(log: SqliteLog, then: list[EventData], reproducible: bool) -> None:
    version = put(log, A, [created(), started(), begin("c1"), *then])
    made = plan(log, BOX, version, existing("s"))
    assert (made.start.kind, made.reproducible) == ("snapshot", reproducible)
    assert bool(made.gaps or made.of(Fate.LOST)) is not reproducible


def test_a_call_whose_connections_only_their_ends_tell_is_lost(log: SqliteLog) -> None:
    first = [created(), started(), begin("c1"), connected(), hung_up(), end("c1"), taken("s"), *call("c2")]
    put(log, A, [*first, *call("c3", "read"), hung_up(connections=2), *call("c4")])
    made = plan(log, BOX, 14, existing("s"))
    assert fates(made) == {"c1": "in_snapshot", "c2": "lost", "c3": "skipped", "c4": "again"}
    assert made.of(Fate.LOST)[0].because == "it was connected to example.com:443, and a rebuild has no network"
    # Nobody knew it then.
    assert plan(log, BOX, 9, existing("s")).reproducible


def test_connections_of_a_parent_are_none_of_its_forks(log: SqliteLog) -> None:
    at = put(log, A, [created(), started(), begin("c1"), connected(), end("c1"), taken("fork-1")])
    inherits = types.EgressPolicyChanged(allow=["example.com"], settings=[], by="fork")
    began: list[EventData] = [created(A, at), inherits, suspended("fork-1", "fork"), resumed("fork-1")]
    put(log, B, [*began, *call("b1"), hung_up(), *call("b2")])
    made = plan(log, FORK, 9, existing("fork-1"))
    assert made.start.at == Version(FORK, 2)
    assert made.reproducible
    assert fates(made)["b2"] == "again"


def test_a_version_within_a_call_names_the_last_one_before_it(log: SqliteLog) -> None:
    put(log, A, [created(), started(), *call("c1"), begin("c2"), begin("c3"), end("c2"), end("c3")])
    for version in (5, 6, 7):
        made = plan(log, BOX, version, existing())
        assert made.before == Version(BOX, 4)
        assert made.after is None
        assert "it had not ended at version" in made.of(Fate.LOST)[0].because
    assert plan(log, BOX, 8, existing()).reproducible
    assert plan(log, BOX, 1, existing()).reproducible


def test_a_fork_begins_with_its_own_snapshot(log: SqliteLog) -> None:
    forked(log)
    made = plan(log, FORK, 5, existing("fork-1"))
    assert made.start.at == Version(FORK, 1)
    assert fates(made) == {"a1": "in_snapshot", "a2": "in_snapshot", "try": "in_snapshot", "b1": "again"}
    from_parent = plan(log, FORK, 5, existing("turn-1"))
    assert fates(from_parent) == {"a1": "in_snapshot", "a2": "again", "try": "skipped", "b1": "again"}
    assert from_parent.reproducible
    assert "hostname" in " ".join(from_parent.notes)
    assert [str(one.at) for one in from_parent.gone] == [f"{FORK}@5", f"{FORK}@1"]


def test_a_person_in_the_parent_was_never_in_the_fork(log: SqliteLog) -> None:
    at = put(log, A, [created(), started(), exec_("p1"), taken("fork-1")])
    put(log, B, [created(A, at), suspended("fork-1", "fork"), resumed("fork-1"), *call("b1")])
    assert plan(log, FORK, 5, existing("fork-1")).reproducible
    assert not plan(log, FORK, 5, existing()).reproducible
    put(log, A, call("a1"))
    assert not plan(log, BOX, 6, existing("fork-1")).reproducible


def test_nothing_to_begin_with_is_said(log: SqliteLog) -> None:
    put(log, B, [created(A, 3), suspended("fork-1", "fork"), resumed("fork-1"), *call("b1")])
    made = plan(log, FORK, 5, existing())
    assert made.start.kind == "nothing"
    assert not made.reproducible
    assert made.before is None
    assert f"no {BOX}@3" in " ".join(made.notes)
    assert plan(log, FORK, 5, existing("fork-1")).reproducible


def test_a_line_that_can_not_be_is_refused(log: SqliteLog) -> None:
    put(log, A, [created(B, 1)])
    put(log, B, [created(A, 1)])
    with pytest.raises(LineageBroken, match="its own ancestor") as error:
        plan(log, BOX, 1, existing())
    assert "log verify" in error.value.advice
    put(log, C, [created(A, 0)])
    with pytest.raises(LineageBroken, match="from version 0"):
        plan(log, BRANCH, 1, existing())
    put(log, "odd", [started()])
    with pytest.raises(LineageBroken, match=r"begins with a sandbox\.started"):
        plan(log, "sandbox-odd", 1, existing())


def test_what_is_not_there_is_refused(log: SqliteLog) -> None:
    put(log, A, [created()])
    with pytest.raises(StreamNotThere):
        plan(log, FORK, 1, existing())
    with pytest.raises(VersionNotThere):
        plan(log, BOX, 2, existing())
    with pytest.raises(NoMachine, match="is a session"):
        plan(log, "session-x", 1, existing())


def test_later_events_of_a_newer_hourglass_only_fail_to_help(log: SqliteLog) -> None:
    put(log, A, [created(), started(), *call("c1"), taken("snap-1"), *call("c2")])
    log.close()
    rewrite(log.path, "UPDATE events SET type = 'sandbox.teleported' WHERE version = 7")
    with SqliteLog(log.path, read_only=True) as again:
        assert plan(again, BOX, 4, existing("snap-1")).start.kind == "snapshot"


# What must hold of every plan

STEPS = (
    "bash", "read", "write", "cut", "crash", "snap", "late", "rest", "exec", "visit", "try", "egress", "dial", "told",
    "hang up", "refused", "policy",
)  # fmt: skip


OUTSIDE_A_CALL: dict[str, EventData] = {
    "told": hung_up(),
    "hang up": hung_up(seconds=9.0),
    "policy": types.EgressPolicyChanged(allow=[], settings=[], by="ann"),
}
IN_A_CALL: dict[str, list[EventData]] = {
    "egress": [connected(), hung_up()],
    "dial": [connected()],
    "refused": [types.EgressRefused(host="evil.example", port=443, reason="not_allowed")],
}


def history(steps: Iterable[str]) -> list[EventData]:
    """A history that can be, of these steps."""
    events: list[EventData] = [created(), started()]
    for number, step in enumerate(steps):
        id_ = f"c{number}"
        match step:
            case "bash" | "read" | "write":
                events += call(id_, step)
            case "try":
                events += call(id_, "try_in_parallel")
            case "cut":
                events += [begin(id_), cut(id_)]
            case "crash":
                events += [crashed(), recovered()]
            case "snap":
                events.append(taken(f"snap-{number}"))
            case "late":
                of_version = len(events)
                events += [begin(id_), taken(f"late-{number}", of_version=of_version), end(id_)]
            case "rest":
                events += [taken(f"rest-{number}"), suspended(f"rest-{number}"), resumed(f"rest-{number}")]
            case "exec":
                events += [exec_(id_), exec_ended(id_)]
            case "visit":
                events.append(exec_(id_))
            case "told" | "hang up" | "policy":
                events.append(OUTSIDE_A_CALL[step])
            case _:
                events += [begin(id_), *IN_A_CALL[step], end(id_)]
    return events


def _can_be_rebuilt(events: list[EventData], start: int, version: int) -> bool:
    """The same, looked at event by event."""
    harmful = (types.SandboxCrashed, types.SandboxProcessStarted, types.EgressConnected, types.ToolCallInterrupted)
    if any(isinstance(one, harmful) for one in events[start:version]):
        return False
    visits: set[str] = set()
    for one in events[:start]:
        if isinstance(one, types.SandboxProcessStarted):
            visits.add(one.process_id)
        elif isinstance(one, types.SandboxProcessEnded):
            visits.discard(one.process_id)
    if version > start and (visits or _network_was_used(events[:version], start)):
        return False
    running: set[str] = set()
    for one in events[start:version]:
        if isinstance(one, types.ToolCallStarted) and one.tool in ("bash", "write"):
            running.add(one.tool_use_id)
        elif isinstance(one, types.ToolCallCompleted):
            running.discard(one.tool_use_id)
    return not running


def _network_was_used(events: list[EventData], start: int) -> bool:
    """By a connection that stood at the start, or began unseen after it."""
    known = at_start = False
    standing = 0
    for version, one in enumerate(events, start=1):
        if isinstance(one, types.EgressConnected):
            known, standing = True, standing + 1
            at_start |= version <= start
        elif isinstance(one, types.EgressClosed) and known:
            unseen, alone, standing = standing == 0, standing == 1, max(0, standing - 1)
            if unseen and version > start:
                return True
            if version <= start:
                at_start &= standing > 0
            elif alone and one.seconds < 1:
                at_start = False
        elif isinstance(one, types.SandboxSuspended | types.SandboxCrashed):
            known, standing = False, 0
            # It lies in the snapshot of the start.
            at_start &= version > start and version != start + 2
    return at_start


@given(steps=st.lists(st.sampled_from(STEPS), max_size=12), data=st.data())
@settings(max_examples=120, deadline=None)
def test_every_plan_keeps_its_word(
    steps: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    events = history(steps)
    ids = [one.snapshot_id for one in events if isinstance(one, types.SandboxSnapshotted)]
    left = data.draw(st.sets(st.sampled_from(ids))) if ids else set()
    version = data.draw(st.integers(1, len(events)))
    with SqliteLog(tmp_path_factory.mktemp("log") / "log.db", durability="normal") as log:
        put(log, A, events)
        made = plan(log, BOX, version, existing(*left))
        begun = [one.tool_use_id for one in events[:version] if isinstance(one, types.ToolCallStarted)]
        assert [one.tool_use_id for one in made.calls] == begun
        of = {
            one.snapshot_id: one.of_version or number
            for number, one in enumerate(events)
            if isinstance(one, types.SandboxSnapshotted) and one.snapshot_id in left
        }
        start = max((at for at in of.values() if at <= version), default=0)
        assert (made.start.at.version if made.start.at else 0) == start
        for one in made.calls:
            assert (one.fate is Fate.IN_SNAPSHOT) == (one.at.version <= start)
            assert (one.fate is Fate.SKIPPED) == (one.at.version > start and one.tool in ("read", "try_in_parallel"))
            assert one.because or one.fate is not Fate.LOST
        assert made.reproducible == _can_be_rebuilt(events, start, version)
        if not made.reproducible:
            assert made.before is None or made.before.version < version
            assert made.before is not None or start == 0
            if made.before is not None:
                assert plan(log, BOX, made.before.version, existing(*left)).reproducible
                assert not plan(log, BOX, made.before.version + 1, existing(*left)).reproducible
        assert (made.after is not None) == any(at > version for at in of.values())
        if made.after is not None:
            assert made.after.at.version == min(at for at in of.values() if at > version)
            assert plan(log, BOX, made.after.at.version, existing(*left)).reproducible


# Where snapshots are, and the command


def test_snapshots_are_found_on_the_node_and_in_the_store(home: Path, store: SnapshotStore) -> None:
    add(store, draft("snap-1"), make_image(home / "image"), make_tree(home / "tree", 3))
    for kind, name in (("pool", "snap-1"), ("overlay", "snap-2")):
        folder = home / "storage" / kind / "snapshots" / name
        folder.mkdir(parents=True)
        (folder / "snapshot.json").write_text("{}")
    (home / "storage/pool/snapshots/snap-3.new").mkdir()
    (home / "storage/pool/snapshots/snap-4").mkdir()
    found = Snapshots.of(home)
    assert found.where("snap-1") == ("node", "store")
    assert found.where("snap-2") == ("node",)
    assert found.where("snap-3") == found.where("snap-4") == found.where("") == found.where("../pool") == ()
    assert Snapshots().where("snap-1") == ()


def test_the_folders_of_the_node_are_those_of_its_volumes(tmp_path: Path) -> None:
    made = (BtrfsVolumes(tmp_path, 2**30), OverlayVolumes(tmp_path))
    assert [one.snapshots for one in made] == [tmp_path / kind / "snapshots" for kind in presence._KINDS]
    assert images.RECORD == "snapshot.json"


def test_the_command_shows_a_plan(log: SqliteLog, store: SnapshotStore, home: Path) -> None:
    _, version, _ = turns(log)
    add(store, draft("turn-1", A, version=6), make_image(home / "image"), make_tree(home / "tree", 3))
    runner = CliRunner()
    told = json.loads(runner.invoke(build(), ["plan", f"{A}@{version}", "--json"]).stdout)
    assert told["start"] == {
        "kind": "snapshot",
        "stream": BOX,
        "version": 6,
        "snapshot_id": "turn-1",
        "where": ["store"],
        "template": "base",
    }
    assert [one["snapshot_id"] for one in told["gone"]] == ["turn-3", "turn-2"]
    shown = runner.invoke(build(), ["plan", f"{A}@{version}"]).stdout
    assert "2 calls" in shown
    assert "in the snapshot" in shown
    every = runner.invoke(build(), ["plan", f"{A}@{version}", "--all"]).stdout
    assert "echo c1" in every
    assert "echo c1" not in shown
    elsewhere = runner.invoke(build(), ["plan", f"{A}@{version}", "--store", str(home / "none"), "--json"])
    assert json.loads(elsewhere.stdout)["start"]["kind"] == "template"


def test_a_plan_changes_nothing(log: SqliteLog, store: SnapshotStore, home: Path) -> None:
    _, version, _ = turns(log)
    add(store, draft("turn-1", A, version=6), make_image(home / "image"), make_tree(home / "tree", 3))
    log.close()

    def seen() -> dict[str, bytes]:
        files = [*(home / "snapshots").rglob("*"), home / "log.db"]
        return {str(one): one.read_bytes() for one in files if one.is_file()}

    before = seen()
    assert CliRunner().invoke(build(), ["plan", f"{A}@{version}", "--json"]).exit_code == 0
    assert seen() == before


def test_a_store_that_can_not_be_reached_is_an_error(log: SqliteLog) -> None:
    _, version, _ = turns(log)
    result = CliRunner().invoke(build(), ["plan", f"{A}@{version}", "--store", "nosuch://x"])
    assert isinstance(result.exception, StoreUnavailable)
