"""The benchmark's table: ratios are those of rounds, and what is missed is said."""

from __future__ import annotations

import pytest

from bench import table
from bench.rounds import Rounds


def measured(**figures: list[float]) -> Rounds:
    """Return rounds with these figures; dots of the keys are written as underscores."""
    rounds = Rounds()
    for key, values in figures.items():
        for value in values:
            rounds.add({key.replace("_", ".", 1): value})
    return rounds


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    # The machine is four times as fast in the last round; ours is always twice the other's rate.
    rounds = measured(rate_fresh=[200, 210, 800], rate_pool=[100, 105, 400])
    assert rounds.value(lambda f: f["rate.fresh"] / f["rate.pool"]) == 2
    assert rounds.figure("rate.fresh") == 210


def test_what_was_measured_once_belongs_to_all_rounds() -> None:
    rounds = measured(rate_a=[10, 20, 40], rate_b=[10])
    assert rounds.value(lambda f: f["rate.a"] / f["rate.b"]) == 2


def test_a_round_without_a_figure_does_not_count() -> None:
    rounds = measured(rate_a=[10, 20], rate_b=[10, 20, 500], rate_c=[1])
    assert rounds.value(lambda f: f["rate.a"] / f["rate.b"]) == 1
    with pytest.raises(KeyError):
        rounds.value(lambda f: f["rate.nothing"])


def test_the_table_says_what_is_missed() -> None:
    rounds = measured(rate_fresh=[290], rate_pool=[100], fork_served=[400])
    text = "\n".join(table.lines(rounds, {"rate.reused": "failed: no memory"}))
    assert "2.90  MISSED" in text
    assert "0.72  ok" in text
    assert "failed: no memory" in text
    assert table.missed(rounds) == ["dispy, a fresh process each"]
    assert not table.missed(measured(rate_fresh=[300], rate_pool=[100], fork_served=[400]))
