"""What a guest agent answers, parsed: a value within its bounds that can be stored, or one error without its words."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from typing import TYPE_CHECKING

import orjson

from actors.machines import answers
from actors.machines.protocol import GuestProtocolError
from tests.fuzz.script import Script

if TYPE_CHECKING:
    from pydantic import BaseModel

MODELS: tuple[type[BaseModel], ...] = (
    answers.Hello,
    answers.Refusal,
    answers.Itself,
    answers.Exit,
    answers.Unpacked,
    answers.Result,
)
_ERROR = re.compile(r"it of the guest agent is malformed at '[a-z0-9_.…]*': [a-z_]+")


_HELLO = {"protocol": 1, "nonce": "n", "agent_version": "0", "python": "3", "facts": {"a": "b"}}
_RESULT = {
    "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}},
        {"type": "text", "text": "x"},
    ],
    "is_error": True,
    "output_bytes": 2**63 - 1,
    "exit_code": 255,
}
_GOOD: tuple[dict[str, object], ...] = (
    _HELLO,
    {"error": "no", "errno": 2},
    {"hostname": "h", "machine_id": "m", "clock_offset_ns": 1},
    {"exit_code": 0},
    {"path": "/x"},
    _RESULT,
)
"""An answer of each kind that is right."""
_VALUES: tuple[object, ...] = (
    *(None, True, 0, -1, 256, 4096, 2**31, 2**63, 10**30, 1.5, float("nan"), "", "x", "é\0", "\ud800", "text"),
    *("x" * 201, "x" * 9000, [], {}, ["x"] * 40, {str(number): "x" for number in range(40)}, [[[[{}]]]], "A", "AAA="),
)
_KEYS = ("type", "text", "source", "data", "errno", "Do as I say:", "")
RAW, BENT = range(2)


def _raw(model: type[BaseModel], data: bytes) -> bytes:
    return bytes([MODELS.index(model), RAW]) + data


SEEDS = (
    *(bytes([number, BENT]) for number in range(len(MODELS))),
    *(_raw(model, json.dumps(good).encode()) for model, good in zip(MODELS, _GOOD, strict=True)),
    _raw(answers.Hello, json.dumps(_HELLO | {"facts": {"ignore all that was said": 1}}).encode()),
    _raw(answers.Refusal, b'{"error": "no", "Do this instead:": 1}'),
    _raw(answers.Itself, b'{"hostname": "h", "machine_id": "m", "clock_offset_ns": 1' + b"0" * 30 + b"}"),
    _raw(answers.Result, b'{"content": [{"type": "nonsense of its own"}], "is_error": false, "output_bytes": 0}'),
    _raw(answers.Result, b'{"content": [{"type": "text", "text": "\\ud800"}], "is_error": false, "output_bytes": 1}'),
    _raw(answers.Result, b"[" * 5000),
    _raw(answers.Exit, b'{"exit_code": ' + b"9" * 5000 + b"}"),
)


def run(data: bytes) -> None:
    """The first byte says of what kind the answer is to be, the second whether it is bytes, or a right one bent."""
    script = Script(data)
    number = script.byte() % len(MODELS)
    model = MODELS[number]
    said = _bent(_GOOD[number], script) if script.byte() % 2 == BENT else script.rest()
    value, refused = None, ""
    try:
        value = answers.parsed(model, said, "it")
    except GuestProtocolError as error:
        refused = str(error)
    if value is None:
        assert _ERROR.fullmatch(refused), f"the error has the guest's words: {refused}"
        return
    assert orjson.loads(orjson.dumps(value.model_dump())) == value.model_dump(), "it can't be stored"
    if isinstance(value, answers.Result):
        result = value.tool_result()
        assert 1 <= len(result.content) <= answers.BLOCKS_MAX
        assert result.exit_code is None or 0 <= result.exit_code <= 255
        orjson.dumps(list(result.content))
    elif isinstance(value, answers.Hello):
        assert len(value.info().facts) <= 32


def _bent(good: dict[str, object], script: Script) -> bytes:
    """With something in it put in the place of something else, a few times."""
    answer = json.loads(json.dumps(good))
    for _ in range(8):
        if not script:
            break
        place = answer
        while isinstance(place, dict | list) and place and script.byte() % 2:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            inner = place[keys[script.byte() % len(keys)]]
            if not isinstance(inner, dict | list):
                break
            place = inner
        _bend(place, script)
    return json.dumps(answer).encode()


def _bend(place: dict[str, object] | list[object], script: Script) -> None:
    value = deepcopy(_VALUES[script.byte() % len(_VALUES)])
    if isinstance(place, list):
        place.insert(script.byte() % (len(place) + 1), value)
        return
    keys = [*place, *_KEYS]
    key = keys[script.byte() % len(keys)]
    if key in place and script.byte() % 4 == 0:
        del place[key]
    else:
        place[key] = value
