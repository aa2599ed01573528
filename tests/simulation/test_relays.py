"""With relays in between everything holds that holds without, whatever goes wrong with them.

``DISPY_RELAYED_SEEDS`` says how many runs are played (default 24), ``DISPY_SEED`` which is first.
"""

from __future__ import annotations

import os

import pytest

from .relayedworlds import play_dead_node, play_dead_relay, play_shared_file, play_slow_trunk
from .test_random_faults import FIRST, play_all

COUNT = int(os.environ.get("DISPY_RELAYED_SEEDS", "24"))
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_every_job_ends_once_behind_relays(part: int) -> None:
    play_all(range(FIRST, FIRST + COUNT), ["--relayed", "--faults", 5], part, PARTS)


@pytest.mark.parametrize("relays", [1, 2])
@pytest.mark.parametrize("rate", [3e5, 2e6])
def test_over_a_slow_trunk_no_sign_of_life_is_late(rate: float, relays: int) -> None:
    play_slow_trunk(rate, relays)


def test_a_file_crosses_each_trunk_once() -> None:
    play_shared_file()


@pytest.mark.parametrize("relays", [1, 2])
@pytest.mark.parametrize("lasts_s", [0.0, 2.0])
def test_a_relay_that_dies_costs_no_job(relays: int, lasts_s: float) -> None:
    world = play_dead_relay(relays, lasts_s)
    ends = [end for ended in world.client.records[1].ends.values() for end in ended]
    assert [end.attempt for end in ends] == [1] * 20


@pytest.mark.parametrize("relays", [1, 2])
def test_the_end_of_a_node_behind_relays_is_known_at_once(relays: int) -> None:
    play_dead_node(relays)
