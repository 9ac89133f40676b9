"""The search finds the first bad version, in as few rounds as can be, whatever can't be told."""

from __future__ import annotations

from math import ceil, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.bisect.search import Search, Told


def searched(count: int, first_bad: int, untold: frozenset[int], jobs: int) -> tuple[Search, int]:
    """A search among versions 0 (good) to `count` (bad), of which those from `first_bad` on are bad; and its rounds."""
    search, rounds = Search(0, range(1, count), count), 0
    while asked := search.next(jobs):
        rounds += 1
        assert len(asked) <= jobs
        assert len(set(asked)) == len(asked)
        for version in asked:
            assert search.low < version < search.high or jobs > 1
            assert version in search.left or jobs > 1
            search.tell(
                version,
                Told.SKIPPED if version in untold else Told.BAD if version >= first_bad else Told.GOOD,
            )
    return search, rounds


@given(data=st.data(), count=st.integers(1, 200), jobs=st.integers(1, 8))
def test_the_first_bad_version_is_found_in_few_rounds(data: st.DataObject, count: int, jobs: int) -> None:
    first_bad = data.draw(st.integers(1, count))
    search, rounds = searched(count, first_bad, frozenset(), jobs)
    assert (search.low, search.high) == (first_bad - 1, first_bad)
    assert (search.skipped, search.good_after_bad) == ([], [])
    assert rounds <= Search(0, range(1, count), count).rounds(jobs)
    if jobs == 1:
        assert rounds <= ceil(log(count, 2)) if count > 1 else rounds == 0


@given(data=st.data(), count=st.integers(1, 60), jobs=st.integers(1, 4))
def test_where_some_cannot_be_told_the_range_is_as_small_as_can_be(data: st.DataObject, count: int, jobs: int) -> None:
    first_bad = data.draw(st.integers(1, count))
    untold = data.draw(st.frozensets(st.integers(1, max(1, count - 1)), max_size=count)) - {count}
    search, _ = searched(count, first_bad, untold, jobs)
    known = [one for one in range(count + 1) if one not in untold]
    assert search.low == max(one for one in known if one < first_bad)
    assert search.high == min(one for one in known if one >= first_bad)
    assert search.skipped == list(range(search.low + 1, search.high))


def test_sixty_four_versions_take_six_probes() -> None:
    assert {searched(64, first_bad, frozenset(), 1)[1] for first_bad in range(1, 65)} == {6}
    assert {searched(64, first_bad, frozenset(), 3)[1] for first_bad in range(1, 65)} == {3}


def test_a_neighbour_is_tried_then_ones_further_away() -> None:
    search = Search(0, range(1, 64), 64)
    asked = []
    for _ in range(4):
        [version] = search.next(1)
        asked.append(version)
        search.tell(version, Told.SKIPPED)
    assert asked == [32, 33, 16, 49]


@pytest.mark.parametrize(("told", "first_bad"), [("gbgb", 2), ("bgbb", 1), ("ggbg", 3)])
def test_good_after_bad_is_said(told: str, first_bad: int) -> None:
    search = Search(0, range(1, 5), 5)
    for version, one in enumerate(told, start=1):
        search.tell(version, Told.GOOD if one == "g" else Told.BAD)
    assert (search.low, search.high) == (first_bad - 1, first_bad)
    assert search.good_after_bad == [n for n, one in enumerate(told, start=1) if one == "g" and n > first_bad]
