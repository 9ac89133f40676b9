"""How a container comes to life: what is asked of its sandbox, and what its answers may do to a supervisor."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from actors.machines import birth
from actors.machines.birth import Command, Restore, restorer

FINE = b'{"success":true,"err":"","result":{}}'
Answer = Callable[[socket.socket, list[int], bytes], None]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "image"
    folder.mkdir()
    for name in ("checkpoint.img", "pages_meta.img", "pages.img"):
        (folder / name).write_text(name)
    return folder


@contextmanager
def sandbox(path: Path, *answers: bytes | None) -> Iterator[list[tuple[dict[str, object], list[str]]]]:
    """One that takes requests one by one, and gives these answers; None ends it. What it was asked, with the files."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    asked: list[tuple[dict[str, object], list[str]]] = []

    def serve() -> None:
        line, _ = listener.accept()
        with line, suppress(ConnectionError):  # whoever has heard enough hangs up
            for answer in answers:
                said, files, _, _ = socket.recv_fds(line, 65536, 8)
                if not said:
                    return
                asked.append((json.loads(said), [os.read(fd, 100).decode() for fd in files]))
                for fd in files:
                    os.close(fd)
                if answer is None:
                    return
                line.sendall(answer[:20])
                line.sendall(answer[20:])
            line.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    yield asked
    thread.join(10)
    listener.close()
    assert not thread.is_alive()


def outcome(restore: Restore | Command) -> str:
    """What there is to hear in the end."""
    while True:
        assert select.select([restore.fd], [], [], 10)[0]
        said = restore.hear()
        if said is not None:
            restore.close()
            return said


def test_a_restore_asks_for_the_loopback_and_then_hands_over_the_image(tmp_path: Path, image: Path) -> None:
    with sandbox(tmp_path / "sock", FINE, FINE) as asked:
        assert outcome(Restore(str(tmp_path / "sock"), str(image))) == ""
    (network, no_files), (restore, files) = asked
    assert (network["method"], no_files) == ("Network.CreateLinksAndRoutes", [])
    assert restore == {"method": "containerManager.Restore", "arg": {"HavePagesFile": True, "HaveDeviceFile": False}}
    assert files == ["checkpoint.img", "pages_meta.img", "pages.img"]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ((b'{"success":false,"err":"bad \\u001b[31mimage"}',), "the restore failed: bad  [31mimage"),
        ((FINE, b'{"success":"true","err":"no room"}'), "the restore failed: no room"),
        ((FINE, b'{"success":1}'), "the restore failed: None"),
        ((FINE, b"[true]"), "the restore failed: [True]"),
        ((None,), "the restore failed: its sandbox ended"),
        ((FINE, None), "the restore failed: its sandbox ended"),
        ((FINE, b"[" * 70_000), "the restore failed: its sandbox makes no sense"),
        ((FINE, b"{" * 70_000), "the restore failed: its sandbox makes no sense"),
    ],
)
def test_an_answer_that_is_no_success_is_a_failure(
    tmp_path: Path, image: Path, answers: tuple[bytes | None, ...], told: str
) -> None:
    with sandbox(tmp_path / "sock", *answers):
        assert outcome(Restore(str(tmp_path / "sock"), str(image))) == told


def test_what_can_not_be_asked_leaves_nothing_open(tmp_path: Path, image: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.img"):
        Restore(str(tmp_path / "sock"), str(image / "none"))
    with pytest.raises(FileNotFoundError):
        Restore(str(tmp_path / "sock"), str(image))
    assert opened() == before


def test_where_nothing_listens_there_is_the_command(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for address in ("", str(tmp_path / "sock"), str(image)):
        command = restorer(address, str(image), ["/bin/sh", "-c", "echo said >&2; exit 4"], os.getpid())
        assert isinstance(command, Command)
        assert outcome(command) == "runsc failed with exit code 4: said"
    assert (tmp_path / birth.LOG).read_text() == "said\n"
