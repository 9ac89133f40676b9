"""Metadata: a small map of strings that requests merge into (contract §3.3)."""

from __future__ import annotations

from typing import Any

from replay.server.errors import invalid

_KEYS_LIMIT = 16
_KEY_LENGTH = 64
_VALUE_LENGTH = 512


def merged(old: dict[str, str], patch: Any) -> dict[str, str]:
    """Metadata after a merge patch, in which null deletes a key. Raises ApiError (400)."""
    if patch is None:
        return old
    if not isinstance(patch, dict) or not all(isinstance(value, str | None) for value in patch.values()):
        raise invalid("metadata: must be a map of strings", "invalid_metadata")
    both: dict[str, str | None] = {**old, **patch}
    kept = {key: value for key, value in both.items() if value is not None}
    if len(kept) > _KEYS_LIMIT or any(len(k) > _KEY_LENGTH or len(v) > _VALUE_LENGTH for k, v in kept.items()):
        message = f"metadata: at most {_KEYS_LIMIT} keys of {_KEY_LENGTH} characters with values of {_VALUE_LENGTH}"
        raise invalid(message, "invalid_metadata")
    return kept
