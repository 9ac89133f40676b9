"""Templates from any origin, with steps: real builds and real machines. As root, after `make setup`."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.machines.gvisor import GvisorDriver
from actors.machines.node import Node
from actors.machines.protocol import MachineSpec
from actors.machines.volumes import Volumes
from actors.template import workshop
from actors.template.agent import AGENT_FOLDER, agent_digest
from actors.template.build import build_template, ensure_agent
from actors.template.catalog import TemplateInUse, list_templates, remove_template
from actors.template.derive import build_from, run_command
from actors.template.manifest import Manifest, StepFailed, TemplateError, TemplateMissing, load_manifest
from actors.template.origin import parse_origin
from actors.template.steps import load_recipe
from events.types import Limits
from tests.actors.template.images import archive, busybox_root, files, layout, member
from tests.conformance.drivers import OverlayOnSharedTemplates

pytestmark = pytest.mark.integration

LIMITS = Limits(memory_bytes=512 * 1024**2, processes=100, disk_bytes=512 * 1024**2)
Build = Callable[..., Manifest]


@pytest.fixture
def volumes(node_trees: Volumes) -> Volumes:
    return node_trees


@pytest.fixture
def names(volumes: Volumes) -> Iterator[list[str]]:
    """Names of templates, which are gone at the end."""
    made: list[str] = [f"test-{secrets.token_hex(4)}" for _ in range(2)]
    yield made
    node = Node(volumes.storage, volumes, 0, None)
    for name in made:
        with contextlib.suppress(TemplateMissing):
            remove_template(node, name)


@pytest.fixture
def build(volumes: Volumes, names: list[str], tmp_path: Path) -> Build:
    """Builds the first of the names, by an origin's words and the text of a file of steps."""
    context = tmp_path / "context"
    context.mkdir()

    def built(words: str, steps: str = "", *, name: str = "", on: Volumes = volumes, **options: object) -> Manifest:
        (context / "template.toml").write_text(steps)
        return build_from(
            on,
            name or names[0],
            parse_origin(words),
            load_recipe(context / "template.toml"),
            limits=LIMITS,
            progress=lambda *_: None,
            **options,  # type: ignore[arg-type]
        )

    return built


@contextlib.contextmanager
def sandbox(volumes: Volumes, template: str) -> Iterator[Callable[[str], str]]:
    """A sandbox of a template; runs commands in it. The command "(restart)" is a new machine on the same files."""
    driver = GvisorDriver(volumes.storage, volumes=volumes)
    spec = MachineSpec(f"sbx-{secrets.token_hex(8)}", template, LIMITS)
    with asyncio.Runner() as runner:
        machine = runner.run(driver.start(spec))

        def run(command: str) -> str:
            nonlocal machine
            if command == "(restart)":
                runner.run(machine.kill())
                machine = runner.run(driver.start(spec))
                return ""
            tool, _, pattern = command.partition(" ")
            given = {"pattern": pattern} if tool == "grep" else {"command": command}
            result = runner.run(
                machine.guest.run_tool(secrets.token_hex(4), "grep" if tool == "grep" else "bash", given, timeout=30)
            )
            return str(result.content[0]["text"])

        try:
            yield run
        finally:
            runner.run(machine.kill())
            runner.run(driver.remove(spec.sandbox_id))
            runner.run(driver.close())


STEPS = """
[[step]]
env = { GREETING = "hello $HOME 'wörld'" }
[[step]]
workdir = "/app/work"
[[step]]
copy = { from = "src", to = "/app/src" }
[[step]]
copy = { from = "one.txt", to = "/app/" }
[[step]]
run = '''
pwd > /app/made
echo "$GREETING" >> /app/made
cat /app/one.txt /app/src/in/two.txt >> /app/made
echo printed
(exit 0) || echo 'not run'
'''
"""
MADE = "/app/work\nhello $HOME 'wörld'\n1\n2"


def write_context(folder: Path) -> None:
    (folder / "src/in").mkdir(parents=True)
    (folder / "src/in/two.txt").write_text("2\n")
    (folder / "src/run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "src/run.sh").chmod(0o755)
    (folder / "src/out").symlink_to("/etc/hostname")
    (folder / "one.txt").write_text("1\n")


def test_steps_on_the_distribution(build: Build, volumes: Volumes, names: list[str], tmp_path: Path) -> None:
    write_context(tmp_path / "context")
    heard: list[bytes] = []
    made = build("debian", STEPS, on_output=heard.append)
    assert b"".join(heard).strip() == b"printed"
    assert (made.env, made.workdir) == ({"GREETING": "hello $HOME 'wörld'"}, "/app/work")
    assert [next(iter(step)) for step in made.steps] == ["env", "workdir", "copy", "copy", "run"]
    assert made.programs == load_manifest(volumes.templates, "base").programs
    assert len(made.packages) > 100
    assert len(made.digest) == 64
    with sandbox(volumes, names[0]) as run:
        assert run("pwd") == "/app/work"
        assert run("echo $GREETING") == "hello $HOME 'wörld'"
        assert run("cat /app/made") == MADE
        assert run("/app/src/run.sh; readlink /app/src/out; stat -c %u:%g:%a /app/one.txt") == (
            "ran\n/etc/hostname\n0:0:644"
        )
        assert run("python3 -c 'import pytest; print(1)'") == "1"


def test_a_second_build_begins_where_it_changed(
    build: Build, volumes: Volumes, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base.tar").write_bytes(busybox_root())
    (tmp_path / "context/f").write_text("1")
    ran: list[str] = []
    real = workshop.Workshop.run

    def recorded(shop: workshop.Workshop, tree: Path, agent: Path, command: str, **options: object) -> str:
        ran.append(command)
        return real(shop, tree, agent, command, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(workshop.Workshop, "run", recorded)
    steps = '[[step]]\nrun = "echo a >> /log"\n[[step]]\ncopy = { from = "f", to = "/f" }\n[[step]]\nrun = "%s"\n'
    first = build(f"tarball:{tmp_path}/base.tar", steps % "echo b >> /log")
    assert len(ran) == 3  # two steps, and a look
    assert build(f"tarball:{tmp_path}/base.tar", steps % "echo b >> /log") == first
    assert len(ran) == 3
    second = build(f"tarball:{tmp_path}/base.tar", steps % "echo c >> /log")
    assert len(ran) == 5
    assert second.layers[:-1] == first.layers[:-1]
    assert second.digest != first.digest
    assert (volumes.templates / second.root / "log").read_text() == "a\nc\n"
    (tmp_path / "context/f").write_text("2")
    third = build(f"tarball:{tmp_path}/base.tar", steps % "echo c >> /log")
    assert len(ran) == 7
    assert (volumes.templates / third.root / "f").read_text() == "2"
    # Whoever changed `env` alone has no new layer, and yet another template.
    assert build(f"tarball:{tmp_path}/base.tar", steps % "echo c >> /log" + '[[step]]\nenv = { A = "1" }\n') != third
    assert len(ran) == 8
    build(f"tarball:{tmp_path}/base.tar", steps % "echo c >> /log", force=True)
    assert len(ran) == 11


@pytest.mark.parametrize("origin", ["rootfs", "oci", "oci with overlays"])
def test_a_root_with_no_python_bash_or_c_library(
    build: Build, volumes: Volumes, names: list[str], tmp_path: Path, origin: str
) -> None:
    on = volumes
    if origin == "rootfs":
        with tarfile.open(fileobj=io.BytesIO(busybox_root())) as tar:
            tar.extractall(tmp_path / "root", filter="tar")
        (tmp_path / "root/workspace").mkdir()
        subprocess.run(["mknod", tmp_path / "root/device", "c", "1", "3"], check=True)
        words = f"rootfs:{tmp_path}/root"
    else:
        layers = [busybox_root(), archive((member("bin/.wh.wc"), b""), *files(app__file="from the image\n"))]
        image = layout(tmp_path / "image", layers, Env=["PATH=/bin:/app", "FROM=image"], WorkingDir="/app")
        words = f"oci:{image}:latest"
        if origin == "oci with overlays" and volumes.kind != "overlay":
            on = OverlayOnSharedTemplates(volumes.storage, volumes)
    made = build(words, '[[step]]\nrun = "echo $FROM > /made; mkdir -p d; pwd >> /made"\n', on=on)
    assert (made.distribution, made.suite) == ("Tiny Linux 1", "tiny")
    assert "busybox" in made.programs
    assert "python3" not in made.programs
    assert not (volumes.templates / made.root / "device").exists()
    with sandbox(on, names[0]) as run:
        if origin == "rootfs":
            assert run("cat /made; pwd") == "\n/workspace\n/workspace"
        else:
            assert run("cat /made; pwd; cat file; echo $FROM") == "image\n/app\n/app\nfrom the image\nimage"
            assert "not found" in run("wc")
        assert run("x=5; [[ $x == 5 ]] && echo ${BASH_VERSION%%.*}") == "5"
        assert "busybox" in run("ls -l /bin/cat")
        # The search of a template without ripgrep is a program of the agent's own Python.
        run("echo needle > hay")
        assert "hay" in run("grep needle")
        # A machine that boots on its files, rather than from the template's image.
        run("(restart)")
        assert run("cat /made").endswith("/app" if origin != "rootfs" else "/workspace")


def test_a_template_built_anew_changes_no_sandbox_that_is_there(
    build: Build, volumes: Volumes, names: list[str], tmp_path: Path
) -> None:
    (tmp_path / "base.tar").write_bytes(busybox_root())
    steps = '[[step]]\nenv = { V = "%s" }\n[[step]]\nworkdir = "/%s"\n[[step]]\nrun = "echo %s > /v"\n'
    first = build(f"tarball:{tmp_path}/base.tar", steps % (1, 1, 1))
    with sandbox(volumes, names[0]) as run:
        second = build(f"tarball:{tmp_path}/base.tar", steps % (2, 2, 2))
        assert first.root != second.root
        run("(restart)")
        assert run("echo $V; pwd; cat /v") == "1\n/1\n1"
        node = Node(volumes.storage, volumes, 0, None)
        with pytest.raises(TemplateInUse, match=r"is needed by sbx-"):
            remove_template(node, names[0])
        (listed,) = [one for one in list_templates(volumes) if one.name == names[0]]
        assert len(listed.sandboxes) == 1
    with sandbox(volumes, names[0]) as run:
        assert run("echo $V; pwd; cat /v") == "2\n/2\n2"
    # On top of another template, with what that one has.
    build(f"template:{names[0]}", '[[step]]\nenv = { W = "3" }\n', name=names[1])
    with sandbox(volumes, names[1]) as run:
        assert run("echo $V$W; pwd") == "23\n/2"
    with pytest.raises(TemplateInUse, match="is needed by sbx-of-the-log"):
        remove_template(node, names[0], ["sbx-of-the-log"])
    assert second.root in remove_template(node, names[0])
    assert not list(volumes.templates.glob(f"{names[0]}*-*"))
    with pytest.raises(TemplateMissing, match="hourglass template ls"):
        remove_template(node, names[0])


def test_a_new_agent_comes_to_a_derived_template(
    build: Build, volumes: Volumes, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base.tar").write_bytes(busybox_root())
    made = build(f"tarball:{tmp_path}/base.tar")

    def never(*_: object) -> str:
        raise AssertionError("a program of a foreign root was run on the host")

    digest = agent_digest()
    with monkeypatch.context() as patch:
        patch.setattr("actors.template.build.agent_digest", lambda: "another")
        patch.setattr("actors.template.agent.run_in_root", never)
        refreshed = ensure_agent(volumes, names[0])
    assert refreshed.root != made.root
    assert refreshed.agent_digest == "another" != digest
    assert list((volumes.templates / refreshed.root / AGENT_FOLDER / "actors/guest/__pycache__").glob("agent.*.pyc"))
    with sandbox(volumes, names[0]) as run:
        assert run("echo up") == "up"


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            "echo one; echo two >&2; exit 3",
            r"step 1 of 2 \(run echo one.*\) failed with exit code 3; it said: one \| two",
        ),
        ("false\necho not here > /made", r"failed with exit code 1; it said nothing"),
        ("echo 'unfinished", r"failed with exit code \d.*unexpected EOF"),
        ("no-such-program", r"exit code 127.*command not found"),
        ("read -t 1 < /dev/tcp/192.0.2.1/80", r"exit code 1.*(reset|unreachable|No route)"),
    ],
    ids=["exit", "first failure", "quote", "missing", "network"],
)
def test_a_step_that_fails_shows_its_output_and_leaves_nothing(
    build: Build, volumes: Volumes, names: list[str], tmp_path: Path, steps: str, said: str
) -> None:
    (tmp_path / "base.tar").write_bytes(busybox_root())
    before = left(volumes)
    with pytest.raises(StepFailed, match=said) as caught:
        build(f"tarball:{tmp_path}/base.tar", f"[[step]]\nrun = {json.dumps(steps)}\n[[step]]\nworkdir = '/'\n")
    assert "the steps before it are kept" in caught.value.next_step
    assert left(volumes) - before <= {"layers/used", "layers/whole"}
    with pytest.raises(TemplateMissing):
        load_manifest(volumes.templates, names[0])


def left(volumes: Volumes) -> set[str]:
    """What there is of templates, layers and machines."""
    found = {entry.name for entry in volumes.templates.iterdir() if not entry.name.endswith(".lock")}
    found |= {
        f"layers/{'used' if path.suffix == '.used' else path.suffix or 'whole'}"
        for path in (volumes.templates / "layers").glob("*")
    }
    return found | set(volumes.sandboxes()) | {path.name for path in (volumes.storage / "machines").glob("build-*")}


def test_a_step_that_takes_too_long_is_ended(build: Build, tmp_path: Path) -> None:
    (tmp_path / "base.tar").write_bytes(busybox_root())
    with pytest.raises(StepFailed, match="timed out after 1"):
        build(f"tarball:{tmp_path}/base.tar", '[[step]]\nrun = "while true; do :; done"\ntimeout = 1\n')


def test_a_build_that_died_leaves_nothing_to_the_next(
    build: Build, volumes: Volumes, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base.tar").write_bytes(busybox_root())

    class Died(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        # As `kill -9` leaves it: nothing is cleared up.
        patch.setattr(volumes, "seal_root", die)
        patch.setattr(volumes, "drop_root", lambda _: None)
        with pytest.raises(Died):
            build(f"tarball:{tmp_path}/base.tar", '[[step]]\nrun = "echo half > /half"\n')
    halves = [path.name for path in (volumes.templates / "layers").iterdir() if path.suffix == ".new"]
    assert halves
    leftover = f"build-{secrets.token_hex(8)}"
    volumes.ensure(leftover, volumes.templates / load_manifest(volumes.templates, "base").root, LIMITS.disk_bytes)
    build(f"tarball:{tmp_path}/base.tar", '[[step]]\nrun = "echo whole > /whole"\n')
    assert not [path.name for path in (volumes.templates / "layers").iterdir() if path.suffix == ".new"]
    assert leftover not in volumes.sandboxes()
    with sandbox(volumes, names[0]) as run:
        assert run("cat /whole; ls /half 2>&1 | head -1").startswith("whole\nls: /half: No such file")


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        ('from = "none", to = "/x"', r"none in .*context can't be copied: No such file"),
        ('from = "out", to = "/x"', "is a link out of that folder; copy what it names there"),
        ('from = "way/passwd", to = "/x"', "is a link out of that folder"),
        ('from = "pipe", to = "/x"', "is neither a file nor a folder nor a link"),
        ('from = "f", to = "/etc"', "/etc is a folder there; say /etc/ to put f into it"),
    ],
)
def test_a_copy_that_can_not_be_made_says_why(build: Build, tmp_path: Path, copy: str, said: str) -> None:
    (tmp_path / "base.tar").write_bytes(busybox_root())
    context = tmp_path / "context"
    (context / "f").write_text("1")
    (context / "out").symlink_to("/etc/passwd")
    (context / "way").symlink_to("/etc")
    subprocess.run(["mkfifo", context / "pipe"], check=True)
    with pytest.raises(TemplateError, match=said):
        build(f"tarball:{tmp_path}/base.tar", f"[[step]]\ncopy = {{ {copy} }}\n")


def test_hostile_steps_change_nothing_of_the_agent(
    build: Build, volumes: Volumes, names: list[str], tmp_path: Path
) -> None:
    (tmp_path / "base.tar").write_bytes(busybox_root())
    evil = "/bin/busybox mv /opt /opt2; /bin/busybox ln -s /etc /opt; /bin/busybox mkdir -p /etc/hourglass; "
    evil += "/bin/busybox ln -s ../../../../../../../../../tmp/hourglass-evil /etc/hourglass/defaults.json"
    made = build(f"tarball:{tmp_path}/base.tar", f'[[step]]\nrun = "{evil}"\n[[step]]\nenv = {{ A = "1" }}\n')
    root = volumes.templates / made.root
    assert not (root / "opt").is_symlink()
    assert (root / AGENT_FOLDER / "own/bin/python3").is_file()
    assert not Path("/tmp/hourglass-evil").exists()
    with sandbox(volumes, names[0]) as run:
        assert run("echo $A") == "1"


def test_base_is_the_distributions_own(build: Build, names: list[str]) -> None:
    with pytest.raises(TemplateError, match="'base' is always this distribution's packages"):
        build("debian", '[[step]]\nworkdir = "/x"\n', name="base")
    with pytest.raises(TemplateError, match="can't be made from itself"):
        build(f"template:{names[0]}")
    with pytest.raises(TemplateMissing, match="there is no template"):
        build(f"template:{names[1]}")


def test_the_machines_own_root_is_refused(build: Build) -> None:
    with pytest.raises(TemplateError, match="/ holds the storage of templates itself"):
        build("rootfs:/")


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_what_we_read(build: Build, volumes: Volumes, tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [busybox_root(), archive(*files(app__f="1"))])
    saved = tmp_path / "saved.tar"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", f"oci:{image}:latest", f"docker-archive:{saved}:tiny:1"], check=True
    )
    made = build(f"docker-archive:{saved}:tiny:1")
    assert (volumes.templates / made.root / "app/f").read_text() == "1"
    # The same image, whichever way it came.
    assert build(f"oci:{image}").layers == made.layers


def test_the_command_of_a_step_can_not_leave_its_quotes() -> None:
    told = run_command("echo '", {"A": "'; rm -rf /"}, "/a b")
    done = subprocess.run(["bash", "-c", told.replace("mkdir -p", ":")], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "rm" not in done.stdout


def test_the_base_template_is_built_the_old_way(volumes: Volumes) -> None:
    assert build_template(volumes, "base", lambda *_: None).origin == "debian"


def test_a_disk_that_is_nearly_full_ends_the_build(
    build: Build, volumes: Volumes, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.template.start._ROOM_BYTES", 2**60)
    (tmp_path / "other.tar").write_bytes(archive(*files(etc__only_here=names[0])))
    with pytest.raises(TemplateError, match="no room on the disk"):
        build(f"tarball:{tmp_path}/other.tar")
    assert not [path.name for path in (volumes.templates / "layers").iterdir() if path.suffix == ".new"]


def test_an_environment_that_is_too_large_is_refused(build: Build, tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [busybox_root()], Env=[f"V{number}={'ö' * 8000}" for number in range(5)])
    with pytest.raises(TemplateError, match="set fewer"):
        build(f"oci:{image}")


def test_a_root_that_can_not_be_written_says_so(build: Build, tmp_path: Path) -> None:
    loop = member("etc", tarfile.SYMTYPE, linkname="etc")
    (tmp_path / "base.tar").write_bytes(archive((loop, b""), (member("usr", tarfile.DIRTYPE), b"")))
    with pytest.raises(TemplateError, match=r"can't be built: .*symbolic links"):
        build(f"tarball:{tmp_path}/base.tar")
