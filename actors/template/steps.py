"""The steps of a template, as its TOML file has them.

A file holds `[[step]]` tables in order, each with one of:

    run = "make install"            # in a machine of its own, with no network, as root; stops at the first failure
    env = { NAME = "value" }        # for the steps after it, and for every sandbox
    workdir = "/app"                # likewise: where commands start
    copy = { from = "src", to = "/app/" }   # from the folder of the file; links are not followed out of it

and, beside `run`, `timeout` in seconds. Above them may stand `from`, as after `--from`.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from actors.template.manifest import TemplateError
from actors.template.rooted import BadPath, parts_of

FILE_BYTES_MAX = 1024**2
ENV_BYTES_MAX = 32 * 1024
"""Of all variables together: less than the guest reads of its defaults."""
_NAMES = ("run", "env", "workdir", "copy")


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @property
    def key(self) -> str:
        """What it is, as one text: the same for the same step."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True)


class RunStep(_Step):
    """A command."""

    kind: Literal["run"] = "run"
    run: Annotated[str, Field(min_length=1, max_length=256 * 1024)]
    timeout: Annotated[float, Field(gt=0, le=24 * 3600, exclude=True)] = 1800.0
    """Seconds. No part of what the step is: a longer one has the same effect."""

    @field_validator("run")
    @classmethod
    def _text(cls, value: str) -> str:
        if "\0" in value or not value.strip():
            raise ValueError("must be a command")
        return value

    def __str__(self) -> str:
        return f"run {self.run.strip().splitlines()[0][:80]}"


class EnvStep(_Step):
    """Environment variables."""

    kind: Literal["env"] = "env"
    env: Annotated[dict[str, str], Field(min_length=1)]

    @field_validator("env")
    @classmethod
    def _variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} can't name a variable")
            if "\0" in text:
                raise ValueError(f"the value of {name} has a NUL")
        return value

    def __str__(self) -> str:
        return f"env {' '.join(self.env)}"


class WorkdirStep(_Step):
    """The folder in which commands start; made where there is none."""

    kind: Literal["workdir"] = "workdir"
    workdir: str

    @field_validator("workdir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return _inside(value)

    def __str__(self) -> str:
        return f"workdir {self.workdir}"


class Copied(BaseModel):
    """What is copied where."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    source: Annotated[str, Field(alias="from", min_length=1)]
    """Relative to the folder of the file."""
    to: str
    """A path in the root. One that ends in "/" is a folder into which a file is put under its own name."""

    @field_validator("source")
    @classmethod
    def _below(cls, value: str) -> str:
        if value.startswith("/"):
            raise ValueError("must be relative to the folder of the file")
        try:
            parts_of(value)
        except BadPath:
            raise ValueError("must stay in the folder of the file") from None
        return value

    @field_validator("to")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return _inside(value) + ("/" if value.endswith("/") and value.strip("/") else "")


class CopyStep(_Step):
    """A file or a folder from beside the steps' file; belongs to root."""

    kind: Literal["copy"] = "copy"
    copied: Annotated[Copied, Field(alias="copy")]

    def __str__(self) -> str:
        return f"copy {self.copied.source} to {self.copied.to}"


Step = Annotated[RunStep | EnvStep | WorkdirStep | CopyStep, Field(discriminator="kind")]
_STEP: TypeAdapter[Step] = TypeAdapter(Step)


class Recipe(BaseModel):
    """What a file of steps says."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    origin: str | None
    """Its `from`."""
    steps: tuple[Step, ...]
    context: Path
    """The folder of the file, from which is copied."""


def load_recipe(path: Path) -> Recipe:
    """Read a file of steps. Raises `TemplateError`, which names the step and what is wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise TemplateError(f"{path} is larger than a file of steps can be: {FILE_BYTES_MAX // 1024} KiB")
        said = tomllib.loads(data.decode())
    except RecursionError:
        raise TemplateError(f"{path} is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise TemplateError(f"{path} is not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"the steps' file {path} can't be read: {error}") from None
    tables, origin = said.pop("step", []), said.pop("from", None)
    if said:
        raise TemplateError(
            f"{path}: there is no {', '.join(sorted(said))} here; a file has `from` and [[step]] tables"
        )
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise TemplateError(f"{path}: steps are [[step]] tables, with two brackets")
    if origin is not None and not isinstance(origin, str):
        raise TemplateError(f"{path}: from is to be a text, as after --from")
    steps = tuple(_step(f"{path}, step {number}", table) for number, table in enumerate(tables, 1))
    variables = [pair for one in steps if isinstance(one, EnvStep) for pair in one.env.items()]
    if sum(len(name) + len(value.encode()) for name, value in variables) > ENV_BYTES_MAX:
        raise TemplateError(f"{path}: the variables together are larger than {ENV_BYTES_MAX // 1024} KiB")
    return Recipe(origin=origin, steps=steps, context=path.absolute().parent)


def _step(where: str, table: dict[str, Any]) -> Step:
    names = [name for name in _NAMES if name in table]
    unknown = sorted(set(table) - {*_NAMES, "timeout"})
    if unknown:
        raise TemplateError(f"{where}: there is no {unknown[0]!r}; a step has one of {', '.join(_NAMES)}")
    if len(names) != 1:
        said = f"has {' and '.join(names)}" if names else "says nothing to do"
        raise TemplateError(f"{where} {said}; a step has exactly one of {', '.join(_NAMES)}")
    try:
        return _STEP.validate_python({**table, "kind": names[0]})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        if first["type"] == "extra_forbidden":
            raise TemplateError(f"{where}: there is no {place} in a step of kind {names[0]}") from None
        raise TemplateError(f"{where}: {place}: {first['msg'].removeprefix('Value error, ')}") from None


def _inside(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("must be an absolute path, from the root of the template")
    try:
        return "/" + "/".join(parts_of(path))
    except BadPath as error:
        raise ValueError(str(error)) from None
