"""What the key search would find: a secret in every form, between anything."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.escape.needles import Needles

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "sk-ant-oat01-~S2c?r>e/t+K1e-y_that~is?like>none"
around = st.binary(max_size=5)
WAYS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda raw: raw,
    "JSON": lambda raw: json.dumps(raw.decode("latin-1")).encode(),
    "base64": base64.b64encode,
    "urlsafe base64": base64.urlsafe_b64encode,
    "hex": lambda raw: raw.hex().encode(),
    "HEX": lambda raw: raw.hex().upper().encode(),
    "reversed": lambda raw: raw[::-1],
    "percent-encoded": lambda raw: "".join(f"%{byte:02X}" for byte in raw).encode(),
    "percent-encoded in small letters": lambda raw: "".join(f"%{byte:02x}" for byte in raw).encode(),
    "UTF-16": lambda raw: raw.decode("latin-1").encode("utf-16-le"),
}


@pytest.mark.parametrize("way", WAYS)
@given(before=around, after=around, cut=st.sampled_from([slice(None), slice(None, 26), slice(21, None)]))
@settings(max_examples=25, derandomize=True)
def test_a_secret_is_found_in_every_form_whole_and_split(way: str, before: bytes, after: bytes, cut: slice) -> None:
    hidden = WAYS[way](before + SECRET[cut].encode() + after)
    assert Needles({"key": SECRET}).search([("here", hidden)])


def test_a_key_of_the_api_is_found_in_an_address() -> None:
    key = "sk-ant-api03-" + "aB3_-" * 8
    assert Needles({"key": key}).search([("here", quote(f"https://x/?key={key}", safe="").encode())])


@given(st.binary(max_size=300))
@settings(max_examples=50, derandomize=True)
def test_nothing_is_found_where_there_is_nothing(data: bytes) -> None:
    assert (
        Needles({"key": SECRET}).search([("here", data), ("there", b"sk-ant-oat01-"), ("beside", SECRET[:20].encode())])
        == []
    )


def test_what_is_too_short_to_search_for_is_said_so() -> None:
    with pytest.raises(ValueError, match="halves"):
        Needles({"key": "too-short"})
