"""The broker's Scheduler alone: no sockets, no processes, only its decisions.

One client with one or many clusters, and many nodes, are played here, message by message. Jobs
are long, so that no node holds any ahead and every result comes in a message of its own: the
dearest case.
"""

from __future__ import annotations

import time
from collections import deque

from dispy.broker.core import Scheduler
from dispy.broker.effects import Send
from dispy.protocol.messages import (
    FINISHED,
    Body,
    ClusterOpened,
    Code,
    ComputationSpec,
    Credit,
    Done,
    Holding,
    Identity,
    JobResult,
    JobSpec,
    NodeSpec,
    OpenCluster,
    Prepare,
    Prepared,
    Results,
    Run,
    Submit,
)

from .work import check

CLIENT = "client"
DRAINED = 100  # results that arrive between two flushes
SUBMITTED = 500  # jobs in one message at most
RUN_S = 1.0
PAYLOAD = bytes(60)


def jobs_per_s(nodes: int, count: int, clusters: int = 1) -> float:
    """Rate of jobs that are submitted, placed and finished, with so many nodes of one CPU."""
    count -= count % clusters
    cast = Cast(count // clusters, clusters)
    cast.join(nodes)
    began = time.perf_counter()
    while cast.finished < count:
        cast.turn()
    seconds = time.perf_counter() - began
    check(cast.ready == nodes * clusters, "nodes")
    return count / seconds


class Part:
    """A cluster, with all its jobs."""

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.jobs = [JobSpec(seq, 0, PAYLOAD) for seq in range(1, count + 1)]
        self.credit = self.submitted = 0

    def next_batch(self) -> list[JobSpec]:
        """Return jobs that may be submitted now."""
        end = min(self.credit, self.submitted + SUBMITTED)
        batch = self.jobs[self.submitted : end]
        self.submitted += len(batch)
        return batch


class Cast:
    """Plays everybody whom the scheduler talks to."""

    def __init__(self, count: int, clusters: int) -> None:
        self.scheduler = Scheduler()
        self.parts = [Part(number, count) for number in range(1, clusters + 1)]
        self.runs: deque[tuple[str, Run]] = deque()  # in the order in which they will end
        self.now = 0.0
        self.due: list[Part] = []  # may submit more
        self.finished = self.ready = 0

    def join(self, nodes: int) -> None:
        """Register everybody and open the cluster, until all nodes are ready."""
        scheduler, now = self.scheduler, self.now
        scheduler.joined(CLIENT, _identity("client", 0), [], "", now)
        code = Code("3.11", JobSpec(0, 0, PAYLOAD))
        for part in self.parts:
            spec = ComputationSpec("no_op", [code])
            scheduler.receive(CLIENT, OpenCluster(part.number, spec, [NodeSpec("*")]), now)
        for number in range(nodes):
            peer = f"node {number}"
            scheduler.joined(peer, _identity("node", number), [], f"10.0.0.1:{number}", now)
            scheduler.receive(peer, Holding([], []), now)
        self.flush()
        self.flush()

    def turn(self) -> None:
        """Submit what may be submitted, place it, and end some jobs."""
        due, self.due = self.due, []
        for part in due:
            while batch := part.next_batch():
                self.scheduler.receive(CLIENT, Submit(part.number, batch), self.now)
        self.flush()
        for _ in range(min(DRAINED, len(self.runs))):
            self._end(*self.runs.popleft())

    def _end(self, peer: str, run: Run) -> None:
        self.now += 1e-5
        start, end = self.now - RUN_S, self.now
        ended = [JobResult(job.seq, job.attempt, FINISHED, start, end, b"") for job in run.jobs]
        self.scheduler.receive(peer, Done(run.computation, ended), self.now)

    def flush(self) -> None:
        """Let the scheduler decide, and answer what it says."""
        for effect in self.scheduler.flush(self.now):
            if isinstance(effect, Send):
                self._hear(effect.peer, effect.message)

    def _hear(self, peer: str, message: Body) -> None:
        match message:
            case Run():
                self.runs.append((peer, message))
            case Results():
                self.finished += len(message.results)
            case Credit():
                self._grant(message.cluster, message.limit)
            case Prepare():
                self.ready += 1
                self.scheduler.receive(peer, Prepared(message.computation), self.now)
            case ClusterOpened():
                self._grant(message.cluster, message.credit)

    def _grant(self, number: int, credit: int) -> None:
        part = self.parts[number - 1]
        part.credit = credit
        self.due.append(part)


def _identity(role: str, number: int) -> Identity:
    return Identity(role, f"{role} {number}", f"{role}{number}", "1", "3.11.7", "Linux", cpus=1)
