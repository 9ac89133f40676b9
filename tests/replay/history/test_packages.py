"""Packages that differ between two stored trees: of dpkg, Python and npm, and of a guest that means harm."""

from __future__ import annotations

import json
import os
from itertools import count
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from events.cli import build
from events.listing import Listing
from replay.history import packages, show_diff
from replay.history.packages import package_changes
from replay.history.tree_diff import differing_lines
from tests.events.stores import add, draft, make_image
from tests.replay.history.boxes import A, call, created, put, started, taken

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from events.snapshots import SnapshotStore
    from events.sqlite_log import SqliteLog
    from replay.history.packages import Packages

    Compare = Callable[[Path, Path], Packages]


def write(root: Path, files: dict[str, str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def dpkg(**versions: str) -> dict[str, str]:
    stanza = (
        "Package: {}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {}\nDescription: of it\n .\n x: y\n"
    )
    removed = "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 9\n"
    told = [stanza.format(name.replace("_", "-"), version) for name, version in versions.items()]
    return {"var/lib/dpkg/status": "\n".join([*told, removed])}


def wheel(place: str, name: str, version: str) -> dict[str, str]:
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nName: other\n\nVersion: 99\n{'x' * 200_000}"
    return {f"{place}/site-packages/{name}-{version}.dist-info/METADATA": text}


def module(place: str, name: str, version: str) -> dict[str, str]:
    return {f"{place}/node_modules/{name}/package.json": json.dumps({"name": name, "version": version})}


@pytest.fixture
def compared(store: SnapshotStore, tmp_path: Path) -> Compare:
    image = make_image(tmp_path / "image", pages=1)

    number = count()

    def listing(tree: Path) -> Listing:
        kept, _ = add(store, draft(f"turn-{next(number)}"), image, tree)
        return Listing(store, store.manifest(kept.snapshot_id)[0])

    def compare(one: Path, other: Path) -> Packages:
        old, new = listing(one), listing(other)
        return package_changes(old, new, differing_lines(old, new))

    return compare


def told(found: Packages) -> list[tuple[str, str, str, str | None, str | None]]:
    return [(one.manager, one.where, one.name, one.before, one.after) for one in found.changes]


def test_what_each_manager_installed_removed_and_upgraded(compared: Compare, tmp_path: Path) -> None:
    same = {
        **wheel("usr/lib/python3", "same", "1.0"),
        **module("workspace", "same", "1.0.0"),
        "workspace/package.json": '{"name": "its-own", "version": "1"}',
        "workspace/node_modules/same/lib/package.json": '{"name": "not", "version": "1"}',
    }
    venv = "workspace/.venv/lib/python3.11"
    before = write(
        tmp_path / "before",
        {
            **same,
            **dpkg(bash="5.2", libc6="2.36-9", jq="1.6"),
            **wheel(venv, "Type_Ext.ensions", "4.0"),
            **module("workspace", "left-pad", "1.0.0"),
            "usr/lib/python3/dist-packages/six-1.16.egg-info/PKG-INFO": "Name: six\nVersion: 1.16\n",
        },
    )
    after = write(
        tmp_path / "after",
        {
            **same,
            **dpkg(bash="5.2", libc6="2.36-9+deb12u1", g___="12"),
            "var/lib/dpkg/status.d/tiny": "Package: tiny\nVersion: 1\nArchitecture: all\n",
            "var/lib/dpkg/status.d/tiny.md5sums": "Package: none\nVersion: 1\n",
            **wheel(venv, "type-ext-ensions", "4.1"),
            **module("workspace", "@scope/it", "2.0.0"),
            **module("workspace/node_modules/@scope/it", "left-pad", "0.9.0"),
        },
    )
    found = compared(before, after)
    assert told(found) == [
        ("dpkg", "all", "tiny", None, "1"),
        ("dpkg", "amd64", "g---", None, "12"),
        ("dpkg", "amd64", "jq", "1.6", None),
        ("dpkg", "amd64", "libc6", "2.36-9", "2.36-9+deb12u1"),
        ("npm", "/workspace/node_modules", "@scope/it", None, "2.0.0"),
        ("npm", "/workspace/node_modules", "left-pad", "1.0.0", None),
        ("npm", "/workspace/node_modules/@scope/it/node_modules", "left-pad", None, "0.9.0"),
        ("python", "/usr/lib/python3/dist-packages", "six", "1.16", None),
        ("python", f"/{venv}/site-packages", "type-ext-ensions", "4.0", "4.1"),
    ]
    assert found.left_out == 0
    assert [one.change for one in found.changes].count("changed") == 2
    # The other way round it is the opposite.
    mirrored = {"added": "removed", "removed": "added", "changed": "changed"}
    back = compared(after, before)
    assert [(one.name, one.change) for one in back.changes] == [
        (one.name, mirrored[one.change]) for one in found.changes
    ]


def test_a_hostile_tree_is_bounded_and_leads_nowhere(
    compared: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = write(tmp_path / "empty", {"etc/hostname": "x\n"})
    place = "x/node_modules"
    hostile = write(
        tmp_path / "hostile",
        {
            f"{place}/nested/package.json": "[" * 200_000,
            f"{place}/list/package.json": "[]",
            f"{place}/numbers/package.json": '{"name": 1, "version": 2}',
            f"{place}/escape/package.json": json.dumps({"name": "\x1b]0;owned\x07", "version": "1"}),
            f"{place}/version/package.json": json.dumps({"name": "fine", "version": "1\n2"}),
            f"{place}/long/package.json": json.dumps({"name": "a" * 5000, "version": "1"}),
            f"{place}/large/package.json": " " * 2_000_000 + json.dumps({"name": "large", "version": "1"}),
            "var/lib/dpkg/status.d/odd": "Package: odd\nVersion: 1\nArchitecture: \x1b[31m\n",
            "y/site-packages/a.dist-info/METADATA": "no headers at all",
            "y/site-packages/\x1b[31m/good.dist-info/METADATA": "Name: misplaced\nVersion: 1\n",
        },
    )
    # A file without end, and links to what the host has.
    with (hostile / "var/lib/dpkg/status").open("wb") as file:
        file.truncate(2**40)
    secret = write(tmp_path / "secret", {"package.json": '{"name": "secret", "version": "1"}'})
    (hostile / place / "link").symlink_to(secret)
    (hostile / place / "linked").mkdir()
    (hostile / place / "linked/package.json").symlink_to(secret / "package.json")
    os.mkfifo(hostile / place / "linked/pipe")
    (hostile / place / "folder/package.json").mkdir(parents=True)
    found = compared(empty, hostile)
    assert (told(found), found.left_out) == ([], 10)
    # Two versions in one place are both told, and too many files are counted.
    several = write(
        tmp_path / "several",
        {
            **wheel("z", "twice", "1.0"),
            **wheel("z", "twice", "2.0"),
            **wheel("z", "zero", "3.0"),
        },
    )
    assert [one.after for one in compared(empty, several).changes] == ["1.0, 2.0", "3.0"]
    monkeypatch.setattr(packages, "_MOST_FILES", 2)
    found = compared(empty, several)
    assert ([one.name for one in found.changes], found.left_out) == (["twice"], 1)


def test_the_command_shows_them(
    log: SqliteLog, store: SnapshotStore, tmp_path: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(log, A, [created(), started(), taken("turn-1"), *call("c1"), taken("turn-2")])
    image = make_image(tmp_path / "image", pages=1)
    many = {path: text for number in range(3) for path, text in module("w", f"m{number}", "1.0.0").items()}
    add(store, draft("turn-1", A, version=2), image, write(tmp_path / "one", dpkg(jq="1.6")))
    add(store, draft("turn-2", A, version=5), image, write(tmp_path / "two", {**dpkg(jq="1.7"), **many}))
    log.close()
    app = build()
    out = runner.invoke(app, ["diff", f"{A}@2", f"{A}@5", "--json"])
    said = json.loads(out.stdout)
    assert said["packages"]["left_out"] == 0
    assert said["packages"]["changes"][0] == {
        "manager": "dpkg",
        "where": "amd64",
        "name": "jq",
        "change": "changed",
        "before": "1.6",
        "after": "1.7",
    }
    assert len(said["packages"]["changes"]) == 4
    assert (said["processes"], said["environment"], said["rebuilt"]) == (None, None, None)
    monkeypatch.setattr(show_diff, "_MOST_ROWS", 2)
    shown = runner.invoke(app, ["diff", f"{A}@2", f"{A}@5"]).stdout
    assert "jq" in shown
    assert "2 more; --all shows them" in shown
    assert "m2 " not in shown.partition("package ")[2]
    assert "m2 " in runner.invoke(app, ["diff", f"{A}@2", f"{A}@5", "--all"]).stdout.partition("package ")[2]
    refused = runner.invoke(app, ["diff", f"{A}@2", f"{A}@5", "--anyway"])
    assert (refused.exit_code, "go with --live" in refused.output) == (2, True)
