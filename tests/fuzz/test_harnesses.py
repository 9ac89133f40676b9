"""The harnesses of `make fuzz`, briefly and always alike: from their seeds, and from what hypothesis makes up.

Each must be able to find something: a fault is planted where it looks, and it has to tell.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.guest import frames, trees
from actors.machines import answers, mux, relay
from actors.machines.guest import GuestConnection
from actors.machines.mux import Channel
from tests.fuzz.harnesses import HARNESSES

scripts = st.lists(st.one_of(st.integers(0, 16).map(lambda one: bytes([one])), st.binary(max_size=12)), max_size=40)
"""Small numbers choose steps, kinds and channels; so there are more of them than there would be by chance."""


@pytest.mark.parametrize("name", HARNESSES)
def test_the_seeds_hold(name: str) -> None:
    for seed in HARNESSES[name].SEEDS:
        HARNESSES[name].run(seed)


@pytest.mark.parametrize("name", HARNESSES)
@given(script=scripts)
@settings(max_examples=150, derandomize=True, deadline=None, database=None)
def test_whatever_comes_holds(name: str, script: list[bytes]) -> None:
    HARNESSES[name].run(b"".join(script))


@pytest.mark.parametrize("name", HARNESSES)
@given(at=st.integers(0, 40), tails=st.lists(st.binary(max_size=4), min_size=2, max_size=2))
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
def test_bent_seeds_hold(name: str, at: int, tails: list[bytes]) -> None:
    seeds = HARNESSES[name].SEEDS
    seed = seeds[at % len(seeds)]
    middle = at * 7 % (len(seed) + 1)
    HARNESSES[name].run(seed[:middle] + tails[0] + seed[middle:] + tails[1])


def _lose_a_byte(decoder: frames.Decoder, data: bytes) -> list[frames.Frame]:
    found = _feed(decoder, data)
    del decoder._rest[-1:]
    return found


_feed = frames.Decoder.feed


def _believe(channel: Channel, kind: int, payload: bytes) -> None:
    if kind == frames.DATA:
        channel._inbox.append(payload)
    channel._changed.set()


async def _stats_of_old(guest: GuestConnection) -> object:
    await guest._request("stats", bound=10)
    return None


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


FAULTS: dict[str, tuple[str, object, str, object, str]] = {
    "decoder that loses a byte": ("decoder", frames.Decoder, "feed", _lose_a_byte, "it refuses what is a frame"),
    "window that is not kept": ("mux", Channel, "deliver", _believe, "more than its window"),
    "violation that is not told": ("mux", mux.Mux, "violated", mux.Mux._end, "a violation is not told"),
    "refusal that nobody expects": ("guest", GuestConnection, "stats", _stats_of_old, "No such file"),
    "guest's words in an error": ("answers", answers, "_NAMES", _Everything(), "the guest's words"),
    "path that leads out": ("trees", trees, "check_path", lambda path: path.split(b"/") if path else [], "beside"),
    "frame that is cut": ("relay", relay, "whole_frames", len, "did not say"),
}
"""Harness, where and what is put there, and what is told then."""


@pytest.mark.parametrize("fault", FAULTS)
def test_each_finds_a_fault_that_is_planted(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, where, what, planted, told = FAULTS[fault]
    monkeypatch.setattr(where, what, planted)
    with pytest.raises((AssertionError, OSError), match=told):
        test_the_seeds_hold(name)
