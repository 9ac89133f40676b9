"""What is given to an agent, which of its tools are ours, and which input is refused with which words."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from anthropic.types.beta import BetaManagedAgentsCustomTool
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from actors.custom_tools import TOOLS, BadInput, parse_keep, parse_try, served_of
from events.cli import build


def as_given(tool: dict[str, Any]) -> BetaManagedAgentsCustomTool:
    return BetaManagedAgentsCustomTool.model_validate(tool)


def words(given: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as refused:
        parse_try(given, variants_max=3, seconds_max=60)
    return str(refused.value)


def test_the_schemas_are_such_as_the_api_takes() -> None:
    for tool in TOOLS:
        schema = tool["input_schema"]
        assert schema["type"] == "object"
        assert not {"oneOf", "anyOf", "allOf"} & schema.keys()
        assert "$ref" not in json.dumps(schema)
        assert json.loads(as_given(tool).model_dump_json(exclude_none=True)) == tool


def test_the_command_prints_what_the_api_takes() -> None:
    assert json.loads(CliRunner().invoke(build(), ["tools", "--json"]).output) == TOOLS
    assert "try_in_parallel" in CliRunner().invoke(build(), ["tools"]).output


def test_tools_are_ours_by_name_and_by_what_they_take() -> None:
    ours = [as_given(tool) for tool in TOOLS]
    assert served_of(ours) == {"try_in_parallel", "keep"}
    assert served_of([]) == frozenset()
    another = copy.deepcopy(TOOLS[1])
    another["input_schema"]["properties"] = {"note": {"type": "string"}}
    assert served_of([ours[0], as_given(another)]) == {"try_in_parallel"}
    reworded = copy.deepcopy(TOOLS[1]) | {"description": "Keep one."}
    assert served_of([as_given(reworded)]) == {"keep"}


def test_what_is_not_said_has_a_default() -> None:
    asked = parse_try({"variants": [{"command": "a"}, {"name": "x", "command": "b"}]}, variants_max=3, seconds_max=60)
    assert asked.names == ["variant-1", "x"]
    assert asked.seconds is None
    assert asked.variants[0].files == {}
    assert parse_keep({"variant": "x"}).variant == "x"
    assert parse_keep({"none": True}).variant is None


ONE = {"command": "true"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "variants: Field required"),
        ({"variants": []}, "at least 1 item"),
        ({"variants": "x"}, "variants: Input should be a valid list"),
        ({"variants": [{}]}, "variants.0.command: Field required"),
        ({"variants": [{"command": ""}]}, "variants.0.command: String should have at least 1 character"),
        ({"variants": [{"command": 7}]}, "variants.0.command: Input should be a valid string"),
        ({"variants": [ONE | {"files": {"a": 1}}]}, "variants.0.files.a: Input should be a valid string"),
        ({"variants": [ONE | {"files": {str(one): "" for one in range(101)}}]}, "at most 100 items"),
        ({"variants": [ONE | {"name": "x" * 65}]}, "at most 64 characters"),
        ({"variants": [ONE | {"cmd": "x"}]}, "variants.0.cmd: Extra inputs are not permitted"),
        ({"variants": [ONE], "seconds": 0}, "seconds: Input should be greater than 0"),
        ({"variants": [ONE], "seconds": 61}, "a variant may run 60 at most"),
        ({"variants": [ONE] * 4}, "4 variants are more than the 3"),
        ({"variants": [ONE | {"name": "x"}, ONE | {"name": "x"}]}, "these names come twice: x"),
        ({"variants": [ONE | {"name": "variant-2"}, ONE]}, "these names come twice: variant-2"),
    ],
)
def test_bad_input_is_told_what_is_wrong_with_it(given: dict[str, Any], said: str) -> None:
    assert said in words(given)


def test_many_mistakes_are_told_in_few_words() -> None:
    said = words({"variants": [{"command": 1, "x" * 10_000: 1} for _ in range(1000)]})
    assert "and 1995 more" in said
    assert len(said) < 1000


@pytest.mark.parametrize("given", [{}, {"variant": "a", "none": True}, {"none": False}, {"variant": ""}, {"all": 1}])
def test_keep_takes_one_of_two(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="keep: the input can't be used"):
        parse_keep(given)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["variants", "command", "name", "files", "seconds", "variant"]), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["variants", "seconds", "variant", "none"]), JSON))
def test_no_input_raises_anything_else(given: dict[str, Any]) -> None:
    for parse in (parse_keep, lambda one: parse_try(one, variants_max=8, seconds_max=60)):
        with contextlib.suppress(BadInput):
            parse(given)
