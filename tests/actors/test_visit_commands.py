"""What a person does in a sandbox of a running service: exec, shell, forward, cp. Real terminals, servers and files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from actors.settings import Settings
from actors.visits.copying import copy_in, copy_out
from actors.visits.programs import execute
from actors.visits.wire import VisitRefused
from tests.service import HOURGLASS
from tests.terminal import in_terminal

if TYPE_CHECKING:
    from tests.service import Installed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def rested(installed: Installed) -> str:
    """The id of a sandbox whose session's turn is over."""
    session_id = installed.session("two-turns")
    installed.wait_for(f"session-{session_id}", "session.released")
    return installed.sandbox_of(session_id).removeprefix("sandbox-")


def told(installed: Installed, sandbox: str, kind: str) -> list[Any]:
    return [event.data for event in installed.history(f"sandbox-{sandbox}") if event.type == kind]


def test_a_person_goes_into_a_sandbox(installed: Installed, isolation: str, tmp_path: Path) -> None:
    installed.options = ["--isolation", isolation]
    with installed.up():
        sandbox = rested(installed)
        programs_run(installed, sandbox)
        a_shell_is_a_real_terminal(installed, sandbox)
        a_port_is_reached(installed, sandbox)
        if isolation == "host":
            # From the door on all of this is the same.
            files_are_copied(installed, sandbox, tmp_path)
            refusals_are_clear(installed, sandbox, tmp_path)
        assert installed.json("top")[0]["visits"] == 0
        last = [one for one in installed.kinds(f"sandbox-{sandbox}") if not one.startswith("sandbox.snapshot")][-1]
        assert last in ("sandbox.frozen", "sandbox.file_copied")
    kinds = installed.kinds(f"sandbox-{sandbox}")
    assert kinds.count("sandbox.process_started") == kinds.count("sandbox.process_ended")
    assert kinds.count("sandbox.forward_opened") == kinds.count("sandbox.forward_closed") == 1
    assert installed.command("log", "verify").returncode == 0
    assert "exec" in installed.command("timeline", sandbox).stdout
    assert not list((installed.home / "doors").glob("host*"))


def programs_run(installed: Installed, sandbox: str) -> None:
    done = installed.command("exec", sandbox[:10], "--", "sh", "-c", "pwd; echo no >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "/workspace\n", "no\n")
    ran = installed.json(
        "exec", sandbox, "--cwd", "/tmp", "--env", "A=b c", "--json", "--", "sh", "-c", 'echo "$A"; pwd'
    )
    assert (ran["exit_code"], ran["stdout"], ran["stderr"]) == (0, "b c\n/tmp\n", "")
    given = subprocess.run(
        [HOURGLASS, "exec", "-i", sandbox, "--", "wc", "-c"],
        env=installed.variables,
        input=bytes(3_000_000),
        capture_output=True,
        check=True,
    )
    assert given.stdout == b"3000000\n"
    done = installed.command("exec", sandbox, "--", "no-such-program")
    assert (done.returncode, "there is no program no-such-program" in done.stderr) == (127, True)
    with pytest.raises(VisitRefused, match="can't be run in the sandbox: Permission denied"):
        execute(Settings(home=installed.home), sandbox, ["/etc/hostname"])
    with pytest.raises(VisitRefused, match="there is no folder /nowhere in the sandbox"):
        execute(Settings(home=installed.home), sandbox, ["true"], cwd="/nowhere")
    done = installed.command("exec", "nobody", "--", "true")
    assert (done.returncode, "names no session and no sandbox" in done.stderr) == (125, True)
    started = told(installed, sandbox, "sandbox.process_started")
    ended = told(installed, sandbox, "sandbox.process_ended")
    assert (started[0].command, started[0].terminal, started[0].by) == (
        "sh -c 'pwd; echo no >&2; exit 7'",
        False,
        "exec",
    )
    assert (ended[0].exit_code, ended[0].bytes_out) == (7, len("/workspace\nno\n"))
    assert [one.exit_code for one in ended[-3:]] == [127, 126, 126]
    # Frozen again, as it was.
    kinds = installed.kinds(f"sandbox-{sandbox}")
    at = kinds.index("sandbox.process_started")
    assert kinds[at - 1 : at + 3] == [
        "sandbox.thawed",
        "sandbox.process_started",
        "sandbox.process_ended",
        "sandbox.frozen",
    ]


def a_shell_is_a_real_terminal(installed: Installed, sandbox: str) -> None:
    variables = {**installed.variables, "TERM": "xterm-256color"}
    with in_terminal([HOURGLASS, "shell", sandbox], variables, rows=33, columns=101) as terminal:
        before = terminal.modes
        terminal.until("# ")
        assert terminal.modes != before
        terminal.type("tput setaf 2; stty size; echo $TERM\r")
        terminal.until("\x1b[32m33 101\r\nxterm-256color")
        terminal.until("# ")
        watch = "import os, signal; signal.signal(28, lambda *_: 0); print('rea' + 'dy', flush=True); signal.pause()"
        terminal.type(f'python3 -c "{watch}; print(os.get_terminal_size())"\r')
        terminal.until("ready")
        terminal.resize(44, 144)
        terminal.until("columns=144, lines=44")
        terminal.until("# ")
        terminal.type("sh -c 'echo fo''re; exec sleep 600'\r")
        terminal.until("fore")
        assert installed.json("top")[0]["visits"] == 1
        terminal.type("\x03")
        terminal.until("# ")
        terminal.type("echo was $?; exit 9\r")
        terminal.until("was 130")
        assert terminal.wait() == 9
        assert terminal.modes == before
    (started,) = [one for one in told(installed, sandbox, "sandbox.process_started") if one.terminal]
    assert (started.command, started.by) == ("/bin/bash -l", "shell")
    # Where nothing inside answers, the person leaves by the escape, and what ran is ended.
    with in_terminal(
        [HOURGLASS, "exec", "-it", sandbox, "--", "sleep", "601"], variables, rows=9, columns=9
    ) as terminal:
        installed.wait_for(
            f"sandbox-{sandbox}",
            "sandbox.process_started",
            count=len(told(installed, sandbox, "sandbox.process_started")),
        )
        while terminal.modes == before:
            pass
        terminal.type("~.")
        assert terminal.wait() == 129
        assert terminal.modes == before
    assert execute(Settings(home=installed.home), sandbox, ["pgrep", "sleep"]).exit_code == 1
    assert "no terminal to lend" in installed.command("exec", "-t", sandbox, "--", "true").stderr


def a_port_is_reached(installed: Installed, sandbox: str) -> None:
    serve = "mkdir -p /srv/www; cd /srv/www; seq 200000 >numbers; exec python3 -u -m http.server 8000"
    server = subprocess.Popen(
        [HOURGLASS, "exec", sandbox, "--", "sh", "-c", serve],
        env=installed.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    forward = subprocess.Popen(
        [HOURGLASS, "forward", sandbox, "0:8000", "--json"], env=installed.variables, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert forward.stdout is not None
    assert server.stdout.readline().startswith(b"Serving HTTP")
    opened = json.loads(forward.stdout.readline())
    assert opened["address"].startswith("127.0.0.1:")
    for _ in range(3):
        with urllib.request.urlopen(f"http://{opened['address']}/numbers", timeout=20) as answer:
            assert answer.read() == "".join(f"{n}\n" for n in range(1, 200001)).encode()
    forward.send_signal(signal.SIGINT)
    closed = json.loads(forward.communicate(timeout=30)[0])
    assert forward.returncode == 0
    assert closed["connections"] == 3
    (event,) = told(installed, sandbox, "sandbox.forward_closed")
    assert event.bytes_out == closed["bytes_out"] > 3 * 1_288_895
    # Ctrl-C reaches the program.
    server.send_signal(signal.SIGINT)
    assert server.wait(30) in (0, 1, 130)
    server.stdout.close()


def files_are_copied(installed: Installed, sandbox: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "tool").write_text("#!/bin/sh\necho ran\n")
    (tree / "deep" / "tool").chmod(0o755)
    (tree / "link").symlink_to("/etc/passwd")
    with (tree / "big").open("wb") as big:
        big.truncate(80 * 1024**2)
    copied = installed.json("cp", "-r", str(tree), f"{sandbox}:/tmp")
    assert (copied["files"], copied["bytes"], copied["left_out"]) == (2, 80 * 1024**2 + 19, 1)
    done = installed.command(
        "exec", sandbox, "--", "sh", "-c", "cd /tmp/tree; deep/tool; stat -c %s big; ls; ln -s / out"
    )
    assert done.stdout.split() == ["ran", str(80 * 1024**2), "big", "deep"]
    back = tmp_path / "back"
    done = installed.command("cp", "-r", f"{sandbox}:/tmp/tree", str(back))
    assert done.returncode == 0, done.stderr
    assert "left out, since it is no file and no folder: out" in done.stderr
    assert sorted(str(path.relative_to(back)) for path in back.rglob("*")) == ["big", "deep", "deep/er", "deep/tool"]
    assert (back / "deep" / "tool").stat().st_mode & 0o777 == 0o755
    assert (back / "big").stat().st_size == 80 * 1024**2
    # Into a folder under its own name; to standard output.
    assert installed.command("cp", f"{sandbox}:/tmp/tree/deep/tool", str(tmp_path)).returncode == 0
    assert (tmp_path / "tool").read_text() == "#!/bin/sh\necho ran\n"
    assert installed.command("cp", f"{sandbox}:/tmp/tree/deep/tool", "-").stdout == "#!/bin/sh\necho ran\n"
    copies = told(installed, sandbox, "sandbox.file_copied")
    assert [(one.direction, one.path, one.bytes) for one in copies[:3]] == [
        ("in", "/tmp", None),
        ("in", "/tmp", 80 * 1024**2 + 19),
        ("out", "/tmp/tree", 80 * 1024**2 + 19),
    ]


def refusals_are_clear(installed: Installed, sandbox: str, tmp_path: Path) -> None:
    settings = Settings(home=installed.home)
    tree, there = tmp_path / "tree", "/tmp/tree"

    def out(path: str, to: Path, **options: Any) -> None:
        copy_out(settings, sandbox, path, to, **options)

    for refused, said in (
        (lambda: out(there, tmp_path / "x"), "is a folder"),
        (lambda: out("/tmp/nothing", tmp_path / "x"), "No such file or directory"),
        (lambda: out(f"{there}/big", tmp_path / "x", max_bytes=1000), "more than 1,000 bytes"),
        (lambda: out(f"{there}/big", tmp_path / "no" / "x"), "No such file or directory"),
        (lambda: copy_in(settings, sandbox, tmp_path / "nothing", "/tmp"), "No such file or directory"),
        (lambda: copy_in(settings, sandbox, tree, "/tmp/x"), "is a folder"),
        (lambda: copy_in(settings, sandbox, tree / "big", "/no/such/folder/x"), "No such file or directory"),
    ):
        with pytest.raises(VisitRefused, match=said):
            refused()
    done = installed.command("cp", f"{sandbox}:/tmp/nothing", str(tmp_path / "x"))
    assert done.returncode == 1
    assert "/tmp/nothing in the sandbox: No such file or directory" in done.stderr
    assert not (tmp_path / "x").exists()
    # One that did not come in whole was begun all the same: files may have changed.
    assert told(installed, sandbox, "sandbox.file_copied")[-1].bytes is None
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".hourglass")]


def test_a_host_that_is_killed_ends_a_shell_and_the_next_one_records_it(installed: Installed) -> None:
    with installed.up():
        sandbox = rested(installed)
        with in_terminal([HOURGLASS, "shell", sandbox], installed.variables, rows=24, columns=80) as terminal:
            before = terminal.modes
            terminal.until("# ")
            terminal.type("sleep 600\r")
            terminal.until("600")
            host = int(installed.history(f"sandbox-{sandbox}")[-1].metadata["pid"])
            os.kill(host, signal.SIGKILL)
            assert terminal.wait() == 1
            terminal.until("the service ended the visit")
            assert terminal.modes == before
        # Ray has started another host, whose door is asked for through Ray.
        done = installed.command("exec", sandbox, "--", "sh", "-c", "sleep 1.2; pgrep -c sleep")
        assert (done.returncode, done.stdout) == (1, "0\n"), done.stderr
        events = installed.wait_for(f"sandbox-{sandbox}", "sandbox.process_ended", count=2)
        first, second = told(installed, sandbox, "sandbox.process_ended")
        assert (first.exit_code, second.exit_code) == (None, 1)
        assert first.seconds > 0
        assert int(events[0].metadata["pid"]) != host
