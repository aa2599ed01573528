"""When connections are tried after one was closed."""

from __future__ import annotations

from itertools import pairwise

from dispy.protocol.doubts import TRIES, TRY_S, Doubts


def times(doubts: Doubts, looks: list[float]) -> list[float]:
    """Return at which of these looks the connections are tried."""
    return [now for now in looks if doubts.are_due(now)]


def test_without_a_doubt_nothing_is_tried() -> None:
    doubts = Doubts()
    assert doubts.next_at == float("inf") and not doubts.are_due(1e9)


def test_all_are_tried_a_few_times_however_often_somebody_looks() -> None:
    doubts = Doubts()
    doubts.begin(1.0)
    often = [1.0 + 0.01 * number for number in range(300)]
    tried = times(doubts, often)
    assert len(tried) == TRIES and tried[0] == 1.0
    gaps = [later - before for before, later in pairwise(tried)]
    assert all(TRY_S <= gap < TRY_S + 0.02 for gap in gaps)
    assert doubts.next_at == float("inf")


def test_who_comes_and_goes_all_the_time_does_not_have_them_tried_each_time() -> None:
    doubts = Doubts()
    tried = 0
    for number in range(1000):
        doubts.begin(0.001 * number)
        tried += doubts.are_due(0.001 * number)
    assert tried == 1 / TRY_S
