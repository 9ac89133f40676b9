"""Which sandboxes go to disk, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.resting import Idle, available_memory, to_suspend

GIB = 1024**3


def idle(name: str, seconds: float, memory: int = GIB) -> Idle:
    return Idle(name, seconds, memory)


def test_what_nobody_used_for_long_goes_to_disk() -> None:
    chosen = to_suspend(
        [idle("a", 10), idle("b", 301), idle("c", 300)], suspend_after=300, available_bytes=8 * GIB, reserve_bytes=GIB
    )
    assert chosen == [("b", "idle"), ("c", "idle")]


def test_under_pressure_the_least_recently_used_go_first_and_no_more_than_needed() -> None:
    chosen = to_suspend(
        [idle("young", 1), idle("old", 30), idle("older", 40)],
        suspend_after=300,
        available_bytes=GIB // 2,
        reserve_bytes=2 * GIB,
    )
    assert chosen == [("older", "pressure"), ("old", "pressure")]


@given(
    st.lists(st.builds(Idle, st.uuids().map(str), st.floats(0, 1000), st.integers(0, GIB)), max_size=20),
    st.floats(0, 1000),
    st.integers(0, 4 * GIB),
    st.integers(0, 4 * GIB),
)
def test_enough_is_chosen_and_nothing_without_a_reason(
    sandboxes: list[Idle], suspend_after: float, available: int, reserve: int
) -> None:
    chosen = dict(to_suspend(sandboxes, suspend_after=suspend_after, available_bytes=available, reserve_bytes=reserve))
    for one in sandboxes:
        assert (chosen.get(one.sandbox_id) == "idle") == (one.idle_seconds >= suspend_after)
    freed = available + sum(one.memory_bytes for one in sandboxes if one.sandbox_id in chosen)
    assert freed >= reserve or len(chosen) == len(sandboxes)
    if available >= reserve:
        assert "pressure" not in chosen.values()


def test_the_node_tells_what_is_available() -> None:
    assert available_memory() > 0
