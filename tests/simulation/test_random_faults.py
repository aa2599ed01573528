"""Whatever goes wrong, every job ends once and nothing is left behind (scenario A1).

One client, one broker, three nodes, at most three faults, 200 jobs; an eighth of the runs are of a
broker that several programs share, and that has a journal: it is killed as well, and so are they.
``DISPY_SEEDS`` says how many runs (default 128), ``DISPY_SHARED_SEEDS`` how many of them are of
the latter kind, ``DISPY_SEED`` which is the first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from dispy.protocol.messages import CANCELLED, FINISHED

from .scenarios import (
    GIVEN_UP_S,
    GREETED_S,
    JOBS_MANY,
    play_cancelled_queue,
    play_closed_node,
    play_given_up_node,
)
from .sharedworlds import (
    play_full_disk,
    play_lost_records,
    play_orphan,
    play_silent_client,
    play_stopped_nodes,
    play_taken_over,
)
from .world import World

ROOT = Path(__file__).parents[2]
FIRST = int(os.environ.get("DISPY_SEED", "0"))
COUNT = int(os.environ.get("DISPY_SEEDS", "128"))
SHARED = int(os.environ.get("DISPY_SHARED_SEEDS", COUNT // 8))  # of all runs
SHARED_FAULTS = 5
PARTS = 4  # of some length: to start a process takes as long as a few seeds
PROCESSES = 2


def start(arguments: list[object], hash_seed: str = "random") -> subprocess.Popen[str]:
    """Play seeds in a process of their own."""
    command = [sys.executable, "-m", "tests.simulation", *map(str, arguments)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def play_all(seeds: range, more: list[object], part: int, parts: int) -> None:
    """Play one of the parts of some seeds, in processes of their own."""
    count, slices = len(seeds), parts * PROCESSES
    cuts = [seeds.start + count * (part * PROCESSES + i) // slices for i in range(PROCESSES + 1)]
    players = [start([first, end, *more]) for first, end in pairwise(cuts)]
    outputs = [player.communicate()[0] for player in players]
    assert not any(player.returncode for player in players), "\n".join(outputs)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_job_ends_once_whatever_goes_wrong(part: int) -> None:
    play_all(range(FIRST, FIRST + COUNT - SHARED), [], part, PARTS)


@pytest.mark.parametrize("part", range(PARTS // 2))
def test_every_job_ends_once_at_a_shared_broker_that_is_killed(part: int) -> None:
    seeds = range(FIRST, FIRST + SHARED)
    play_all(seeds, ["--durable", "--faults", SHARED_FAULTS], part, PARTS // 2)


def test_cancelled_jobs_make_room_for_others() -> None:
    world = play_cancelled_queue()
    ends = [end.status for ended in world.client.records[1].ends.values() for end in ended]
    assert ends.count(CANCELLED) == ends.count(FINISHED) == JOBS_MANY


def test_a_closed_node_that_was_given_up_is_not_used_again() -> None:
    play_closed_node()


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("silent_s", [GREETED_S, GIVEN_UP_S])
def test_a_node_that_was_given_up_comes_back(silent_s: float, is_cut: bool) -> None:
    play_given_up_node(silent_s, is_cut)


@pytest.mark.parametrize(
    "play",
    [
        play_taken_over,
        play_silent_client,
        partial(play_silent_client, True),
        play_orphan,
        play_stopped_nodes,
        play_lost_records,
    ],
)
def test_who_is_lost_with_a_shared_broker_has_not_lost_its_jobs(play: Callable[[], World]) -> None:
    play()


def test_jobs_that_come_while_the_disk_is_full_wait() -> None:
    play_full_disk()


def test_many_faults_at_once() -> None:
    play_all(range(32), ["--faults", 12], 0, 1)


@pytest.mark.parametrize("kind", [[], ["--durable"]])
def test_a_seed_is_a_run_to_the_byte(kind: list[object]) -> None:
    players = [start([11, "--messages", *kind], hash_seed) for hash_seed in ("1", "2")]
    first, second = (player.communicate()[0] for player in players)
    assert first == second
    assert "digest" in first
