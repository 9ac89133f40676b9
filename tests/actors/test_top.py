"""What `hourglass top` draws."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from actors.top import Top


def view(sandbox_id: str, cpu: float | None, memory: int | None, **more: Any) -> dict[str, Any]:
    whole = {"session_id": "s", "phase": "running", "parent": "", "calls": 1, "busy": False, "visits": 0}
    return {"sandbox_id": sandbox_id, "cpu_seconds": cpu, "memory_bytes": memory, **whole, **more}


def drawn(top: Top, views: list[dict[str, Any]], at: float) -> list[list[str]]:
    screen = Console(file=io.StringIO(), width=200)
    screen.print(top.draw(views, at))
    assert isinstance(screen.file, io.StringIO)
    return [line.split() for line in screen.file.getvalue().splitlines()]


def test_the_busiest_come_first_and_all_are_summed() -> None:
    top = Top()
    idle = view("idle", None, None, phase="suspended")
    first = drawn(top, [view("a", 1.0, 10 * 1024**2), view("b", 5.0, 20 * 1024**2), idle], 100.0)
    # Without a look before it there is no share: by memory.
    assert [row[0] for row in first[1:4]] == ["b", "a", "idle"]
    assert first[4] == ["2", "running,", "1", "suspended;", "30.0", "MiB", "of", "memory"]
    second = drawn(top, [view("a", 2.0, 10 * 1024**2, busy=True), view("b", 5.0, 20 * 1024**2, visits=1), idle], 102.0)
    assert second[1][:5] == ["a", "running,", "a", "call", "runs"]
    assert "50%" in second[1]
    assert second[2][:3] == ["b", "running,", "visited"]
    assert "0%" in second[2]
    assert second[4] == ["2", "running,", "1", "suspended;", "50%", "of", "a", "CPU;", "30.0", "MiB", "of", "memory"]


def test_a_machine_that_came_anew_has_used_nothing_less() -> None:
    top = Top()
    drawn(top, [view("a", 9.0, 1)], 1.0)
    again = drawn(top, [view("a", 0.5, 1), view("new", 3.0, 1)], 2.0)
    assert "0%" in again[1]
    # Nobody looked at this one before.
    assert not any("%" in word for word in again[2])


def test_nothing_to_show_is_said() -> None:
    assert "no sandbox is held now" in " ".join(drawn(Top(), [], 1.0)[0])


def test_a_name_is_never_markup() -> None:
    assert "[red]x" in " ".join(drawn(Top(), [view("[red]x", 1.0, 1, session_id="\x1b[31m")], 1.0)[1])
