"""The custom tools that Hourglass serves: what to give an agent, and what comes back from it, strictly checked.

`TOOLS` goes into an agent's `tools`. A call of one of them arrives as `agent.custom_tool_use`, and the session answers
it; calls of all other custom tools are left to whoever made them up (contract §8.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterable

    from events.types import JsonObject

TRY = "try_in_parallel"
KEEP = "keep"

NAME_MAX = 64
FILES_MAX = 100
"""For one variant; how large they are is bounded by what the API takes in one request."""
_PROBLEMS_MAX = 5

TOOLS: list[dict[str, Any]] = [
    {
        "type": "custom",
        "name": TRY,
        "description": (
            "Try several variants of a change at once. Each variant gets a copy of your sandbox as it is now: files, "
            "running processes, the shell with its variables and working directory. In its copy the variant's files "
            "are written and its command is run, as `write` and `bash` would. Your own sandbox is not touched. The "
            "result is a JSON object whose `variants` tell, for each, its name, the id of its copy, the command's "
            "output, exit code, seconds, and whether it failed or ran out of time. Then call `keep` to go on in one of "
            "the copies. They are given up when you keep another, try again, or keep none. Use it to compare fixes, "
            "settings or approaches by running them."
        ),
        "input_schema": {
            "type": "object",
            "properties": {
                "variants": {
                    "type": "array",
                    "description": "What to try, one item for each copy of the sandbox; up to 8 unless set otherwise.",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "properties": {
                            "name": {
                                "type": "string",
                                "description": "What to call it; variant-1, variant-2, … where you do not say.",
                                "maxLength": NAME_MAX,
                            },
                            "files": {
                                "type": "object",
                                "description": "Files to write before the command runs: path to content.",
                                "additionalProperties": {"type": "string"},
                            },
                            "command": {"type": "string", "description": "The bash command to run."},
                        },
                        "required": ["command"],
                    },
                },
                "seconds": {
                    "type": "number",
                    "description": "How long the command of a variant may run; 120 unless set otherwise.",
                },
            },
            "required": ["variants"],
        },
    },
    {
        "type": "custom",
        "name": KEEP,
        "description": (
            "Go on in the copy of one variant of the last `try_in_parallel`: it becomes your sandbox, with everything "
            "the variant did, and your sandbox so far and the other copies are given up. Or, with `none`, give up all "
            "copies and go on where you are."
        ),
        "input_schema": {
            "type": "object",
            "properties": {
                "variant": {"type": "string", "description": "The variant's name, or the id of its copy."},
                "none": {"type": "boolean", "description": "True to keep none of them."},
            },
        },
    },
]
"""For the `tools` of `client.beta.agents.create` and `update`: JSON as the API takes it."""

_PROPERTIES = {tool["name"]: frozenset(tool["input_schema"]["properties"]) for tool in TOOLS}


def served_of(tools: Iterable[Any]) -> frozenset[str]:
    """Which of the custom tools of an agent are ours to answer.

    Args:
        tools: of the session's agent, as the SDK gives them. A tool that only has the name of one of ours, and takes
            other input, is somebody else's; its text may be anything.
    """
    found = {
        tool.name: frozenset(getattr(tool.input_schema, "properties", None) or ())
        for tool in tools
        if getattr(tool, "type", None) == "custom"
    }
    return frozenset(name for name, takes in found.items() if _PROPERTIES.get(name) == takes)


class BadInput(Exception):
    """Raised when a call's input can't be used; the message is for the agent."""


class _Input(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Variant(_Input):
    """One thing to try."""

    command: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX)] | None = None
    files: Annotated[dict[Annotated[str, Field(min_length=1)], str], Field(max_length=FILES_MAX)] = {}
    """Path in the guest to content."""


class TryInput(_Input):
    """What `try_in_parallel` takes."""

    variants: Annotated[list[Variant], Field(min_length=1)]
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @property
    def names(self) -> list[str]:
        """Of the variants, in their order."""
        return [variant.name or f"variant-{number}" for number, variant in enumerate(self.variants, start=1)]


class KeepInput(_Input):
    """What `keep` takes."""

    variant: Annotated[str, Field(min_length=1)] | None = None
    none: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> KeepInput:
        if (self.variant is None) is not self.none:
            raise ValueError('say either {"variant": NAME} or {"none": true}')
        return self


def parse_try(given: JsonObject, *, variants_max: int, seconds_max: float) -> TryInput:
    """The input of `try_in_parallel`. Raises `BadInput`."""
    try:
        asked = TryInput.model_validate(given)
    except ValidationError as error:
        raise _bad(TRY, error) from None
    count = len(asked.variants)
    if count > variants_max:
        raise BadInput(f"{TRY}: {count} variants are more than the {variants_max} that one call may try; send fewer")
    if asked.seconds is not None and asked.seconds > seconds_max:
        raise BadInput(f"{TRY}: seconds is {asked.seconds:g}, and a variant may run {seconds_max:g} at most")
    twice = sorted({name for name in asked.names if asked.names.count(name) > 1})
    if twice:
        raise BadInput(f"{TRY}: these names come twice: {', '.join(twice)}; give each variant a name of its own")
    return asked


def parse_keep(given: JsonObject) -> KeepInput:
    """The input of `keep`. Raises `BadInput`."""
    try:
        return KeepInput.model_validate(given)
    except ValidationError as error:
        raise _bad(KEEP, error) from None


def _bad(tool: str, error: ValidationError) -> BadInput:
    problems = []
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part)[:NAME_MAX] for part in one["loc"])
        problems.append(f"{where or 'input'}: {one['msg'].removeprefix('Value error, ')}")
    more = f"; and {len(problems) - _PROBLEMS_MAX} more" if len(problems) > _PROBLEMS_MAX else ""
    return BadInput(f"{tool}: the input can't be used. {'; '.join(problems[:_PROBLEMS_MAX])}{more}")
