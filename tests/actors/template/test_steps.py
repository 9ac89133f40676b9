from __future__ import annotations

import re
from pathlib import Path

import pytest

from actors.machines.overlay import OverlayVolumes
from actors.template.finish import write_defaults
from actors.template.layers import Layers
from actors.template.manifest import NAME, TemplateError
from actors.template.origin import Origin, parse_origin
from actors.template.steps import FILE_BYTES_MAX, CopyStep, EnvStep, RunStep, WorkdirStep, load_recipe

GOOD = """
from = "debian"
[[step]]
run = "make"
timeout = 5
[[step]]
env = { A = "b c" }
[[step]]
workdir = "/app/"
[[step]]
copy = { from = "src", to = "/app/" }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "template.toml"
    path.write_text(text)
    return path


def test_a_file_of_steps(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert (recipe.origin, recipe.context) == ("debian", tmp_path)
    run, env, workdir, copy = recipe.steps
    assert isinstance(run, RunStep)
    assert (run.run, run.timeout) == ("make", 5)
    assert isinstance(env, EnvStep)
    assert env.env == {"A": "b c"}
    assert isinstance(workdir, WorkdirStep)
    assert workdir.workdir == "/app"
    assert isinstance(copy, CopyStep)
    assert (copy.copied.source, copy.copied.to) == ("src", "/app/")
    # How long a step may take is no part of what it does.
    assert run.key == RunStep(run="make").key
    assert run.key != RunStep(run="make all").key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[step]\n", "not valid TOML"),
        ("steps = 1\n", "there is no steps here"),
        ('[step]\nrun = "x"\n', "two brackets"),
        ("from = 3\n", "from is to be a text"),
        ('[[step]]\nrun = "a"\n[[step]]\nrunn = "x"\n', "step 2: there is no 'runn'; a step has one of run, env"),
        ("[[step]]\n", "step 1 says nothing to do"),
        ('[[step]]\nrun = "x"\nworkdir = "/a"\n', "step 1 has run and workdir; a step has exactly one"),
        ("[[step]]\nrun = 3\n", "step 1: run: Input should be a valid string"),
        ('[[step]]\nrun = "  "\n', "step 1: run: must be a command"),
        ('[[step]]\nrun = "x"\ntimeout = -1\n', "timeout: Input should be greater than 0"),
        ('[[step]]\nworkdir = "/a"\ntimeout = 1\n', "there is no timeout in a step of kind workdir"),
        ("[[step]]\nenv = {}\n", "step 1: env"),
        ("[[step]]\nenv = { A = 1 }\n", "env.A: Input should be a valid string"),
        ('[[step]]\nenv = { "A-B" = "1" }\n', "'A-B' can't name a variable"),
        ('[[step]]\nenv = { A = "\\u0000" }\n', "the value of A has a NUL"),
        (f'[[step]]\nenv = {{ A = "{"x" * 40000}" }}\n', "larger than 32 KiB"),
        ('[[step]]\nworkdir = "app"\n', "workdir: must be an absolute path"),
        ('[[step]]\nworkdir = "/a/../b"\n', "is no path inside a root"),
        ('[[step]]\ncopy = "x"\n', "step 1: copy"),
        ('[[step]]\ncopy = { from = "x" }\n', "copy.to: Field required"),
        ('[[step]]\ncopy = { from = "/etc/passwd", to = "/x" }\n', "must be relative to the folder of the file"),
        ('[[step]]\ncopy = { from = "../x", to = "/x" }\n', "must stay in the folder of the file"),
        ('[[step]]\ncopy = { from = "x", to = "x" }\n', "must be an absolute path"),
        ('[[step]]\ncopy = { from = "x", to = "/x", mode = 1 }\n', "there is no copy.mode in a step of kind copy"),
    ],
)
def test_a_bad_file_of_steps_says_where_and_what(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TemplateError) as caught:
        load_recipe(write(tmp_path, text))
    assert said in str(caught.value)
    assert "template.toml" in str(caught.value)


def test_a_file_of_steps_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="can't be read"):
        load_recipe(tmp_path / "none.toml")


def test_origins(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    (tmp_path / "image.tar").touch()
    assert parse_origin("debian") == Origin("debian", "")
    assert parse_origin("template:mine") == Origin("template", "mine")
    assert parse_origin(f"rootfs:{tmp_path}") == Origin("rootfs", str(tmp_path))
    assert parse_origin(f"oci:{tmp_path}/a:b") == Origin("oci", f"{tmp_path}/a:b")
    assert parse_origin(f"oci:{tmp_path}/a:b:v1") == Origin("oci", f"{tmp_path}/a:b", "v1")
    saved = parse_origin(f"docker-archive:{tmp_path}/image.tar:tiny:1")
    assert saved == Origin("docker-archive", f"{tmp_path}/image.tar", "tiny:1")
    assert str(saved) == f"docker-archive:{tmp_path}/image.tar:tiny:1"
    assert parse_origin("docker://debian:12") == Origin("skopeo", "docker://debian:12")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alpine", "is nothing that a template can be made from; there are debian, template:…"),
        ("rootfs:", "is nothing that a template"),
        ("zip:x", "is nothing that a template"),
        ("docker://", "names no image"),
        ("template:../x", "can't name a template"),
        ("rootfs:/no/such", "there is no folder /no/such"),
        ("tarball:/etc", "there is no file /etc"),
        ("oci:/no/such:tag", "there is no folder /no/such:tag"),
    ],
)
def test_a_bad_origin_says_what_it_should_be(text: str, said: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse_origin(text)
    assert said in str(caught.value)


def test_a_file_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.toml"
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(TemplateError, match=r"steps\.toml"):
        load_recipe(path)


def test_a_file_is_measured_before_it_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "steps.toml"
    path.write_text('a = "' + "x" * FILE_BYTES_MAX + '"')
    with pytest.raises(TemplateError, match="larger than a file of steps can be"):
        load_recipe(path)


def test_variables_that_the_guest_would_not_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="set fewer"):
        write_defaults(tmp_path, {"A": "\1" * 30_000}, "")
    assert not list(tmp_path.iterdir())


def test_no_template_shares_a_lock_with_the_layers() -> None:
    volumes = OverlayVolumes(Path("/nowhere"))
    assert not re.fullmatch(NAME, Layers(volumes).lock.name.removesuffix(".lock"))
