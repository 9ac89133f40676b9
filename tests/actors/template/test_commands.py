"""`hourglass template`, as it is typed. As root, after `make setup`."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.machines.volumes import Volumes
from events.envelope import new_events
from events.sqlite_log import SqliteLog
from events.types import EventData, Limits, SandboxCreated, SandboxKilled
from tests.actors.template.images import busybox_root

pytestmark = pytest.mark.integration


class Typed:
    """A shell in a home and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.name = f"test-{secrets.token_hex(4)}"

    def run(self, *words: str, code: int = 0) -> str:
        """What `hourglass template …` prints, on both streams."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "hourglass"), "template", *words],
            cwd=self.folder,
            env={**os.environ, "HOURGLASS_HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def typed(tmp_path: Path, node_trees: Volumes) -> Iterator[Typed]:
    del node_trees
    made = Typed(tmp_path)
    yield made
    if made.name in {one["name"] for one in json.loads(made.run("ls", "--json"))}:
        made.run("rm", made.name)


def test_a_template_is_built_listed_shown_and_removed(typed: Typed) -> None:
    (typed.folder / "base.tar").write_bytes(busybox_root())
    (typed.folder / "file").write_text("x")
    # As a step's own command may print it: shown, never obeyed.
    (typed.folder / "t.toml").write_text(
        'from = "tarball:base.tar"\n[[step]]\ncopy = { from = "file", to = "/" }\n'
        # With its name, so that no earlier run has left its layer.
        rf"""[[step]]
run = '''printf "a\033[31mb\n"  # {typed.name}'''
"""
        '[[step]]\nenv = { A = "[red]" }\n'
    )
    said = typed.run("build", typed.name, "--steps", "t.toml")
    assert r"a\x1b[31mb" in said
    assert f"{typed.name}: Tiny Linux 1" in said
    assert "3. env {'A': '[red]'}" in said
    again = json.loads(typed.run("build", typed.name, "--steps", "t.toml", "--json"))
    shown = json.loads(typed.run("show", typed.name, "--json"))
    assert again == shown
    assert shown["origin"] == f"tarball:{typed.folder}/base.tar"
    assert shown["origin_id"].startswith("blake3:")
    assert len(shown["digest"]) == 64
    assert [list(step) for step in shown["steps"]] == [["copy"], ["run"], ["env"]]
    (listed,) = [one for one in json.loads(typed.run("ls", "--json")) if one["name"] == typed.name]
    assert (listed["default"], listed["problem"], listed["sandboxes"]) == (False, "", [])
    assert typed.name in typed.run("ls")
    # It can't be built anew of nothing that is said.
    assert "say --from tarball:" in typed.run("build", typed.name, "--force", code=1)

    log = SqliteLog(typed.home / "log.db")
    created = SandboxCreated(session_id="s", driver="gvisor", template=typed.name, limits=Limits())
    log.append("sandbox-sbx-1", new_events("c", [created]), expected=0)
    refused = json.loads(typed.run("rm", typed.name, "--json", code=1))
    assert refused["error"] == f"the template {typed.name!r} is needed by sbx-1"
    assert "hourglass kill" in refused["next"]
    killed: list[EventData] = [SandboxKilled(reason="session_over")]
    log.append("sandbox-sbx-1", new_events("k", killed), expected=1)
    log.close()
    assert json.loads(typed.run("rm", typed.name, "--json"))["removed"] == typed.name
    assert "there is no template" in typed.run("rm", typed.name, code=1)
    assert "there is no template" in typed.run("show", typed.name, code=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "nonsense"], "is nothing that a template can be made from"),
        (["--from", "tarball:none.tar"], "there is no file"),
        (["--steps", "none.toml"], "can't be read"),
        (["--from", "template:none-such"], "there is no template 'none-such'"),
    ],
)
def test_bad_input_ends_with_the_reason(typed: Typed, words: list[str], said: str) -> None:
    told = typed.run("build", typed.name, *words, code=1)
    assert "error: " in told
    assert said in told
    assert "Traceback" not in told


def test_a_step_that_fails_ends_the_command_with_its_output(typed: Typed) -> None:
    (typed.folder / "base.tar").write_bytes(busybox_root())
    (typed.folder / "t.toml").write_text('[[step]]\nrun = "echo the reason; exit 7"\n')
    words = ["build", typed.name, "--from", "tarball:base.tar", "--steps", "t.toml"]
    told = typed.run(*words, code=1)
    assert "  the reason" in told
    assert "failed with exit code 7" in told
    failed = json.loads(typed.run(*words, "--json", code=1))
    assert failed["error"].endswith("it said: the reason")
    assert failed["type"] == "StepFailed"
    assert "there is no template" in typed.run("show", typed.name, code=1)


def test_a_bad_name_is_refused(typed: Typed) -> None:
    assert "must be 1 to 40 of a-z" in typed.run("build", "../x", code=1)
    assert "must be 1 to 40 of a-z" in typed.run("rm", "A", code=1)
    assert "'base' is always this distribution's packages" in typed.run("build", "base", "--from", "rootfs:.", code=1)
