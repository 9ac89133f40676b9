"""What the settings say of the network, and what they refuse before anything is served."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from actors.egress_settings import GivenEgress
from actors.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    return Settings.load(file)


WHOLE = """
egress = ["Index.example.org", "*.example.net:443", "index.example.org.", "10.1.0.0/16:5432"]

[egress_agents]
agent_1 = ["github.com"]
coder = ["github.com:22", "index.example.org"]

[egress_hosts]
"DB.example.com" = "10.1.0.5"
"six.example.com" = ["2001:db8::7", "2001:0db8::7"]

[egress_credentials."api.example.com"]
kind = "bearer"
file = "key"

[egress_credentials."repo.example.com.internal"]
kind = "basic"
user = "ci"
env = "REPO_PASSWORD"

[egress_credentials."other.example.com"]
kind = "header"
header = "X-Api-Key"
env = "OTHER_KEY"
"""


def test_settings_are_kept_in_one_spelling(tmp_path: Path) -> None:
    settings = loaded(tmp_path, WHOLE)
    assert settings.egress == ("index.example.org", "*.example.net:443", "10.1.0.0/16:5432")
    assert settings.egress_agents == {"agent_1": ("github.com",), "coder": ("github.com:22", "index.example.org")}
    assert settings.egress_hosts == {"db.example.com": ("10.1.0.5",), "six.example.com": ("2001:db8::7",)}
    assert list(settings.egress_credentials) == ["api.example.com", "repo.example.com", "other.example.com"]
    assert settings.egress_credentials["api.example.com"].file == tmp_path / "key"
    assert settings.egress_credentials["repo.example.com"].user == "ci"
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_nothing_is_reachable_unless_it_is_set() -> None:
    settings = Settings.load()
    assert settings.given_egress.to(("agent_1", "coder")) == ()


def test_what_an_agents_sessions_may_reach(tmp_path: Path) -> None:
    given = loaded(tmp_path, WHOLE).given_egress
    everyone = ("index.example.org", "*.example.net:443", "10.1.0.0/16:5432")
    assert given.to(()) == given.to(("agent_2", "other")) == everyone
    assert given.to(("agent_1", "other")) == (*everyone, "github.com")
    assert given.to(("agent_1", "coder")) == (*everyone, "github.com", "github.com:22")
    assert GivenEgress((), {"": ("a.example",)}).to(("", "")) == ()


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("a.example,*.b.example:22", ("a.example", "*.b.example:22")),
        (" a.example  *.b.example:22 ", ("a.example", "*.b.example:22")),
        ('["a.example"]', ("a.example",)),
        ("[2001:db8::]/32:443", ("[2001:db8::]/32:443",)),
        ("[]", ()),
        ("", ()),
    ],
)
def test_a_variable_has_entries_as_people_write_lists(
    monkeypatch: pytest.MonkeyPatch, text: str, entries: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HOURGLASS_EGRESS", text)
    assert Settings.load().egress == entries


def test_a_variable_with_broken_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOURGLASS_EGRESS", '["a.example"')
    with pytest.raises(SettingsError, match="egress: must be a list of entries"):
        Settings.load()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('egress = ["*"]', "egress: * is no entry of an egress list: a bare * would allow everything"),
        ('egress = ["https://example.com"]', "write only the name"),
        ("egress = [1]", "egress: must be a list of entries"),
        ("egress = 1", "egress: must be a list of entries"),
        ('[egress_agents]\ncoder = ["localhost"]', "egress_agents.coder: localhost is no entry"),
        ("[egress_agents]\ncoder = 5", "egress_agents.coder: must be a list"),
        ('[egress_hosts]\n"a b" = "10.0.0.1"', "egress_hosts: 'a b' is no name of a host"),
        ('[egress_hosts]\n"db" = "10.0.0.1"', "it has one label"),
        ('[egress_hosts]\n"a.example" = "a.example"', "egress_hosts.a.example: must be an address"),
        ('[egress_hosts]\n"a.example" = []', "must be an address"),
        ('[egress_hosts]\n"a.example" = "127.0.0.1"', "127.0.0.1 is one of loopback addresses"),
        ('[egress_hosts]\n"a.example" = "fe80::1%eth0"', "must be an address"),
        ('[egress_hosts]\n"a.example" = "10.0.0.1"\n"A.example." = "10.0.0.2"', "a.example is there twice"),
        ('[egress_credentials]\n"a.example" = "sk-secret"', "a credential's value is no setting"),
        (
            '[egress_credentials."a.example"]\nkind = "bearer"\nvalue = "sk-secret"',
            "a credential's value is no setting",
        ),
        ('[egress_credentials."a.example"]\nkind = "bearer"\nToken = "sk-secret"', "file = ..."),
        ('[egress_credentials."a.example"]\nkind = "bearer"\nenv = "sk-secret"', "and not a value"),
        ('[egress_credentials."a.example"]\nkind = "bearer"', "either file or env"),
        ('[egress_credentials."a.example"]\nkind = "bearer"\nenv = "A"\nfile = "b"', "either file or env"),
        ('[egress_credentials."a.example"]\nkind = "magic"\nenv = "A"', "egress_credentials.a.example.kind: "),
        ('[egress_credentials."a.example"]\nkind = "header"\nenv = "A"', "has header where its kind is header"),
        ('[egress_credentials."a.example"]\nkind = "bearer"\nheader = "X-A"\nenv = "A"', "has header where"),
        ('[egress_credentials."a.example"]\nkind = "header"\nheader = "X A"\nenv = "A"', "the name of a header"),
        ('[egress_credentials."a.example"]\nkind = "basic"\nuser = "a:b"\nenv = "A"', "no colon"),
        ('[egress_credentials."a.example"]\nkind = "bearer"\nuser = "a"\nenv = "A"', "user goes with the kind basic"),
        ('[egress_credentials."127.0.0.1"]\nkind = "bearer"\nenv = "A"', "is no name of a host"),
        ('[egress_credentials."a.example"]\nkind = "bearer"\nenv = "A"\nmore = 1', "there is no such setting"),
    ],
)
def test_what_can_not_be_is_refused_at_the_start(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        loaded(tmp_path, text)
    assert said in str(refused.value)
    assert "sk-secret" not in str(refused.value)
    assert "sk-secret" not in str(refused.value.__cause__)
