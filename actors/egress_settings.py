"""What the settings say of the network: who may reach what, where names are, and which credentials the host adds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator, model_validator
from pydantic_settings import NoDecode

from events.egress_policy import INTERNAL_SUFFIX, NEVER_REACHABLE, EntryInvalid, Policy, normal_name

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_FRAMING = frozenset(("host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"))
# What people write where the value would stand.
_VALUES = frozenset({"value", "values", "token", "secret", "password", "pass", "key", "api_key", "bearer", "basic"})


def _entries(value: object) -> object:
    """Entries of an allowlist in their canonical texts; in a variable they are separated by commas or spaces."""
    texts = _split(value) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("must be a list of entries, as example.com or *.example.com:443")
    try:
        return Policy.parse(text for text in texts if text).texts
    except EntryInvalid as error:
        raise ValueError(f"{error} {error.advice}") from None


def _split(text: str) -> object:
    if text.lstrip()[:2] in ("[]", '["'):
        try:
            return json.loads(text)
        except ValueError:
            return None
    return re.split(r"[,\s]+", text)


def _addresses(value: object) -> object:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("must be an address, or a list of addresses")
    found = []
    for text in texts:
        try:
            address = ip_address("" if "%" in text else text)
        except ValueError:
            raise ValueError("must be an address, as 203.0.113.7 or 2001:db8::7") from None
        for network, what in NEVER_REACHABLE:
            if network.version == address.version and address in network:
                raise ValueError(f"{address} is one of {what} ({network}), which are never reachable")
        found.append(str(address))
    return tuple(dict.fromkeys(found))


EgressEntries = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_entries)]
"""An allowlist, canonical."""
AgentEntries = Annotated[tuple[str, ...], BeforeValidator(_entries)]
HostAddresses = Annotated[tuple[str, ...], BeforeValidator(_addresses)]


def names_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table by normal names; a credential's may have the `.internal` of the name that guests ask for.

    Raises `ValueError` for what is no name, and for one that is there twice.
    """
    found: dict[str, Any] = {}
    for name, value in table.items():
        try:
            normal = normal_name(name).removesuffix(INTERNAL_SUFFIX)
            if "." not in normal:
                raise ValueError("it has one label, and needs its domain")
        except ValueError as error:
            raise ValueError(f"{name[:80]!a} is no name of a host: {error}") from None
        if normal in found:
            raise ValueError(f"{normal} is there twice")
        found[normal] = value
    return found


class EgressCredential(BaseModel):
    """A credential that the host adds to requests to one name, and where its value is: never the value itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kind: Literal["bearer", "basic", "header"]
    """`bearer`: `Authorization: Bearer VALUE`. `basic`: a user's password. `header`: a header of its own."""
    header: str = ""
    """The header's name; where `kind` is `header`, and only there."""
    user: str = ""
    """Where `kind` is `basic`; not set: the value is `user:password`."""
    env: str = ""
    """The host's environment variable that has the value."""
    file: Path | None = None
    """The host's file that has the value and nothing else. Exactly one of these two."""

    @model_validator(mode="before")
    @classmethod
    def _no_value(cls, raw: object) -> object:
        if isinstance(raw, str) or (isinstance(raw, Mapping) and not _VALUES.isdisjoint(map(str.lower, raw))):
            raise ValueError(
                "a credential's value is no setting: put it into a file (file = ...) or an environment variable of "
                "the host (env = ...), and name that"
            )
        return raw

    @field_validator("file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value if value is None else value.expanduser().absolute()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.file is None) == (not self.env):
            raise ValueError("a credential has either file or env, for its value")
        if self.env and not _VARIABLE.fullmatch(self.env):
            raise ValueError("env must be the name of an environment variable, and not a value")
        if (self.kind == "header") != bool(self.header):
            raise ValueError("a credential has header where its kind is header, and only there")
        if self.header and not _HEADER.fullmatch(self.header):
            raise ValueError("header must be the name of a header, as X-Api-Key")
        if self.header.lower().replace("_", "-") in _FRAMING:
            raise ValueError("header must be none that frames a request, or says whom it is for")
        if self.user and (self.kind != "basic" or ":" in self.user or not self.user.isprintable()):
            raise ValueError("user goes with the kind basic, and has no colon in it")
        return self


@dataclass(frozen=True, slots=True)
class GivenEgress:
    """What the settings let sandboxes reach."""

    everyone: tuple[str, ...] = ()
    agents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By an agent's id or name."""

    def to(self, agent: tuple[str, ...]) -> tuple[str, ...]:
        """The list for the sessions of an agent, of which id and name are given; of none known: everyone's."""
        entries = [*self.everyone, *(entry for one in agent if one for entry in self.agents.get(one, ()))]
        return tuple(dict.fromkeys(entries))
