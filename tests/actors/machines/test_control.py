"""The control socket of a sandbox: what is asked, and what an answer may do to us. The other end is hostile here."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.machines.control import checkpoint
from actors.machines.protocol import MachineError


@contextmanager
def sandbox(path: Path, answer: Callable[[socket.socket, list[int], bytes], None]) -> Iterator[None]:
    """One that takes one request and answers as it likes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        line, _ = listener.accept()
        with line:
            asked, files, _, _ = socket.recv_fds(line, 65536, 8)
            answer(line, files, asked)
            for fd in files:
                os.close(fd)

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join()
    listener.close()


def saying(said: bytes) -> Callable[[socket.socket, list[int], bytes], None]:
    return lambda line, files, asked: line.sendall(said)


def ask(folder: Path, *, timeout: float = 5) -> None:
    image = folder / "image"
    image.mkdir()
    asyncio.run(checkpoint(folder / "sock", image, timeout=timeout))


def test_the_files_go_with_the_request_and_the_sandbox_goes_on(tmp_path: Path) -> None:
    seen = {}

    def answer(line: socket.socket, files: list[int], asked: bytes) -> None:
        seen.update(json.loads(asked))
        for number, fd in enumerate(files):
            os.write(fd, b"%d" % number)
        line.sendall(b'{"success":')
        line.sendall(b'true,"err":"","result":{}}')

    with sandbox(tmp_path / "sock", answer):
        ask(tmp_path)
    assert seen["method"] == "containerManager.Checkpoint"
    assert seen["arg"]["Resume"] is True
    written = {path.name: path.read_bytes() for path in (tmp_path / "image").iterdir()}
    assert written == {"checkpoint.img": b"0", "pages_meta.img": b"1", "pages.img": b"2"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b'{"success":false,"err":"no space left on device"}', "no space left on device"),
        (b'{"success":1}', "no checkpoint"),
        (b'{"success":"true"}', "no checkpoint"),
        (b"", "the machine ended"),
        (b"[true]", "the machine ended"),
        (b"{" * 70_000, "makes no sense"),
        (b"[" * 70_000, "makes no sense"),
        (b"\xff\xfe", "the machine ended"),
    ],
)
def test_an_answer_that_is_no_success_is_a_failure(tmp_path: Path, said: bytes, told: str) -> None:
    with sandbox(tmp_path / "sock", saying(said)), pytest.raises(MachineError, match=told):
        ask(tmp_path)


def test_silence_is_bounded(tmp_path: Path) -> None:
    def wait(line: socket.socket, files: list[int], asked: bytes) -> None:
        line.recv(1)  # until the other end is closed

    with sandbox(tmp_path / "sock", wait), pytest.raises(MachineError, match="no checkpoint within"):
        ask(tmp_path, timeout=0.1)


def test_no_socket_and_a_file_in_the_way_are_told(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no checkpoint"):
        ask(tmp_path)
    with pytest.raises(MachineError, match="File exists"):
        asyncio.run(checkpoint(tmp_path / "sock", tmp_path / "image", timeout=1))
