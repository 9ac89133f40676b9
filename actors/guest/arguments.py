"""Checks a tool's input: which arguments there are and which values pass for a string, a number or a truth value.

The SDK validates with pydantic in its lax mode, so `"5"` passes for 5 and `"yes"` for true. The same holds here,
without pydantic: importing it would cost ten times the memory of the whole agent.
"""

from __future__ import annotations

import re

_TRUTHS = {
    **dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True),
    **dict.fromkeys(("0", "off", "f", "false", "n", "no"), False),
}
# Digits with single underscores between them, a sign, and a fraction that is nought.
_WHOLE = re.compile(r"[+-]?[0-9]+(?:_[0-9]+)*(?:\.0+)?\Z")
_MAX_DIGITS = 4300

_STRING, _INTEGER, _TRUTH, _INTEGERS = range(4)
# tool: argument: (kind, required)
_TOOLS: dict[str, dict[str, tuple[int, bool]]] = {
    "bash": {"command": (_STRING, False), "restart": (_TRUTH, False), "timeout_ms": (_INTEGER, False)},
    "read": {"file_path": (_STRING, True), "view_range": (_INTEGERS, False)},
    "write": {"file_path": (_STRING, True), "content": (_STRING, True)},
    "edit": {
        "file_path": (_STRING, True),
        "old_string": (_STRING, True),
        "new_string": (_STRING, True),
        "replace_all": (_TRUTH, False),
    },
    "glob": {"pattern": (_STRING, True), "path": (_STRING, False)},
    "grep": {"pattern": (_STRING, True), "path": (_STRING, False)},
}

TOOLS = frozenset(_TOOLS)
"""The six."""


def checked(tool: str, given: object) -> dict[str, object]:
    """The arguments of a tool, as it takes them; optional ones that are missing are None.

    Raises `TypeError` where the input is no object, `ValueError` where an argument is missing, unknown or of the wrong
    shape. The texts are the SDK's (contract §12).
    """
    if not isinstance(given, dict):
        raise TypeError(f"Input must be a dictionary, got {type(given).__name__}")
    known = _TOOLS[tool]
    try:
        if not given.keys() <= known.keys():
            raise _Unfit
        return {name: _argument(given, name, *rule) for name, rule in known.items()}
    except _Unfit:
        raise ValueError(f"Invalid arguments for function {tool}") from None


class _Unfit(Exception):
    """Raised when a value is not of the shape that is asked for."""


def _argument(given: dict[str, object], name: str, kind: int, required: bool) -> object:
    value = given.get(name)
    if value is None:
        if required:
            raise _Unfit
        return None
    if kind == _STRING:
        if isinstance(value, str):
            return value
        raise _Unfit
    if kind == _INTEGERS:
        if isinstance(value, list):
            return [_integer(item) for item in value]
        raise _Unfit
    return _truth(value) if kind == _TRUTH else _integer(value)


def _truth(value: object) -> bool:
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    raise _Unfit


def _integer(value: object) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        # Past 64 bits pydantic takes a float for no whole number.
        if value.is_integer() and -(2.0**63) <= value < 2.0**63:
            return int(value)
    elif isinstance(value, str):
        text = value.strip()
        if _WHOLE.match(text) and len(text) <= _MAX_DIGITS:
            return int(text.partition(".")[0])
    raise _Unfit
