"""The guest's resolver, as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.guest import names

LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=3).map(".".join)


def question(name: str, kind: int = names.TYPE_A, number: int = 7) -> bytes:
    text = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + text + b"\0" + struct.pack("!HH", kind, 1)


@given(NAME, st.sampled_from([1, 28, 12, 255, 65]))
def test_a_question_is_read_and_comes_back_in_its_answer(name: str, kind: int) -> None:
    data = question(name.upper(), kind)
    asked = names.parse(data)
    assert asked is not None
    assert (asked.name, asked.type) == (name, kind)
    answer = asked.answer(names.NOTHING_WRONG, b"\xc6\x12\0\1")
    assert answer[:2] == data[:2]
    assert struct.unpack_from("!HHH", answer, 2) == (0x8580, 1, 1)
    assert answer[12:].startswith(data[12:])
    assert answer.endswith(b"\xc6\x12\0\1")


def test_an_error_has_no_record() -> None:
    asked = names.parse(question("a.example"))
    assert asked is not None
    answer = asked.answer(names.NO_NAME)
    assert struct.unpack_from("!HHHHH", answer, 2) == (0x8583, 1, 0, 0, 0)
    assert len(answer) == len(question("a.example"))


@given(st.binary(max_size=600))
def test_nothing_else_is_a_question(data: bytes) -> None:
    asked = names.parse(data)
    assert asked is None or len(asked.answer(names.REFUSED)) <= len(data)


@pytest.mark.parametrize(
    "data",
    [
        question("a.example")[:-1],
        question("a.example").replace(struct.pack("!HH", 1, 1), struct.pack("!HH", 1, 3)),
        struct.pack("!HHHHHH", 7, 0x8100, 1, 0, 0, 0) + question("a.example")[12:],
        struct.pack("!HHHHHH", 7, 0x0100, 2, 0, 0, 0) + question("a.example")[12:],
        question("a.example")[:12] + b"\xc0\x0c" + struct.pack("!HH", 1, 1),
    ],
)
def test_what_a_resolver_need_not_answer_is_passed_over(data: bytes) -> None:
    assert names.parse(data) is None


def test_names_keep_their_addresses_until_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "NAMES_MAX", 3)
    known = names.Names()
    first = known.address("a.example")
    others = {known.address(f"{letter}.example") for letter in "bc"}
    assert known.address("a.example") == first
    assert first[:2] == b"\xc6\x12"
    fourth = known.address("d.example")
    assert fourth not in {first, *others}
    assert known.name(first) == "a.example"
    assert {known.name(address) for address in others} == {None, "c.example"}
    assert known.reverse(".".join(map(str, reversed(first))) + ".in-addr.arpa") == "a.example"


@given(st.text(max_size=40).map(lambda text: text + ".in-addr.arpa"))
def test_no_text_breaks_the_way_back(text: str) -> None:
    assert names.Names().reverse(text) is None
