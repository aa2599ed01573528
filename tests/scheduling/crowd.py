"""Many clusters, a scheduler and real node agents in simulated time, to see who gets the CPUs."""

from __future__ import annotations

import heapq
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dispy.broker import effects as broker_effects
from dispy.broker.core import Scheduler
from dispy.broker.settings import FAIR, Settings
from dispy.node import effects
from dispy.node.core import Agent
from dispy.protocol.messages import (
    FINISHED,
    Body,
    ClusterOpened,
    Code,
    ComputationSpec,
    Credit,
    Identity,
    JobResult,
    JobSpec,
    NodeSpec,
    OpenCluster,
    Results,
    Submit,
)

LATENCY_S = 0.0005  # of a message
BROKER = Identity("broker", "b", "broker", "0", "3", "Linux")
CODE = Code("3.11", JobSpec(0, 0, b"f"))


@dataclass
class Tenant:
    """A cluster, with all its jobs, and what has become of them."""

    peer: str
    lengths: list[float]
    nodes: tuple[str, ...] = ("*",)
    weight: float = 1.0
    max_tasks: int = 1
    sent: int = 0
    credit: int = 0
    ended: int = 0
    used_s: float = 0.0  # of jobs that have ended or run
    began: list[float] = field(default_factory=list)  # when jobs began


class Crowd:
    """A world with one broker, without faults."""

    def __init__(self, policy: str = FAIR, weights: Mapping[str, float] | None = None) -> None:
        self.scheduler = Scheduler(0, Settings(policy=policy, weights=weights or {}))
        self.now = 0.0
        self.tenants: dict[str, Tenant] = {}
        self.machines: dict[str, Machine] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Have something happen."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, act))

    def node(self, name: str, cpus: int) -> None:
        """Start a node."""
        self.machines[name] = Machine(self, name, cpus)
        who = Identity("node", name, name, "0", "3", "Linux", cpus)
        self.scheduler.joined(name, who, [], f"{name}:9700", self.now)
        self.machines[name].act(lambda agent: agent.joined("b", BROKER, [], self.now))

    def open(self, user: str, lengths: list[float], **fields: Any) -> Tenant:
        """Have a user start a program with one cluster, and submit all its jobs."""
        tenant = Tenant(f"client {len(self.tenants)}", lengths, **fields)
        self.tenants[tenant.peer] = tenant
        who = Identity("client", tenant.peer, tenant.peer, "0", "3", "Linux", user=user)
        self.scheduler.joined(tenant.peer, who, [], "", self.now)
        spec = ComputationSpec("c", [CODE], max_tasks_per_child=tenant.max_tasks)
        nodes = [NodeSpec(name) for name in tenant.nodes]
        self.tell(tenant.peer, OpenCluster(1, spec, nodes, weight=tenant.weight))
        return tenant

    def tell(self, peer: str, message: Body) -> None:
        """Have a message arrive at the broker."""
        self.scheduler.receive(peer, message, self.now)
        for effect in self.scheduler.flush(self.now):
            if isinstance(effect, broker_effects.Send):
                if effect.peer in self.machines:
                    hear = partial(self.machines[effect.peer].hear, effect.message)
                else:
                    hear = partial(self._hear, self.tenants[effect.peer], effect.message)
                self.at(self.now + LATENCY_S, hear)

    def _hear(self, tenant: Tenant, message: Body) -> None:
        if isinstance(message, Results):
            tenant.ended += len(message.results)
        elif isinstance(message, (ClusterOpened, Credit)):
            tenant.credit = message.limit if isinstance(message, Credit) else message.credit
            while tenant.sent < min(tenant.credit, len(tenant.lengths)):
                end = min(tenant.credit, len(tenant.lengths), tenant.sent + 500)
                seqs = range(tenant.sent + 1, end + 1)
                tenant.sent = end
                packed = [struct.pack("d", tenant.lengths[seq - 1]) for seq in seqs]
                jobs = [JobSpec(seq, 0, each) for seq, each in zip(seqs, packed, strict=True)]
                self.tell(tenant.peer, Submit(1, jobs))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = until
        for machine in self.machines.values():
            machine.count_running()
        self.scheduler.check()

    def busy(self) -> int:
        """Return how many CPUs run jobs."""
        return sum(machine.agent.node.busy for machine in self.machines.values())


class Machine:
    """A real agent, and job processes that do as their jobs' lengths say."""

    def __init__(self, world: Crowd, name: str, cpus: int) -> None:
        self.world, self.name = world, name
        self.agent = Agent(cpus)
        self.given: dict[int, deque[JobSpec]] = {}
        self.computation: dict[int, int] = {}  # by job process
        self.since: dict[int, float] = {}  # its job has been counted so far
        self.begun: dict[int, float] = {}
        self.tenant: dict[int, Tenant] = {}  # by computation
        self._tick_at = float("inf")

    def act(self, order: Callable[[Agent], None]) -> None:
        """Have something happen at the agent, and do what it wants."""
        order(self.agent)
        self.agent.tick(self.world.now)
        for effect in self.agent.flush(self.world.now):
            self._carry_out(effect)
        when = self.agent.deadline()
        if when < min(self._tick_at, 1e9):
            self._tick_at = max(when, self.world.now)
            self.world.at(self._tick_at, self._tick)

    def _tick(self) -> None:
        self._tick_at = float("inf")
        self.act(lambda agent: None)

    def hear(self, message: Body) -> None:
        """Have a message of the broker arrive."""
        self.act(lambda agent: agent.receive("b", message, self.world.now))

    def _carry_out(self, effect: effects.Effect) -> None:
        world = self.world
        if isinstance(effect, effects.Send):
            world.at(world.now + LATENCY_S, partial(world.tell, self.name, effect.message))
        elif isinstance(effect, effects.StartTemplate):
            number = effect.prepare.computation
            client = world.scheduler.clusters[number].client
            self.tenant[number] = world.tenants[client.peer]
            world.at(world.now, partial(self.act, lambda agent: agent.template_ready(number)))
        elif isinstance(effect, effects.Spawn):
            self.given[effect.worker] = deque()
            self.computation[effect.worker] = effect.computation
        elif isinstance(effect, effects.Give):
            waits = self.given[effect.worker]
            waits.extend(effect.jobs)
            if len(waits) == len(effect.jobs):
                self._begin(effect.worker)
        elif isinstance(effect, effects.Revoke):
            waits = self.given[effect.worker]
            count = max(0, len(waits) - 1)
            for _ in range(count):
                waits.pop()
            answer = partial(self._revoked, effect.worker, count)
            world.at(world.now, answer)

    def _revoked(self, worker: int, count: int) -> None:
        self.act(lambda agent: agent.revoked(worker, count, self.world.now))

    def _begin(self, worker: int) -> None:
        (length_s,) = struct.unpack("d", bytes(self.given[worker][0].payload))
        now = self.world.now
        self.since[worker] = self.begun[worker] = now
        self.tenant[self.computation[worker]].began.append(now)
        self.world.at(now + length_s, partial(self._end, worker))

    def _end(self, worker: int) -> None:
        now = self.world.now
        spec = self.given[worker].popleft()
        tenant = self.tenant[self.computation[worker]]
        tenant.used_s += now - self.since.pop(worker)
        result = JobResult(spec.seq, spec.attempt, FINISHED, self.begun[worker], now, b"")
        if self.given[worker]:
            self._begin(worker)
        if tenant.max_tasks == 1:
            self.agent.outcomes(worker, [result], now)
            self.act(lambda agent: agent.worker_exited(worker, 1, "", (b"", b""), now))
        else:
            self.act(lambda agent: agent.outcomes(worker, [result], now))

    def count_running(self) -> None:
        """Count jobs that run with what they have used by now."""
        for worker, since in self.since.items():
            self.tenant[self.computation[worker]].used_s += self.world.now - since
            self.since[worker] = self.world.now
