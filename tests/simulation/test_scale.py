"""A thousand nodes, of which some die all the time (scenario A2).

The default is less than a tenth of it; ``DISPY_SCALE=5`` is 1,000 nodes of 4 CPUs and 100,000
jobs. Nodes die at a rate that makes up for the time: two minutes, not an hour. A broker with a
journal has fewer jobs, but dies as well.
"""

from __future__ import annotations

import heapq
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from dispy.broker import placement
from dispy.broker.placement import ENTRIES_MAX
from dispy.broker.settings import Settings
from dispy.protocol.link import Link

from . import promises
from .broker import BrokerProcess
from .jobs import Course
from .processes import ClientProcess, NodeProcess
from .scenarios import settle
from .world import Machine, World

SCALE = float(os.environ.get("DISPY_SCALE", "0.2"))
NODES = int(200 * SCALE)
JOBS = int(20_000 * SCALE)
JOBS_KEPT = JOBS // 2  # of a broker with a journal
LOADED_JOBS = JOBS_KEPT // 10  # so that most of them wait on disk
CPUS = 4
RUN_S = 5.0  # of a job, on average
LOST_PER_MINUTE = 0.1
HOURS_MAX = 1.0
REAL_S_MAX = 60.0
HEAP_STEPS_MAX = 4  # additions and removals per job, each of them O(log nodes)


def counted(counts: Counter[str], name: str) -> Callable[..., Any]:
    function = getattr(heapq, name)

    def count(*arguments: Any) -> Any:
        counts[name] += 1
        return function(*arguments)

    return count


@pytest.fixture
def heap_steps(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what the placement does to its heaps."""
    counts: Counter[str] = Counter()
    names = ("heappush", "heappop", "heapreplace", "heapify")
    fake = SimpleNamespace(**{name: counted(counts, name) for name in names})
    monkeypatch.setattr(placement, "heapq", fake)
    return counts


def lose_some(world: World, machine: Machine, chance: random.Random) -> None:
    """Kill a node and start it anew a little later."""
    world.kill_node(machine)
    world.clock.after(chance.uniform(1.0, 30.0), partial(world.start_node, machine))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Walk through all invariants in small worlds only."""
    for kind in (BrokerProcess, NodeProcess, ClientProcess, Link):
        monkeypatch.setattr(kind, "check", lambda _: None)
    return monkeypatch


def plan(world: World, jobs: int, reentrant: bool) -> float:
    """Start nodes, submit jobs, have some nodes die; return how long that takes at least."""
    chance = random.Random("scale")
    for _ in range(NODES):
        world.start_node(world.add_machine(CPUS, dials=True))
    number = world.open_cluster(reentrant=reentrant, max_tasks=1)
    courses = [Course(chance.uniform(0.5, 1.5) * RUN_S) for _ in range(jobs)]
    world.submit(number, courses)
    machines = list(world.machines.values())
    shortest_s = jobs * RUN_S / (NODES * CPUS)
    for _ in range(math.ceil(NODES * LOST_PER_MINUTE * shortest_s / 60)):
        when = chance.uniform(1.0, shortest_s)
        world.clock.at(when, partial(lose_some, world, chance.choice(machines), chance))
    return shortest_s


def test_many_nodes_of_which_some_die(
    heap_steps: Counter[str], unchecked: pytest.MonkeyPatch
) -> None:
    world = World("scale")
    plan(world, JOBS, reentrant=True)
    began = time.process_time()
    assert world.run(HOURS_MAX * 3600, world.is_idle), "not all jobs have ended"
    assert time.process_time() - began < REAL_S_MAX
    assert world.lost_nodes
    promises.check_ends(world)
    unchecked.undo()
    world.broker.scheduler.check()
    attempts = sum(map(len, world.diary.begun.values()))
    assert attempts > JOBS  # some were lost and run again
    assert sum(heap_steps.values()) < HEAP_STEPS_MAX * attempts + 10 * NODES
    (cluster,) = world.broker.scheduler.clusters.values()
    assert len(cluster.heap) <= ENTRIES_MAX * (NODES + 1)
    settle(world)
    promises.check_free(world)


@pytest.mark.timeout(120 * max(1.0, SCALE))
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_broker_with_many_nodes_dies_and_goes_on(
    reentrant: bool, unchecked: pytest.MonkeyPatch
) -> None:
    settings = Settings(durable=True, shared=True, loaded_jobs=LOADED_JOBS)
    world = World("scale of a shared broker", settings)
    shortest_s = plan(world, JOBS_KEPT, reentrant)
    for part, point in ((0.2, ""), (0.5, "before-commit"), (0.7, "sending")):
        world.clock.at(part * shortest_s, partial(lose_broker, world, point))
    began = time.process_time()
    assert world.run(HOURS_MAX * 3600, world.is_idle), "not all jobs have ended"
    assert time.process_time() - began < REAL_S_MAX
    assert world.broker_lives == 4
    promises.check_ends(world)
    unchecked.undo()
    world.broker.scheduler.check()
    settle(world)
    promises.check_free(world)
    promises.check_used(world)


def lose_broker(world: World, point: str) -> None:
    """Kill the broker, where it is or where it will soon be, and start it anew."""
    world.clock.after(3.0, world.start_broker)
    if point:
        world.broker.die_at(point, 2)
    else:
        world.kill_broker()
