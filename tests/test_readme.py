"""The README tells the truth: commands, settings, limits, and what is in a sandbox."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main

from actors.machines.volumes import open_volumes
from actors.settings import Settings
from actors.template.manifest import load_manifest
from events.cli import build
from events.types import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted(ROOT.glob("*.md"))


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, by its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, one in inner.items():
        yield from commands(one, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(build())))


@pytest.mark.parametrize("words", sorted(COMMANDS), ids=" ".join)
def test_every_command_has_help_and_json_and_is_in_the_readme(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help
    assert any("--json" in parameter.opts for parameter in command.params)
    assert all(getattr(option, "help", None) or option.param_type_name == "argument" for option in command.params)
    assert f"hourglass {' '.join(words)}" in README


def test_every_command_that_a_page_names_exists() -> None:
    known = {words[: length + 1] for words in COMMANDS for length in range(len(words))}
    for page in PAGES:
        for named in re.findall(r"(?<![\w/.-])hourglass ((?:[a-z]+)(?: [a-z]+)?)", page.read_text()):
            words = tuple(named.split())
            assert words in known or words[:1] in known, f"{page.name}: hourglass {named}"


def test_what_is_in_a_sandbox_was_found_in_the_template() -> None:
    (claim,) = re.findall(r"It has (.+?); `hourglass template show`", README, re.DOTALL)
    claimed = set(re.findall(r"`([^`]+)`", claim))
    settings = Settings()
    volumes = open_volumes(settings.storage, settings.volumes, settings.pool_bytes)
    volumes.prepare()
    found = load_manifest(volumes.templates, "base").programs
    assert len(claimed) >= 10
    assert claimed <= set(found)


def test_the_settings_of_the_readme_are_the_defaults() -> None:
    (block,) = re.findall(r"```toml\n(.+?)```", README, re.DOTALL)
    written = tomllib.loads(block)
    limits = written.pop("limits")
    fields = Settings.model_fields
    for name, value in written.items():
        default = fields[name].get_default(call_default_factory=True)
        assert type(default)(value) == default, name
    assert Limits(**limits) == Limits()
    assert set(limits) | {"cpus"} == set(Limits.model_fields)


def test_pages_link_to_what_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
