"""The root command: what it gathers, and how it ends."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from events import cli


class Entry:
    """A stand-in for an entry point, since what is installed is not what is tested."""

    def __init__(self, name: str, target: Any) -> None:
        self.name = name
        self.target = target

    def load(self) -> Any:
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hourglass", *arguments])
    monkeypatch.setattr(cli, "entry_points", lambda **_: [Entry("events", cli.register)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_a_package_that_can_not_be_imported_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [
        Entry("events", cli.register),
        Entry("actors", ModuleNotFoundError("No module named 'ray'\x1b")),
        Entry("replay", ValueError("two\nlines")),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda **_: entries)
    app = cli.build()
    assert capsys.readouterr().err.splitlines() == [
        "warning: the commands of actors are missing: ModuleNotFoundError: No module named 'ray'\\x1b",
        "warning: the commands of replay are missing: ValueError: two\\nlines",
    ]
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "sandboxes" in result.stdout


def test_version_and_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"hourglass {importlib.metadata.version('hourglass-agents')}\n"
    assert _main(monkeypatch, "log", "tail", "--no-such-option") == 2
    assert _main(monkeypatch, "log", "tail", "-n", "-1") == 2


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def register(app: typer.Typer) -> None:
        @app.command()
        def crash() -> None:
            raise ZeroDivisionError

        @app.command()
        def other() -> None:
            pass

    monkeypatch.setattr(sys, "argv", ["hourglass", "crash"])
    monkeypatch.setattr(cli, "entry_points", lambda **_: [Entry("x", register)])
    with pytest.raises(ZeroDivisionError):
        cli.main()
