"""The frame codec: whatever way the bytes are cut, the frames come out whole; nothing else does."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.guest import frames
from actors.guest.marks import Tail, mark_for

a_frame = st.tuples(st.sampled_from(sorted(frames.KINDS)), st.integers(0, 2**32 - 1), st.binary(max_size=300))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


@given(st.lists(a_frame, max_size=8), st.lists(st.integers(0, 10_000), max_size=12))
def test_frames_come_out_as_they_went_in(sent: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    decoder = frames.Decoder()
    data = b"".join(frames.encode(*frame) for frame in sent)
    assert [tuple(frame) for piece in pieces(data, cuts) for frame in decoder.feed(piece)] == sent
    assert decoder.pending == 0


def test_a_frame_has_names_for_its_parts() -> None:
    (frame,) = frames.Decoder().feed(frames.encode(frames.DATA, 7, b"x"))
    assert (frame.kind, frame.channel, frame.payload) == (frames.DATA, 7, b"x")


@pytest.mark.parametrize(
    "raw", [b"\0" * 9, b"\x09" + b"\0" * 8, b"\x03\0\0\0\x01\0\x01\0\x01", b"\x03\0\0\0\x01\xff\xff\xff\xff"]
)
def test_what_is_no_frame_is_refused_before_it_is_read(raw: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.Decoder().feed(raw)


def test_the_largest_frame_passes_and_a_larger_is_not_made() -> None:
    assert frames.Decoder().feed(frames.encode(frames.DATA, 1, bytes(frames.MAX_PAYLOAD)))
    with pytest.raises(frames.FrameError):
        frames.encode(frames.DATA, 1, bytes(frames.MAX_PAYLOAD + 1))


MARK = mark_for("call").encode()
outputs = st.lists(
    st.sampled_from([b"text", b"\n", b"\n" + MARK[:9], MARK, b"\n" + MARK + b"%d", b"\n\n", MARK[:30]]), max_size=8
)


@given(outputs, st.integers(0, 255), st.lists(st.integers(0, 10_000), max_size=10), st.integers(60, 200))
def test_the_tail_finds_the_mark_however_the_output_is_cut(
    parts: list[bytes], status: int, cuts: list[int], limit: int
) -> None:
    output = b"".join(parts)
    data = output + b"\n" + MARK + b"%d\n" % status
    shown: list[bytes] = []
    tail = Tail(MARK, limit, shown.append)
    for piece in pieces(data, cuts):
        tail.feed(piece)
    tail.flush()
    assert tail.complete
    assert tail.status == status
    assert b"".join(shown) == output
    assert tail.total == len(output)
    assert tail.kept == data[-limit:]
    assert tail.truncated == (len(data) > limit)
    assert data[-limit:].startswith(tail.output)


@given(outputs, st.lists(st.integers(0, 10_000), max_size=10))
def test_without_a_mark_everything_is_shown_at_the_end(parts: list[bytes], cuts: list[int]) -> None:
    output = b"".join(parts) + MARK[:20]
    shown: list[bytes] = []
    tail = Tail(MARK, 1000, shown.append)
    for piece in pieces(output, cuts):
        tail.feed(piece)
    tail.flush()
    assert not tail.complete
    assert b"".join(shown) == output


def test_marks_are_of_the_sdk_s_length_and_differ() -> None:
    marks = {mark_for(f"toolu_{number}") for number in range(100)} | {mark_for("\ud800")}
    assert {len(mark) for mark in marks} == {49}
    assert len(marks) == 101
