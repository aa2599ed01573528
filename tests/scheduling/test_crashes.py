"""The broker is killed at any moment, again and again: each job ends once, and no work is lost.

What a peer has said and the broker hasn't acknowledged is said again, so it may come twice. What
the broker was about to say is lost. Nodes and clients behave as the real ones do.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispy.broker import unheard
from dispy.broker.core import Scheduler
from dispy.broker.effects import Effect, Load, LoadResults, Send
from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    Accepted,
    Body,
    CancelJobs,
    Code,
    ComputationSpec,
    Done,
    Holding,
    Inventory,
    JobOptions,
    JobResult,
    JobSpec,
    Kill,
    NodeSpec,
    OpenCluster,
    Prepare,
    Prepared,
    Release,
    Released,
    Results,
    ResultsHeard,
    Returned,
    Run,
    Submit,
    Withdraw,
)
from dispy.protocol.payload import pack_result

from .keptstore import JournalStore, KeptStore
from .stage import identity

BODY = pack_result(b"", b"", b"", "")
WAIT_S = 100.0  # longer than any lease of a node


class Node:
    """Runs jobs, and keeps what it has to say until the broker has acknowledged it."""

    def __init__(self, name: str, cpus: int) -> None:
        self.name, self.cpus = name, cpus
        self.generation = 0
        self.begin()

    def begin(self) -> None:
        """Start anew, with nothing."""
        self.generation += 1
        self.peer = f"{self.name}.{self.generation}"
        self.jobs: dict[tuple[int, int, int], bool] = {}  # whether they have begun
        self.computations: set[int] = set()
        self.outbox: list[Body] = []
        self.is_joined = False

    def hear(self, message: Body) -> None:
        """Do what the broker says."""
        match message:
            case Prepare(computation=number):
                self.computations.add(number)
                self.outbox.append(Prepared(number))
            case Release(computation=number):
                self.computations.discard(number)
                self.jobs = {job: begun for job, begun in self.jobs.items() if job[0] != number}
                self.outbox.append(Released(number))
            case Run(computation=number, jobs=specs):
                self.jobs.update({(number, spec.seq, spec.attempt): False for spec in specs})
            case Kill(computation=number, jobs=jobs):
                for job in [(number, *each) for each in jobs if (number, *each) in self.jobs]:
                    del self.jobs[job]
                    self.end(*job, CANCELLED)
            case Withdraw(computation=number, count=count):
                idle = [job for job, is_begun in self.jobs.items() if not is_begun][:count]
                self.jobs = {job: self.jobs[job] for job in self.jobs if job not in idle}
                self.outbox.append(Returned(number, [job[1:] for job in idle]))
            case Inventory(jobs=jobs):
                self.jobs = {job: self.jobs[job] for job in self.jobs if job in jobs}

    def go_on(self) -> list[tuple[int, int]]:
        """Begin jobs; return them."""
        begun: list[tuple[int, int]] = []
        for job, is_begun in list(self.jobs.items())[: self.cpus]:
            if not is_begun:
                self.jobs[job] = True
                begun.append(job[1:])
        return begun

    def end(self, number: int, seq: int, attempt: int, status: int) -> None:
        """Note that a job has ended."""
        self.outbox.append(Done(number, [JobResult(seq, attempt, status, 1.0, 2.0, BODY)]))

    def join(self) -> None:
        """Begin a new session."""
        self.is_joined = True
        kept = [message for message in self.outbox if isinstance(message, Done)]
        self.outbox = [*kept, Holding(sorted(self.computations), list(self.jobs))]


class Client:
    """Submits jobs, again as long as it doesn't know that they are on disk."""

    def __init__(self, opening: OpenCluster) -> None:
        self.opening = opening
        self.specs: dict[int, JobSpec] = {}
        self.accepted: set[int] = set()
        self.cancelled: set[int] = set()
        self.ends: dict[int, list[int]] = {}
        self.records: set[int] = set()
        self.outbox: list[Body] = []
        self.is_joined = False

    def hear(self, message: Body) -> None:
        """Note what the broker says."""
        match message:
            case Accepted(jobs=jobs):
                for first, last in jobs:
                    self.accepted |= set(range(first, last + 1))
            case Results(results=results, record=record):
                assert record
                if record not in self.records:
                    for result in results:
                        self.ends.setdefault(result.seq, []).append(result.status)
                self.records.add(record)
                self.outbox.append(ResultsHeard(1, [record]))

    def submit(self, seqs: list[int], options: JobOptions | None) -> None:
        """Submit new jobs."""
        for seq in seqs:
            self.specs[seq] = JobSpec(seq, 0, bytes(seq % 7), [], options)
        self.outbox.append(self._submit(seqs))

    def _submit(self, seqs: list[int]) -> Submit:
        specs = [self.specs[seq] for seq in seqs]
        return Submit(1, [JobSpec(each.seq, 0, each.payload, [], each.options) for each in specs])

    def join(self) -> None:
        """Begin a new session."""
        self.is_joined = True
        missing = [seq for seq in self.specs if seq not in self.accepted and seq not in self.ends]
        self.outbox = [self.opening]
        for start in range(0, len(missing), 7):
            self.outbox.append(self._submit(missing[start : start + 7]))
        asked = sorted(self.cancelled - self.ends.keys())
        if asked:
            self.outbox.append(CancelJobs(1, asked))


class World:
    """A broker with a journal, a client and three nodes; all that happens is by chance."""

    def __init__(self, chance: random.Random, store: KeptStore | JournalStore) -> None:
        self.chance = chance
        self.reentrant = chance.random() < 0.5
        self.settings = Settings(durable=True, client_lease_s=1e9, loaded_jobs=20, loaded_bytes=200)
        self.store = store
        spec = ComputationSpec("c", [Code("3.11", JobSpec(0, 0, b"f"))], pulse_interval=1.0)
        self.client = Client(OpenCluster(1, spec, [NodeSpec("*")], self.reentrant))
        self.nodes = [Node(f"n{number}", number) for number in (1, 2, 3)]
        self.begun: list[tuple[int, int]] = []
        self.now = 0.0
        self.lost = False  # whether a node has ever been lost
        self.restarts = 0
        self.start()

    def start(self) -> None:
        """Start the broker on what was kept."""
        self.scheduler = Scheduler(1 << 40, self.settings, 1e9)
        self.scheduler.restore(self.store.load(), self.now)
        self.scheduler.check()
        self.client.is_joined = False
        for node in self.nodes:
            node.is_joined = False
        self.flush([], "")
        self.flush([], "")

    @property
    def peers(self) -> list[tuple[str, Node | Client]]:
        return [("client", self.client), *((node.peer, node) for node in self.nodes)]

    def join(self, peer: str, who: Node | Client) -> None:
        """Have a peer begin a new session."""
        who.join()
        if isinstance(who, Node):
            told = identity("node", peer, who.cpus, f"host:{who.name}")
            self.scheduler.joined(peer, told, [], f"127.0.0.1:97{who.cpus:02}", self.now)
        else:
            self.scheduler.joined(peer, identity("client", peer), [], "", self.now)
        self.scheduler.check()

    # -- by chance -------------------------------------------------------------------------

    def step(self) -> None:
        """Let something happen, and the broker act on it; perhaps it is killed meanwhile."""
        chance = self.chance
        self.now += chance.random() * 0.3
        event = chance.random()
        node = chance.choice(self.nodes)
        if event < 0.2:
            self.submit()
        elif event < 0.25 and self.client.specs:
            seqs = chance.sample(sorted(self.client.specs), 1)
            self.client.cancelled |= set(seqs)
            if self.client.is_joined:
                self.client.outbox.append(CancelJobs(1, seqs))
        elif event < 0.27:
            self.trouble(node)
        elif event < 0.30 and self.client.is_joined:
            self.scheduler.away("client", "silent", False, self.now)
            self.client.is_joined = False
        elif event < 0.7:
            self.finish(node)
        for peer, who in self.peers:
            if not who.is_joined and chance.random() < 0.2:
                self.join(peer, who)
        self.exchange(chance.choice(["", "", "", "", "", "", "before", "after"]))

    def submit(self) -> None:
        first = len(self.client.specs) + 1
        count = self.chance.choice([1, 2, 10, 30])
        options = None
        if self.chance.random() < 0.3:
            priority = self.chance.randint(-1, 1)
            options = JobOptions(priority, retries=self.chance.randint(0, 2))
        elif self.chance.random() < 0.15 and self.scheduler.nodes:
            count = min(count, 4)
            nodes = sorted(node.id for node in self.scheduler.nodes.values())
            options = JobOptions(node=self.chance.choice(nodes))
        self.client.submit(list(range(first, first + count)), options)

    def trouble(self, node: Node) -> None:
        """A node is killed, or can't be reached for longer than its lease."""
        self.lost = True
        self.scheduler.away(node.peer, "silent", False, self.now)
        node.is_joined = False
        if self.chance.random() < 0.5:
            node.begin()
        elif self.chance.random() < 0.5:
            self.pass_lease()

    def pass_lease(self) -> None:
        self.lost = True
        self.now += WAIT_S
        self.scheduler.tick(self.now)
        self.scheduler.check()

    def finish(self, node: Node) -> None:
        """Have jobs end that have begun at a node."""
        for job in [job for job, is_begun in node.jobs.items() if is_begun]:
            if self.chance.random() < 0.7:
                del node.jobs[job]
                node.end(*job, FINISHED if self.chance.random() < 0.8 else TERMINATED)
        self.begun += node.go_on()

    def exchange(self, fate: str) -> None:
        """Have messages arrive, and let the broker act; it may be killed before it speaks."""
        arrived: list[tuple[Node | Client, int]] = []
        for peer, who in self.peers:
            if who.is_joined:
                count = self.chance.randint(0, len(who.outbox))
                for message in who.outbox[:count]:
                    self.scheduler.receive(peer, message, self.now)
                self.scheduler.check()
                arrived.append((who, count))
        self.flush(arrived, fate)

    def flush(self, arrived: list[tuple[Node | Client, int]], fate: str) -> None:
        effects = self.scheduler.flush(self.now)
        self.scheduler.check()
        if fate == "before":
            self.restart()
            return
        self.store.apply(effects)
        if fate == "after":
            self.restart()
            return
        for who, count in arrived:
            del who.outbox[:count]
        self.carry_out(effects)

    def restart(self) -> None:
        self.restarts += 1
        self.start()

    def carry_out(self, effects: list[Effect]) -> None:
        nodes = {node.peer: node for node in self.nodes}
        for effect in effects:
            if isinstance(effect, Load):
                self.scheduler.loaded(effect.batch, self.store.read_batch(effect.batch))
                self.scheduler.check()
            elif isinstance(effect, LoadResults):
                record, cluster = effect
                self.scheduler.results_loaded(cluster, record, self.store.read_results(record))
            elif isinstance(effect, Send) and effect.peer in nodes:
                if nodes[effect.peer].is_joined:
                    nodes[effect.peer].hear(effect.message)
            elif isinstance(effect, Send) and self.client.is_joined:
                self.client.hear(effect.message)

    # -- in the end ------------------------------------------------------------------------

    def settle(self) -> None:
        """Let all jobs end, without further faults."""
        for _ in range(2000):
            self.now += 0.1
            for peer, who in self.peers:
                if not who.is_joined:
                    self.join(peer, who)
            for node in self.nodes:
                self.finish(node)
            self.exchange("")
            if self.is_over():
                return
        raise AssertionError(f"{self.client.specs.keys() - self.client.ends.keys()} never end")

    def is_over(self) -> bool:
        said = any(who.outbox for _, who in self.peers) or self.scheduler.state.unread
        return not said and self.client.ends.keys() == self.client.specs.keys()

    def check(self) -> None:
        """Each job has ended once; attempts that weren't allowed to be repeated weren't."""
        for seq, statuses in self.client.ends.items():
            assert statuses == statuses[:1] or statuses == [ABANDONED, FINISHED], (seq, statuses)
            options = self.client.specs[seq].options
            is_pinned = options is not None and options.node > 0
            if statuses[0] == ABANDONED:
                assert self.lost
            if statuses[0] == CANCELLED:
                assert seq in self.client.cancelled or is_pinned
        if not self.reentrant:
            for seq, spec in self.client.specs.items():
                retries = spec.options.retries if spec.options else 0
                attempts = {attempt for each, attempt in self.begun if each == seq}
                assert len(attempts) <= 1 + retries, (seq, attempts)
        assert len(self.begun) == len(set(self.begun))
        state = self.scheduler.state
        [cluster] = state.clusters.values()
        assert not state.batches and not cluster.jobs and not self.store.counts()
        assert not cluster.unheard and not cluster.backlog.waiting and not cluster.loaded_bytes


def play(chance: random.Random, steps: int, store: KeptStore | JournalStore | None = None) -> World:
    """Let things happen by chance, and then all end well."""
    world = World(chance, store or KeptStore())
    for _ in range(steps):
        world.step()
    world.settle()
    world.check()
    return world


@pytest.mark.parametrize("seed", range(12))
def test_each_job_ends_once_however_often_the_broker_is_killed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unheard, "MEMORY_MAX", 2000)
    world = play(random.Random(seed), 150)
    assert world.restarts > 10 and len(world.client.ends) > 100


@pytest.mark.parametrize("seed", range(4))
def test_the_same_with_the_journal_itself(seed: int) -> None:
    store = JournalStore()
    world = play(random.Random(seed), 100, store)
    assert world.restarts > 10 and not store.journal.strays()
    store.journal.close()


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_short_histories(chance: random.Random, steps: int) -> None:
    play(chance, steps)
