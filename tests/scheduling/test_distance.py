"""Nodes far away get jobs ahead, as many as hide the way; others don't."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count

import pytest

from dispy.broker.distance import ENOUGH, FAR_MAX_S, NEAR_S, Distance
from dispy.broker.state import Job
from dispy.protocol.messages import FINISHED, Done, JobResult, JobSpec, Returned, Run, Withdraw

from .stage import Stage


class FarNodes:
    """Plays nodes with a way to the broker that takes its time."""

    def __init__(self, run_s: float, **ways_s: float) -> None:
        self.stage = Stage()
        self.run_s = run_s
        self.ways_s = ways_s
        self.cpus = 2
        self.free = dict.fromkeys(ways_s, self.cpus)
        self.queues: dict[str, deque[JobSpec]] = {name: deque() for name in ways_s}
        self.most = dict.fromkeys(ways_s, 0)  # jobs that have waited there at a time
        self.ended = 0
        self._events: list[tuple[float, int, str, object]] = []
        self._numbers = count()
        for name in ways_s:
            self.stage.node(name, self.cpus)

    def run(self, jobs: int) -> float:
        """Return how much of the CPUs' time was used until so many jobs had ended."""
        begin, goal = self.stage.now, self.ended + jobs
        first = next(self._numbers) + 1
        self.stage.submit(*range(first, first + jobs))
        self._numbers = count(first + jobs)
        self._send()
        while self.ended < goal:
            self.stage.now, _, name, what = heapq.heappop(self._events)
            self._happen(name, what)
            self._send()
        return jobs * self.run_s / self.cpus / len(self.ways_s) / (self.stage.now - begin)

    def _send(self) -> None:
        for name, run in self.stage.take(Run):
            self._later(self.ways_s[name], name, run)
        for name, withdraw in self.stage.take(Withdraw):
            self._later(self.ways_s[name], name, withdraw)

    def _later(self, delay_s: float, name: str, what: object) -> None:
        event = (self.stage.now + delay_s, next(self._numbers), name, what)
        heapq.heappush(self._events, event)

    def _happen(self, name: str, what: object) -> None:
        queue, way_s = self.queues[name], self.ways_s[name]
        if isinstance(what, Run):
            queue.extend(what.jobs)
        elif isinstance(what, Withdraw):
            back = [queue.pop() for _ in range(min(what.count, len(queue)))]
            said = [(spec.seq, spec.attempt) for spec in back]
            self._later(way_s, name, Returned(what.computation, said))
        elif isinstance(what, JobSpec):
            self.free[name] += 1
            result = JobResult(what.seq, what.attempt, FINISHED, 5.0, 5.0 + self.run_s, b"r")
            self._later(way_s, name, Done(self.stage.number, [result]))
        elif isinstance(what, Done | Returned):
            self.stage.tell(name, what)
            self.ended += len(what.results) if isinstance(what, Done) else 0
        while queue and self.free[name]:
            self.free[name] -= 1
            self._later(self.run_s, name, queue.popleft())
        self.most[name] = max(self.most[name], len(queue))


@pytest.mark.parametrize(("run_s", "way_s"), [(0.2, 0.05), (0.06, 0.05), (1.0, 0.1), (0.02, 0.05)])
def test_a_way_is_hidden_behind_jobs_that_nodes_hold_ahead(run_s: float, way_s: float) -> None:
    nodes = FarNodes(run_s, one=way_s, other=way_s)
    nodes.run(40)
    assert (
        nodes.run(int(max(100, 200 * way_s / run_s))) > 0.9
    )  # the first and the last of them can't be hidden


def test_nodes_at_hand_get_nothing_ahead_that_takes_long() -> None:
    nodes = FarNodes(0.2, one=0.0005, other=0.0005)
    nodes.run(100)
    assert nodes.most == {"one": 0, "other": 0}


def test_long_jobs_wait_for_free_cpus_also_if_these_are_far_away() -> None:
    nodes = FarNodes(10.0, one=0.05, other=0.05)
    nodes.run(100)
    assert nodes.most == {"one": 0, "other": 0}


def test_only_those_far_away_hold_jobs_ahead() -> None:
    nodes = FarNodes(0.2, near=0.0005, far=0.05)
    nodes.run(100)
    assert nodes.most["near"] == 0
    assert 0 < nodes.most["far"] <= 2 * nodes.cpus


def job() -> Job:
    return Job(JobSpec(1, 1, b""))


def test_the_least_of_several_measurements_counts() -> None:
    distance = Distance()
    for way_s in (0.3, 0.05, 2.0, 0.06):
        one = job()
        distance.sent(one, 10.0)
        distance.ended(one, 1.0, 11.0 + way_s)
    assert distance.far_s == pytest.approx(0.05)


def test_a_few_measurements_say_nothing() -> None:
    distance = Distance()
    for _ in range(ENOUGH - 1):
        one = job()
        distance.sent(one, 10.0)
        distance.ended(one, 0.0, 10.2)
    assert distance.far_s == 0.0


def test_a_node_that_comes_nearer_is_near_at_once() -> None:
    distance = Distance()
    for way_s in (0.3, 0.3, 0.3, 0.3, NEAR_S / 2):
        one = job()
        distance.sent(one, 10.0)
        distance.ended(one, 0.0, 10.0 + way_s)
    assert distance.far_s == 0.0


@pytest.mark.parametrize("ran_s", [float("nan"), -1e9, 1e9, float("inf"), float("-inf")])
def test_what_a_node_says_of_its_clock_does_no_harm(ran_s: float) -> None:
    distance = Distance()
    for _ in range(10):
        one = job()
        distance.sent(one, 10.0)
        distance.ended(one, ran_s, 1e6)
    assert 0.0 <= distance.far_s <= FAR_MAX_S
    assert not distance.underway
