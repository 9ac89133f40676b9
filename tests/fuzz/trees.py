"""Trees that a guest sends, judged by the host and unpacked by the visitor: nothing beside the destination is touched.

The destination lies between a victim's folder and a victim's file, with links to both in it, and the tree is whatever
the script says. `Judge` sees it as the bytes of the agent's stream, `Landing` as frames, of which it believes nothing.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path

from actors.guest import frames, trees
from actors.machines.protocol import GuestProtocolError
from actors.visits.copying import Copied, Landing, _Stream
from actors.visits.serving import Judge
from actors.visits.wire import VisitRefused
from tests.fuzz.script import Script, raw, step

_KINDS = (trees.FILE, trees.FOLDER, trees.LEFT_OUT, "link")
_NAMES = (b"", b"a", b"b", b"folder", b"file", b"loop", b"..", b".", b"x" * 255, b"x" * 256, b"\xff\n", b"\0")
_MODES = (0, 0o644, 0o777, 0o4755, -1)
_MOST = 50_000
_LEFT_BY_A_COPY = b".hourglass-"

ENTRY, DATA, FRAME, BYTES = range(4)
TOP = step(ENTRY, 1, 1, 0)


def _entry(kind: int, *names: int) -> bytes:
    return step(ENTRY, kind, 1, len(names), bytes(names))


_SCRIPTS = (
    TOP + _entry(0, 1) + step(DATA, 3, b"one") + _entry(1, 3) + _entry(0, 3, 2) + step(DATA, 220, b"many"),
    TOP + _entry(1, 1) + _entry(1, 1, 2) + _entry(0, 1, 2, 1) + _entry(2, 1, 5),
    TOP + _entry(0, 6, 1) + step(DATA, 3, b"out"),
    TOP + _entry(1, 3) + _entry(0, 3, 1) + step(DATA, 3, b"out"),
    TOP + _entry(0, 4) + step(DATA, 3, b"out"),
    TOP + _entry(0, 5, 1) + _entry(1, 5, 5),
    TOP + _entry(0, 8) + _entry(0, 9) + _entry(0, 11),
    step(ENTRY, 0, 1, 0) + step(DATA, 3, b"one"),
    TOP + _entry(0, 1) + step(DATA, 255, b"much") * 3,
    TOP + step(FRAME, 5, 0, 0) + _entry(0, 1),
    step(BYTES, 9, b"\0" * 9),
    TOP + step(FRAME, 2, 0, 5, b"[[[[\n"),
)
SEEDS = tuple(bytes([there]) + script for script in _SCRIPTS for there in range(3))
"""Each with a folder at the destination, a file, and nothing."""


def run(data: bytes) -> None:
    """The first byte says what is at the destination; then each step makes one frame."""
    script = Script(data)
    there = script.byte() % 3
    sent = [_made(script) for _ in range(60) if script]
    _judge(sent)
    _show(sent)
    with tempfile.TemporaryDirectory(prefix="hourglass-fuzz-") as name:
        _land(Path(name), there, sent)


def _made(script: Script) -> bytes:
    number = script.byte() % 4
    if number == ENTRY:
        kind, mode = _KINDS[script.byte() % len(_KINDS)], _MODES[script.byte() % len(_MODES)]
        names = [_NAMES[one % len(_NAMES)] for one in script.take(script.byte() % 8)]
        return raw(frames.OPEN, 0, json.dumps({"kind": kind, "mode": mode}).encode() + b"\n" + b"/".join(names))
    if number == DATA:
        return raw(frames.DATA, 0, script.payload())
    if number == FRAME:
        return script.frame()
    return script.take(script.byte())


def _judge(sent: list[bytes]) -> None:
    judge = Judge(_MOST)
    passed = 0
    try:
        for piece in sent:
            for frame in judge.judged(piece):
                assert frame.channel == frames.CONTROL
                assert frame.kind in (frames.OPEN, frames.DATA)
                passed += len(frame.payload) if frame.kind == frames.DATA else 0
                assert passed <= _MOST, "more gets through than is allowed"
        judge.finished()
    except (GuestProtocolError, VisitRefused):
        return
    assert judge.bytes == passed


def _show(sent: list[bytes]) -> None:
    """One file, that somebody pipes on."""
    shown = io.BytesIO()
    try:
        with _Stream(shown) as stream:
            for kind, _, payload in _whole(sent):
                stream.take(kind, payload)
    except VisitRefused:
        return


def _land(ground: Path, there: int, sent: list[bytes]) -> None:
    _lay_out(ground, there)
    before, open_before = _beside(ground), len(os.listdir("/proc/self/fd"))
    copied = Copied("sbx")
    try:
        with Landing(ground / "to", copied) as landing:
            for kind, _, payload in _whole(sent):
                landing.take(kind, payload)
            landing.finish()
    except (VisitRefused, OSError):
        pass  # Both are promised: the one for what is no tree, the other for what is in the way here.
    assert _beside(ground) == before, "something beside the destination was touched"
    assert len(os.listdir("/proc/self/fd")) == open_before, "a descriptor is left open"
    assert len(copied.named) <= 100
    for folder, folders, files in os.walk(os.fsencode(ground)):
        for name in (*folders, *files):
            assert not name.startswith(_LEFT_BY_A_COPY), "something half-written is left"
            mode = os.lstat(os.path.join(folder, name)).st_mode
            assert not mode & 0o7000, "a set-user-id bit got through"


def _lay_out(ground: Path, there: int) -> None:
    (ground / "victim").mkdir()
    (ground / "victim" / "a").write_text("untouched")
    (ground / "secret").write_text("untouched")
    if there == 0:
        (ground / "to").mkdir()
        (ground / "to" / "folder").symlink_to("../victim")
        (ground / "to" / "file").symlink_to("../secret")
        (ground / "to" / "loop").symlink_to("loop")
    elif there == 1:
        (ground / "to").write_text("old")


def _whole(sent: list[bytes]) -> list[frames.Frame]:
    """The frames in it, up to what is none: the visitor's connection ends there."""
    decoder, found = frames.Decoder(), []
    for piece in sent:
        try:
            found += decoder.feed(piece)
        except frames.FrameError:
            break
    return found


def _beside(ground: Path) -> dict[str, tuple[object, ...]]:
    """All that is not below the destination, by what a write would change."""
    found: dict[str, tuple[object, ...]] = {}
    for path in ground.rglob("*"):
        if path.is_relative_to(ground / "to"):
            continue
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_ino, status.st_mode, status.st_mtime_ns, content)
    return found
