"""An hour with many nodes that die all the time (scenario A2).

Scheduler, agents and client core talk to each other without exchanges, since an hour of
heartbeats would tell nothing new; `test_scale` has these, for a shorter time. The default is a
fifth of it; ``DISPY_SCALE=5`` is 1,000 nodes of 4 CPUs, 100,000 jobs and 600 deaths.
"""

from __future__ import annotations

import gc
import heapq
import os
import random
from functools import partial
from types import SimpleNamespace

import pytest

from dispy import core as client_core
from dispy import effects as client_effects
from dispy.broker import effects as broker_effects
from dispy.broker import placement
from dispy.broker.core import Scheduler
from dispy.job import DispyJob
from dispy.node import effects as node_effects
from dispy.node.core import Agent
from dispy.protocol.messages import FINISHED, Body, ComputationSpec, JobSpec, NodeSpec, OpenCluster

from .clock import Clock
from .jobs import Course, Diary, Jobs
from .processes import VITALS, carry_out, report
from .world import identity, layer

SCALE = float(os.environ.get("DISPY_SCALE", "1"))
NODES = int(200 * SCALE)
JOBS = int(20_000 * SCALE)
CPUS = 4
HOUR_S = 3600.0
DEATHS_PER_MINUTE = 0.01  # of all nodes
UTILISATION = 0.5  # of all CPUs; dead nodes included
NOTICE_S = 25.0  # from the death of a node to the end of its lease
LAZY_S = 5.0  # an agent is ticked no more often than this
LAG_S = 0.002
HEAP_CALLS_MAX = 12  # of O(log n) each, for one job


class Node:
    """An agent with its job processes, and nothing between it and the scheduler."""

    def __init__(self, site: Site, peer: str) -> None:
        self.site = site
        self.peer = peer
        self.is_alive = True
        self.is_awake = False
        self.agent = Agent(CPUS)
        clock, chance = site.clock, site.chance
        self.jobs = Jobs(clock, chance, peer, site.diary, site.course_of, self.wake)
        self.agent.joined("broker", identity("broker", "broker"), [], clock.now)
        self.wake()
        clock.after(LAZY_S, self._tick)

    def receive(self, message: Body) -> None:
        """Take a message of the broker."""
        if self.is_alive:
            self.agent.receive("broker", message, self.site.clock.now)
            self.wake()

    def wake(self) -> None:
        """Step soon."""
        if self.is_alive and not self.is_awake:
            self.is_awake = True
            self.site.clock.after(0.0, self._step)

    def _tick(self) -> None:
        if self.is_alive:
            self.agent.tick(self.site.clock.now)
            self.wake()
            self.site.clock.after(LAZY_S, self._tick)

    def _step(self) -> None:
        self.is_awake = False
        if self.is_alive:
            self._report()
            while effects := self.agent.flush(self.site.clock.now):
                for effect in effects:
                    self._carry_out(effect)
                self._report()

    def _report(self) -> None:
        for event in self.jobs.take_events():
            report(self.agent, event, self.site.clock.now)

    def _carry_out(self, effect: node_effects.Effect) -> None:
        if isinstance(effect, node_effects.Send):
            self.site.to_broker(self.peer, effect.message)
        elif isinstance(effect, node_effects.Measure):
            self.agent.measured(VITALS)
        else:
            carry_out(self.agent, self.jobs, effect, self.site.clock.now)


class Site:
    """A scheduler, a client and a great many nodes."""

    def __init__(self, nodes: int, jobs: int, seconds: float) -> None:
        self.clock = Clock()
        self.chance = random.Random(nodes)
        self.diary = Diary()
        self.scheduler = Scheduler(first_id=1)
        self.client = client_core.Core()
        self.nodes: dict[str, Node] = {}
        self.ends: dict[int, list[int]] = {}  # seq: statuses
        self.deaths = 0
        self._names = 0
        self._is_flushing = False
        self._course = Course(UTILISATION * nodes * CPUS * seconds / jobs)
        self.scheduler.joined("client", identity("client", "client"), [], "", 0.0)
        self.client.join(0.0)
        for _ in range(nodes):
            self.clock.after(self.chance.uniform(0, 5), self.add_node)
        computation = ComputationSpec("1", [layer(1)])
        self.client.open(OpenCluster(1, computation, [NodeSpec("*")], reentrant=True), 0.0)
        for portion in range(100):
            first, last = portion * jobs // 100 + 1, (portion + 1) * jobs // 100
            when = portion * seconds * 0.8 / 100
            self.clock.at(when, partial(self._submit, first, last))
        self._from_client()

    def course_of(self, name: str, seq: int) -> Course:
        """All jobs take equally long."""
        return self._course

    def add_node(self) -> None:
        """Start one more node."""
        self._names += 1
        peer = f"node{self._names}"
        self.nodes[peer] = Node(self, peer)
        who = identity("node", peer, peer, CPUS, f"10.{self._names}:9701")
        self.scheduler.joined(peer, who, [], "", self.clock.now)

    def die_sometimes(self, until: float) -> None:
        """Have nodes die, to be replaced a little later."""
        pause = self.chance.expovariate(DEATHS_PER_MINUTE * len(self.nodes) / 60.0)
        if self.clock.now + pause < until:
            self.clock.after(pause, partial(self._death, until))

    def _death(self, until: float) -> None:
        peer = self.chance.choice(list(self.nodes))
        node = self.nodes.pop(peer)
        node.is_alive = False
        node.jobs.die()
        self.deaths += 1
        self.clock.after(NOTICE_S, partial(self._noticed, peer))
        self.clock.after(60.0, self.add_node)
        self.die_sometimes(until)

    def _noticed(self, peer: str) -> None:
        self.scheduler.away(peer, "", True, self.clock.now)
        self._flush_soon()

    def _submit(self, first: int, last: int) -> None:
        for seq in range(first, last + 1):
            self.client.submit(1, DispyJob(1, JobSpec(seq, 0, b"x"), seq, (), {}))
        self._from_client()

    def to_broker(self, peer: str, message: Body) -> None:
        """Have a message arrive a little later."""
        self.clock.after(LAG_S, partial(self._at_broker, peer, message))

    def _at_broker(self, peer: str, message: Body) -> None:
        if peer == "client" or peer in self.scheduler.nodes:
            self.scheduler.receive(peer, message, self.clock.now)
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            self.clock.after(0.0, self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        for effect in self.scheduler.flush(self.clock.now):
            if not isinstance(effect, broker_effects.Send):
                continue
            if effect.peer == "client":
                self.clock.after(LAG_S, partial(self._at_client, effect.message))
            elif effect.peer in self.nodes:
                self.clock.after(LAG_S, partial(self._at_node, effect.peer, effect.message))

    def _at_node(self, peer: str, message: Body) -> None:
        if peer in self.nodes:
            self.nodes[peer].receive(message)

    def _at_client(self, message: Body) -> None:
        self.client.receive(message, self.clock.now)
        self._from_client()

    def _from_client(self) -> None:
        for effect in self.client.take():
            if isinstance(effect, client_effects.Send):
                self.to_broker("client", effect.message)
            elif isinstance(effect, client_effects.Ended):
                for _, result in effect.jobs:
                    self.ends.setdefault(result.seq, []).append(result.status)


def count_heap_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what placement does with heaps."""
    count = [0]

    def counted(name: str) -> object:
        function = getattr(heapq, name)

        def call(*arguments: object) -> object:
            count[0] += 1
            return function(*arguments)

        return call

    names = ("heappush", "heappop", "heapreplace", "heapify")
    shim = SimpleNamespace(**{name: counted(name) for name in names})
    monkeypatch.setattr(placement, "heapq", shim)
    return count


def test_a_large_site_gets_through_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    heap_calls = count_heap_calls(monkeypatch)
    gc.disable()
    try:
        site = Site(NODES, JOBS, HOUR_S)
        site.clock.after(10.0, partial(site.die_sometimes, HOUR_S))
        done = site.clock.run(2 * HOUR_S, lambda: len(site.ends) == JOBS)
    finally:
        gc.enable()
    site.scheduler.check()
    site.client.check()
    assert done, f"{JOBS - len(site.ends)} jobs have not ended"
    assert site.clock.now < 1.3 * HOUR_S
    assert site.deaths > 0.4 * DEATHS_PER_MINUTE * NODES * HOUR_S / 60
    assert all(statuses == [FINISHED] for statuses in site.ends.values())
    assert heap_calls[0] < HEAP_CALLS_MAX * JOBS
    for cluster in site.scheduler.clusters.values():
        assert len(cluster.heap) <= placement.ENTRIES_MAX * (NODES + 1)


@pytest.mark.parametrize("nodes", [10, 100, 1000])
def test_a_decision_costs_no_more_with_more_nodes(
    nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heap_calls = count_heap_calls(monkeypatch)
    site, jobs = Site(nodes, 5000, 100.0), 5000
    assert site.clock.run(400.0, lambda: len(site.ends) == jobs)
    # Each of these costs O(log n) comparisons; their number must not depend on n.
    assert heap_calls[0] - 3 * nodes < HEAP_CALLS_MAX * jobs
