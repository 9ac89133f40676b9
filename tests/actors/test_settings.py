from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from actors.settings import Settings, SettingsError

KEY = "sk-ant-env-secret-value"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("HOURGLASS_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_options_win_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "hourglass.toml"
    file.write_text("max_idle = 1\nmax_sandboxes = 2\nblock_ms = 3\n[limits]\nprocesses = 50\n")
    monkeypatch.setenv("HOURGLASS_MAX_SANDBOXES", "4")
    monkeypatch.setenv("HOURGLASS_LIMITS__MEMORY_BYTES", "300000000")
    monkeypatch.setenv("HOURGLASS_BLOCK_MS", "5")
    settings = Settings.load(block_ms=6, max_idle=None)
    assert (settings.max_idle, settings.max_sandboxes, settings.block_ms) == (1, 4, 6)
    assert (settings.limits.processes, settings.limits.memory_bytes) == (50, 300_000_000)


def test_the_names_that_anthropics_tools_use_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_ENVIRONMENT_ID", "env_1")
    monkeypatch.setenv("ANTHROPIC_ENVIRONMENT_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:8000/")
    settings = Settings.load()
    assert (settings.environment_id, settings.base_url) == ("env_1", "http://127.0.0.1:8000")
    key = settings.read_environment_key()
    assert key is not None
    assert key.get_secret_value() == KEY


def test_the_key_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_ENVIRONMENT_KEY", KEY)
    settings = Settings.load()
    assert KEY not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_a_key_file_wins_and_holds_one_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    settings = Settings.load(environment_key="another-key-entirely", environment_key_file=file)
    key = settings.read_environment_key()
    assert key is not None
    assert key.get_secret_value() == KEY


@pytest.mark.parametrize("content", [b"", b"two keys-in-one-file", b"x" * 5000, b"sk-\xff\xfe-not-ascii"])
def test_what_can_not_be_a_key_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="the key file") as raised:
        Settings.load(environment_key_file=file).read_environment_key()
    assert "in-one" not in str(raised.value)


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't be read"):
        Settings.load(environment_key_file=tmp_path / "none").read_environment_key()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unknown = 1", "unknown: there is no such setting"),
        ("[limits]\nfoo = 1", "limits.foo: there is no such setting"),
        ("max_idle = 'x'", "max_idle: "),
        ("max_idle =", "is not valid TOML"),
        ("block_ms = 1000", "block_ms: "),
        ("base_url = 'ftp://x'", "base_url: must be an http"),
        ("base_url = 'http://user:pw@x'", "base_url: must be an http"),
        ("template = '../x'", "template: must be"),
        ("[limits]\nprocesses = 1", "limits.processes must be at least 16"),
        ("[limits]\ntool_seconds = 0", "limits.tool_seconds must be above 0"),
        ("isolation = 'none'", "isolation: "),
        ("log_level = 'loud'", "log_level: "),
        ("environment_key = ['sk-secret']", "environment_key: "),
    ],
)
def test_bad_values_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        Settings.load(file)
    assert message in str(raised.value)
    assert "sk-secret" not in str(raised.value)


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        Settings.load(tmp_path / "none.toml")


def test_a_nested_value_of_the_environment_that_is_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOURGLASS_LIMITS", "{sk-secret")
    with pytest.raises(SettingsError, match="limits") as raised:
        Settings.load()
    assert "sk-secret" not in str(raised.value)


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_ENVIRONMENT_KEY", "")
    assert Settings.load().read_environment_key() is None


def test_when_and_where_snapshots_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOURGLASS_SNAPSHOTS", "every:0")
    with pytest.raises(SettingsError, match="must be turn, call, never, or every:N"):
        Settings.load()
    monkeypatch.delenv("HOURGLASS_SNAPSHOTS")
    for given, kept in (("", ""), ("none", "none"), ("s3://b/c", "s3://b/c"), ("here", str(tmp_path / "here"))):
        monkeypatch.setenv("HOURGLASS_SNAPSHOT_STORE", given)
        assert Settings.load().snapshot_store == kept
