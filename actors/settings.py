"""What a user can set, where it comes from, and what it means.

From the strongest to the weakest: options of the command, environment variables (`HOURGLASS_<NAME>`, and
`HOURGLASS_LIMITS__<NAME>` for a limit), a TOML file (`--config`, else `hourglass.toml` in the working directory), the
defaults below. Three settings also have the names that Anthropic's own tools use: `ANTHROPIC_ENVIRONMENT_ID`,
`ANTHROPIC_ENVIRONMENT_KEY` and `ANTHROPIC_BASE_URL`.

Sizes are in bytes and durations in seconds, unless a field says otherwise.
"""

from __future__ import annotations

import os
import re
import tomllib
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SourceError
from pydantic_settings.sources import InitSettingsSource

from actors.egress_settings import (
    AgentEntries,
    EgressCredential,
    EgressEntries,
    GivenEgress,
    HostAddresses,
    names_of,
)
from events.types import Limits

DEFAULT_CONFIG_FILE = "hourglass.toml"
ANTHROPIC_API = "https://api.anthropic.com"
_MIB = 1024**2
_SMALLEST_KEY_FILE_BYTES = 8
_LARGEST_KEY_FILE_BYTES = 4096

# Which file this load reads. A ContextVar, because pydantic-settings asks a class method for the sources, and a class
# made for each file could not be pickled for a Ray actor.
_config_file: ContextVar[Path | None] = ContextVar("_config_file", default=None)


class SettingsError(Exception):
    """Raised when a setting can't be used. The message names it and says what it should be, never a secret's value."""

    next_step = "Correct it where it is set: an option, a HOURGLASS_… variable, or the settings file."


def default_state_dir() -> Path:
    """Where state lies if nobody says: `/var/lib/hourglass` for root, else the user's XDG state folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/hourglass")
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local/state") / "hourglass"


class Settings(BaseSettings):
    """Everything that can be set. Use `Settings.load()`, which turns bad values into one clear `SettingsError`."""

    model_config = SettingsConfigDict(
        env_prefix="HOURGLASS_",
        env_nested_delimiter="__",
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        # A rejected key must not be quoted in the error.
        hide_input_in_errors=True,
    )

    home: Path = Field(default_factory=default_state_dir)
    """The folder of one log: `log.db`, blobs, live output. One `hourglass up` at a time serves it."""
    storage: Path = Field(default_factory=lambda: default_state_dir() / "storage")
    """The folder of templates and sandboxes' file trees. Several homes may share one."""
    template: str = "base"
    """Name of the template that new sandboxes start from."""
    driver: Literal["gvisor"] = "gvisor"
    """How machines are made."""
    volumes: Literal["auto", "btrfs", "overlay"] = "auto"
    """How sandboxes' files are kept: btrfs where the kernel has it, else overlays, whose snapshots are copies."""
    pool_bytes: int = Field(default=256 * 1024**3, ge=1024 * _MIB)
    """Size of the sparse btrfs file of the file trees, used when it is first made. It takes up what is written."""
    limits: Limits = Limits()
    """What one sandbox may use: `memory_bytes`, `processes`, `disk_bytes`, `cpus`, `tool_seconds`."""
    isolation: Literal["host", "process"] = "host"
    """`host`: sessions and sandboxes are entities of their node's host. `process`: each is a Ray actor of its own."""

    environment_id: str | None = Field(
        default=None, validation_alias=AliasChoices("HOURGLASS_ENVIRONMENT_ID", "ANTHROPIC_ENVIRONMENT_ID")
    )
    """The self-hosted environment that is served (`env_…`)."""
    environment_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("HOURGLASS_ENVIRONMENT_KEY", "ANTHROPIC_ENVIRONMENT_KEY")
    )
    """The environment's key. A file (`environment_key_file`) is the better place for it."""
    environment_key_file: Path | None = None
    """A file that holds the environment's key and nothing else, readable by this user alone. Wins over the other."""
    base_url: str = Field(
        default=ANTHROPIC_API, validation_alias=AliasChoices("HOURGLASS_BASE_URL", "ANTHROPIC_BASE_URL")
    )
    """Where the API is."""
    worker_id: str | None = Field(default=None, min_length=1, max_length=128)
    """What this worker calls itself to the queue; made from the host's name if not set."""
    block_ms: int = Field(default=999, ge=1, le=999)
    """How long one poll may wait at the server, in milliseconds; the API's cap is 999 (contract §4)."""
    reclaim_older_than_ms: int | None = Field(default=None, ge=1)
    """After how many milliseconds without an ack a reserved item is offered again; the server's 5000 if not set."""

    max_sandboxes: int = Field(default=20, ge=1)
    """How many machines one node runs at a time."""
    freeze: Literal["turn", "call", "never"] = "turn"
    """When a machine gets no CPU: between turns, between calls too (while the model thinks), or never."""
    suspend_after: float = Field(default=300.0, ge=0)
    """How long a sandbox is kept in memory that no session uses, in seconds; then it is put to disk."""
    memory_reserve_bytes: int = Field(default=1024 * _MIB, ge=0)
    """Memory that the node is to keep available: below it, sandboxes that nobody uses are put to disk early."""
    waiting_containers: int = Field(default=2, ge=0)
    """Containers that are created ahead, for the next sandboxes that start."""
    fork_max: int = Field(default=64, ge=1)
    """How many forks one call may make."""
    try_max: int = Field(default=8, ge=1)
    """How many variants an agent may try in one call of `try_in_parallel`; never more than `fork_max`."""
    try_seconds: float = Field(default=120.0, gt=0)
    """How long the command of one variant may run, in seconds; never longer than `limits.tool_seconds`."""
    snapshots: str = "turn"
    """When a snapshot is taken by itself: at a turn's end, after each tool call, after every so many (`every:10`), or
    never. A suspend, a fork and `hourglass snapshot` take one in any case."""
    snapshot_store: str = ""
    """Where snapshots are kept, beside the node that took them: a folder, or any URL of fsspec. "": the folder
    `snapshots` in the home. `none`: nowhere."""
    snapshots_local: int = Field(default=2, ge=1)
    """How many of a sandbox's snapshots lie whole on the node, ready to resume; older ones are in the store alone."""
    snapshots_waiting: int = Field(default=50, ge=1)
    """How many of a sandbox's snapshots wait on the node for a store that fails or is slow: of older ones, those that
    nobody asked for and nothing needs are given up. Of a sandbox that the store refuses, `snapshots_local` stay."""
    max_idle: float = Field(default=60.0, ge=0)
    """How long a session is held after its agent's turn ended, in seconds."""
    max_silence: float = Field(default=900.0, gt=0)
    """How long a session may show no progress before its lease is given up, in seconds. It bounds no run time."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """How long a stop waits for tool calls that run, in seconds."""

    egress: EgressEntries = ()
    """What every sandbox may reach: `name`, `*.name`, `name:port`, a network. Nothing else is reachable."""
    egress_agents: dict[str, AgentEntries] = Field(default_factory=dict)
    """What sandboxes of an agent's sessions may reach as well, by the agent's id or name."""
    egress_hosts: dict[str, HostAddresses] = Field(default_factory=dict)
    """Names with addresses of your own, whatever the DNS says. A private one must be in a listed network as well."""
    egress_credentials: dict[str, EgressCredential] = Field(default_factory=dict)
    """Credentials that the host adds, by the name of the server: guests ask `http://NAME.internal/`."""

    log_level: Literal["debug", "info", "warning"] = "info"
    """What the service's processes say on standard error. `debug` has each request to the API too, but no key."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Where on loopback Prometheus finds the metrics, at `/metrics`; 0: any free port. Not served if not set."""
    ray_address: str | None = None
    """A Ray cluster to join; a Ray of our own on this machine, bound to loopback, if not set."""
    durability: Literal["full", "normal"] = "full"
    """`full`: an acknowledged event survives a power cut. `normal`: it survives a crash of the process."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then the environment, then the TOML file of this load."""
        path = _config_file.get()
        file_values = _read_toml(path) if path is not None else {}
        return init_settings, env_settings, InitSettingsSource(settings_cls, file_values)

    @classmethod
    def load(cls, config: Path | None = None, **options: Any) -> Self:
        """Read the settings. An option that is None counts as not given.

        Raises `SettingsError` for a bad value, an unknown name in the file, or a file that can't be read.
        """
        if config is None:
            path = Path(DEFAULT_CONFIG_FILE) if Path(DEFAULT_CONFIG_FILE).is_file() else None
        elif config.is_file():
            path = config
        else:
            raise SettingsError(f"the settings file {config} does not exist")
        token = _config_file.set(path)
        try:
            return cls(**{name: value for name, value in options.items() if value is not None})
        except ValidationError as error:
            raise SettingsError(_explain(error)) from None
        except SourceError as error:
            # Only a nested value that is no JSON comes here; its text names the variable and not the value.
            raise SettingsError(f"a setting in the environment can't be read: {error}") from None
        finally:
            _config_file.reset(token)

    @field_validator("home", "storage", "environment_key_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value if value is None else value.expanduser().absolute()

    @field_validator("snapshots")
    @classmethod
    def _policy(cls, value: str) -> str:
        if not re.fullmatch(r"turn|call|never|every:[1-9][0-9]{0,5}", value):
            raise ValueError("must be turn, call, never, or every:N with N from 1 to 999999, as every:10")
        return value

    @field_validator("snapshot_store")
    @classmethod
    def _place(cls, value: str) -> str:
        # Else it would be another folder for each process that is started elsewhere.
        return value if value in ("", "none") or "://" in value else str(Path(value).expanduser().absolute())

    @field_validator("template")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", value):
            raise ValueError("must be 1 to 40 of a-z, 0-9 and '-'")
        return value

    @field_validator("base_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
            raise ValueError("must be an http or https address without a user name or a query")
        return value.rstrip("/")

    @field_validator("egress_hosts", "egress_credentials")
    @classmethod
    def _by_name(cls, value: dict[str, Any]) -> dict[str, Any]:
        return names_of(value)

    @field_validator("environment_id", "environment_key", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        # An exported but empty variable is how shells say "none".
        return None if value == "" else value

    @model_validator(mode="after")
    def _sane_limits(self) -> Self:
        smallest = {"memory_bytes": 128 * _MIB, "processes": 16, "disk_bytes": 16 * _MIB, "cpus": 0.05}
        for name, least in smallest.items():
            if getattr(self.limits, name) < least:
                raise ValueError(f"limits.{name} must be at least {least}")
        if self.limits.tool_seconds <= 0:
            raise ValueError("limits.tool_seconds must be above 0")
        return self

    @property
    def given_egress(self) -> GivenEgress:
        """What these settings let sandboxes reach."""
        return GivenEgress(self.egress, self.egress_agents)

    @property
    def store_url(self) -> str | None:
        """Where the snapshot store is; None where there is none."""
        if self.snapshot_store == "none":
            return None
        return self.snapshot_store or str(self.home / "snapshots")

    def read_environment_key(self) -> SecretStr | None:
        """The environment's key, from its file where one is set; None where there is neither.

        Raises `SettingsError` where the file can't be read or can't be a key.
        """
        if self.environment_key_file is None:
            return self.environment_key
        try:
            with self.environment_key_file.open("rb") as file:
                raw = file.read(_LARGEST_KEY_FILE_BYTES + 1)
        except OSError as error:
            raise SettingsError(
                f"the key file {self.environment_key_file} can't be read ({error.strerror}); "
                "set environment_key_file to a file that holds the environment's key"
            ) from None
        if not _SMALLEST_KEY_FILE_BYTES <= len(raw.strip()) <= _LARGEST_KEY_FILE_BYTES or len(raw.split()) != 1:
            raise SettingsError(f"the key file {self.environment_key_file} must hold one key and nothing else")
        try:
            return SecretStr(raw.strip().decode("ascii"))
        except UnicodeDecodeError:
            raise SettingsError(f"the key file {self.environment_key_file} must hold ASCII text") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} can't be read: {error}") from None


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"]).removeprefix("HOURGLASS_").lower()
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such setting"
        problems.append(f"{name}: {message}" if name else message)
    return "; ".join(problems)
