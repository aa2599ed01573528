"""Clients come, go, take over and close in any order: jobs end in one way, nothing is left over."""

from __future__ import annotations

import random

import pytest

from dispy.broker import unheard
from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    FINISHED,
    Body,
    CancelJobs,
    CloseCluster,
    Done,
    Holding,
    JobResult,
    Prepare,
    Prepared,
    Release,
    Released,
    Results,
    ResultsHeard,
    Returned,
    Run,
    Withdraw,
)

from .shared_stage import SharedStage

STEPS = 300
CLIENTS = ("a", "b", "c")
NODES = ("n1", "n2")
LEASE_S, RETAIN_S = 100.0, 300.0
FULL = "the disk is full"


class Crowd(SharedStage):
    """Clients that do anything at any time, and nodes that do what they are told, some time."""

    def __init__(self, seed: int, durable: bool) -> None:
        self.chance = random.Random(seed)
        super().__init__(
            Settings(durable=durable, shared=True, client_lease_s=LEASE_S, retain_s=RETAIN_S)
        )
        self.orders: list[tuple[str, Body]] = []  # that nodes haven't done so far
        self.set_up: dict[str, set[int]] = {name: set() for name in NODES}
        self.ended: dict[tuple[int, int], int] = {}  # by the broker's number and the job's
        self.seqs = 0
        for name in CLIENTS:
            self.client(name)
        for name in NODES:
            self.join(name, 2)
            self.tell(name, Holding([], []))

    def flush(self) -> None:
        """Let the scheduler act, and note how jobs have ended."""
        super().flush()
        for peer, message in self.sent:
            if peer in NODES:
                self.orders.append((peer, message))
            elif isinstance(message, Results):
                self.note(peer, message)
        self.sent = []

    def note(self, peer: str, message: Results) -> None:
        client = self.scheduler.clients.get(peer)
        cluster = client.clusters.get(message.cluster) if client else None
        if cluster is None:
            return
        for result in message.results:
            before = self.ended.setdefault((cluster.id, result.seq), result.status)
            assert before == result.status  # whoever is told, and however often

    def step(self) -> None:
        """Let something happen."""
        acts = [self.work] * 8 + [self.act] * 6 + [self.move] * 3 + [self.take_over, self.pass_time]
        if self.settings.durable and self.chance.random() < 0.02:
            self.start_anew()
        else:
            self.chance.choice(acts)()

    def start_anew(self) -> None:
        """End the broker and start it again; its nodes come back at once, its clients don't."""
        self.orders.clear()
        self.restart()
        for name in NODES:
            self.join(name, 2)
            self.tell(name, Holding(list(self.set_up[name]), []))

    def work(self) -> None:
        """Have a node do the next thing that it was told."""
        if self.orders:
            peer, message = self.orders.pop(0)
            if isinstance(message, Prepare):
                self.set_up[peer].add(message.computation)
            elif isinstance(message, Release):
                self.set_up[peer].discard(message.computation)
            for answer in obey(message):
                self.tell(peer, answer)

    def act(self) -> None:
        """Have a client that is there do something about one of its clusters."""
        name, number = self.chance.choice(CLIENTS), self.chance.randint(1, 2)
        client = self.scheduler.clients.get(name)
        if client is None or client.away_since is not None:
            return
        cluster = client.clusters.get(number)
        what = self.chance.random()
        if cluster is None or what < 0.1:
            self.open(name, number, exclusive=self.chance.random() < 0.3)
        elif what < 0.7:
            self.seqs += 3
            self.give(name, self.seqs, self.seqs - 1, self.seqs - 2, number=number)
        elif what < 0.8:
            self.tell(name, CancelJobs(number, [self.chance.randint(1, self.seqs + 1)]))
        elif what < 0.9:
            self.tell(name, ResultsHeard(number, list(cluster.unheard)[:2]))
        else:
            self.tell(name, CloseCluster(number))

    def move(self) -> None:
        """Have a client go away or come back."""
        name = self.chance.choice(CLIENTS)
        client = self.scheduler.clients.get(name)
        if client is None or client.absent or self.chance.random() < 0.1:
            self.client(name)
        elif client.away_since is not None:
            self.come_back(name)
        elif self.chance.random() < 0.9:
            self.go_away(name)
        else:
            self.leave(name)
        if self.chance.random() < 0.1:
            self.scheduler.set_trouble("" if self.scheduler.state.trouble else FULL)
            self.flush()

    def take_over(self) -> None:
        """Have a client take some cluster over."""
        name = self.chance.choice(CLIENTS)
        client = self.scheduler.clients.get(name)
        if client is not None and client.away_since is None:
            owner = self.chance.choice(CLIENTS)
            force = self.chance.random() < 0.3
            number = self.chance.randint(1, 2)
            self.attach(name, self.chance.randint(1, 4), owner=owner, number=number, force=force)

    def pass_time(self) -> None:
        self.wait(self.chance.choice([1.0, 40.0, LEASE_S, RETAIN_S]))

    def finish_all(self) -> None:
        """Have all clients come back and open what is theirs, and all jobs end."""
        self.scheduler.set_trouble("")
        self.flush()
        for name in CLIENTS:
            self.client(name)
            for number in list(self.of(name).clusters):
                self.open(name, number)
        for cluster in list(self.scheduler.clusters.values()):
            while self.orders:
                self.work()
            if cluster.id in self.scheduler.clusters and not cluster.closing:
                assert not cluster.jobs or cluster.waits
            self.tell(cluster.client.peer, CloseCluster(cluster.number))
        while self.orders:
            self.work()


def obey(message: Body) -> list[Body]:
    """Return what an honest node answers."""
    match message:
        case Prepare(computation=number):
            return [Prepared(number)]
        case Release(computation=number):
            return [Released(number)]
        case Withdraw(computation=number):
            return [Returned(number, [])]
        case Run(computation=number, jobs=jobs):
            ends = [JobResult(job.seq, job.attempt, FINISHED, 0.0, 1.0, b"") for job in jobs]
            return [Done(number, ends)]
    return []


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_left_over_whatever_clients_do(
    seed: int, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unheard, "MEMORY_MAX", 2000)
    crowd = Crowd(seed, durable)
    for _ in range(STEPS):
        crowd.step()
    crowd.finish_all()
    state = crowd.scheduler.state
    assert not state.clusters and not state.exclusives and not state.unopened
    assert set(state.clients) == set(CLIENTS) and not state.batches
    assert all(not node.allocations and node.load == 0 for node in state.nodes.values())
    if durable:
        assert not crowd.store.clusters and not crowd.store.batches and not crowd.store.results
    crowd.wait(2 * RETAIN_S)
    assert state.clients_due == float("inf")
