"""The frame decoder, against one that is written down once more: whatever the bytes, and however they are cut."""

from __future__ import annotations

from struct import unpack_from

from actors.guest import frames
from tests.fuzz.script import Script, raw

SEEDS = (
    b"\0" + raw(frames.HELLO, 0, b"{}") + raw(frames.DATA, 1, b"text"),
    b"\3\1\7\x09" + raw(frames.CREDIT, 1, b"\0\0\0\1") + raw(frames.END, 1) + raw(frames.RESET, 2**32 - 1, b"{}"),
    b"\1\5" + raw(9, 0),
    b"\0" + frames.HEADER.pack(frames.DATA, 1, frames.MAX_PAYLOAD + 1),
    b"\2\x10\xff" + raw(frames.DATA, 3, bytes(frames.MAX_PAYLOAD)) + b"\3",
)
Found = tuple[list[tuple[int, int, bytes]], bytes, bool]
"""Frames, what is left of the bytes, and whether they are beyond use."""


def run(data: bytes) -> None:
    """The first byte says how many cuts follow, one byte each."""
    script = Script(data)
    cuts = script.take(script.byte() % 8)
    stream = script.rest()
    expected, rest, broken = _model(stream)
    decoder = frames.Decoder()
    found: list[frames.Frame] = []
    at = 0
    try:
        for cut in (*cuts, len(stream)):
            found += decoder.feed(stream[at : at + cut])
            at += cut
            assert decoder.pending < frames.HEADER_BYTES + frames.MAX_PAYLOAD, "it keeps more than a frame"
    except frames.FrameError:
        assert broken, "it refuses what is a frame"
        # What came before in the same piece is lost with it, as the stream is.
        assert found == expected[: len(found)], "frames are not what was sent"
        return
    assert not broken, "it takes what is no frame"
    assert found == expected, "frames are not what was sent"
    assert decoder.pending == len(rest), "it loses bytes"
    assert b"".join(frames.encode(*frame) for frame in found) + rest == stream, "frames are not written as they came"


def _model(stream: bytes) -> Found:
    found: list[tuple[int, int, bytes]] = []
    while len(stream) >= 9:
        kind, channel, length = unpack_from(">BLL", stream)
        if not 1 <= kind <= 8 or length > 65536:
            return found, stream, True
        if len(stream) < 9 + length:
            break
        found.append((kind, channel, stream[9 : 9 + length]))
        stream = stream[9 + length :]
    return found, stream, False
