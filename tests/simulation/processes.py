"""Node and client as processes of the simulation: the real cores behind real exchanges.

Each drives its core like the daemon or session does, in the same order; that is all that is
written a second time here. After every step all invariants are checked.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, TypeAlias

from dispy import core as client_core
from dispy import effects as client_effects
from dispy.job import DispyJob
from dispy.line import priority_of
from dispy.node import effects as node_effects
from dispy.node import processevents
from dispy.node.core import Agent
from dispy.protocol.errors import ProtocolError
from dispy.protocol.events import Away, Back, DialFailed, Event, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.messages import (
    CANCELLED,
    RECORDS_AHEAD,
    Allocate,
    BlobRange,
    Code,
    Identity,
    JobRecord,
    JobResult,
    JobSpec,
    NodeInfo,
    NodeRequest,
    OpenCluster,
    Report,
    SendFile,
    Submit,
    Vitals,
)

from .clock import Clock
from .files import piece
from .jobs import Jobs
from .network import Socket

VITALS = Vitals(90.0, 1 << 30, 1 << 40, 100.0)

Order: TypeAlias = Callable[[client_core.Core], None]


class Process(ABC):
    """Something with a socket that wakes up when there is something to do."""

    def __init__(self, clock: Clock, socket: Socket, identity: Identity) -> None:
        self.clock = clock
        self.socket = socket
        self.identity = identity
        self.paused_until = 0.0
        self.steps = 0
        self.broken_protocol: list[str] = []  # what was said of peers; nobody here breaks it
        self.exchange = Exchange(identity, socket, self._name_session, self.admit)
        self._sessions = 0
        self._wakes_at = float("inf")
        socket.on_arrival = self.wake

    def admit(self, identity: Identity) -> str:
        """Refuse nobody."""
        return ""

    def wake(self) -> None:
        """Step as soon as possible."""
        self._wake_at(self.clock.now)

    def pause(self, until: float) -> None:
        """Do nothing for a while, like a stopped process."""
        self.paused_until = max(self.paused_until, until)
        self._wake_at(self.paused_until)

    def kill(self, is_machine_lost: bool = False) -> None:
        """End at once, as by kill -9 or by a loss of power."""
        self.socket.die(is_machine_lost)

    def _wake_at(self, when: float) -> None:
        when = max(when, self.paused_until)
        if when < self._wakes_at:
            self._wakes_at = when
            self.clock.at(when, self._run)

    def _run(self) -> None:
        now = self.clock.now
        if now < self._wakes_at or not self.socket.alive:
            return  # an earlier wish to wake up, fulfilled since
        self._wakes_at = float("inf")
        if now < self.paused_until:
            self._wake_at(self.paused_until)
            return
        self.steps += 1
        self.turn(now)
        self.check()
        self.exchange.check()
        self._wake_at(min(self.exchange.deadline(), self.deadline()))

    def turn(self, now: float) -> None:
        """Take in what has arrived, and do what comes of it."""
        for arrival in self.socket.take():
            self.handle(self.exchange.receive(arrival, now), now)
        self.round(now)

    def handle(self, events: list[Event], now: float) -> None:
        """Tell the core what has happened."""
        for event in events:
            try:
                self.on_event(event, now)
            except ProtocolError as error:
                self.broken_protocol.append(str(error))
                assert isinstance(event, (Received, Joined))
                self.exchange.goodbye(event.peer, f"protocol error: {error}")
                self.on_event(Left(event.peer, str(error)), now)

    @abstractmethod
    def on_event(self, event: Event, now: float) -> None:
        """Do as the real process does."""

    @abstractmethod
    def round(self, now: float) -> None:
        """Do as the real process does."""

    @abstractmethod
    def deadline(self) -> float:
        """Do as the real process does."""

    @abstractmethod
    def check(self) -> None:
        """Do as the real process does."""

    def _name_session(self) -> str:
        self._sessions += 1
        return f"{self.identity.instance}/{self._sessions}"


class NodeProcess(Process):
    """Does what `node.daemon.NodeDaemon` does."""

    jobs: Jobs

    def __init__(self, clock: Clock, socket: Socket, identity: Identity) -> None:
        super().__init__(clock, socket, identity)
        self.agent = Agent(identity.cpus)

    def admit(self, identity: Identity) -> str:
        """Ask the agent."""
        return self.agent.admit(identity, self.clock.now)

    def kill(self, is_machine_lost: bool = False) -> None:
        """End, and all job processes too."""
        super().kill(is_machine_lost)
        self.jobs.die()

    def stop(self) -> None:
        """End orderly."""
        if self.clock.now < self.paused_until:
            self.kill()
            return
        for worker in self.agent.ahead():
            self.agent.revoked(worker, self.jobs.revoke(worker), self.clock.now)
        self.agent.stop()
        self.round(self.clock.now)
        self.kill()

    def on_event(self, event: Event, now: float) -> None:
        """As the daemon's."""
        agent = self.agent
        if isinstance(event, Received):
            agent.receive(event.peer, event.message, now)
        elif isinstance(event, Joined):
            agent.joined(event.peer, event.identity, event.undelivered, now, VITALS)
        elif isinstance(event, Back):
            agent.back(event.peer)
        elif isinstance(event, Away):
            agent.away(event.peer, now)
        elif isinstance(event, Left):
            agent.left(event.peer)

    def round(self, now: float) -> None:
        """As the daemon's."""
        self.handle(self.exchange.tick(now), now)
        self._report_processes(now)
        self.agent.tick(now)
        is_settled = False
        while not is_settled:
            effects = self.agent.flush(now)
            for effect in effects:
                self._carry_out(effect, now)
            has_news = self._report_processes(now)
            is_settled = not has_news and self.agent.is_settled(effects)
        self.exchange.flush(now)

    def _report_processes(self, now: float) -> bool:
        events = self.jobs.take_events()
        for event in events:
            report(self.agent, event, now)
        return bool(events)

    def _carry_out(self, effect: node_effects.Effect, now: float) -> None:
        if isinstance(effect, node_effects.Send):
            self.exchange.send(effect.peer, effect.message)
        elif isinstance(effect, node_effects.Goodbye):
            link = self.exchange.links.get(effect.peer)
            if effect.keep and link is not None:
                self.agent.kept_for(effect.peer, link.undelivered(), now)
            self.exchange.goodbye(effect.peer, effect.reason)
        elif isinstance(effect, node_effects.Measure):
            self.agent.measured(VITALS)
        else:
            assert not isinstance(effect, node_effects.Leave), "nobody has asked for that"
            carry_out(self.agent, self.jobs, effect, now)

    def deadline(self) -> float:
        """When the agent wants to be ticked."""
        return self.agent.deadline()

    def check(self) -> None:
        """Check the agent."""
        self.agent.check()


def report(agent: Agent, event: processevents.Event, now: float) -> None:
    """Tell an agent what has happened to processes, as the daemon does."""
    if isinstance(event, processevents.Outcomes):
        agent.outcomes(event.worker, event.results, now)
    elif isinstance(event, processevents.Recorded):
        agent.recorded(event.worker, event.records)
    elif isinstance(event, processevents.WorkerExited):
        output = (event.stdout, event.stderr)
        agent.worker_exited(event.worker, event.started, event.reason, output, now)
    elif isinstance(event, processevents.TemplateReady):
        agent.template_ready(event.computation)
    elif isinstance(event, processevents.TemplateFailed):
        agent.template_failed(event.computation, event.reason)
    elif isinstance(event, processevents.TemplateGone):
        agent.template_gone(event.computation)
    elif isinstance(event, processevents.FilePlaced):
        agent.file_placed(event.computation, event.request, event.error)


def carry_out(agent: Agent, jobs: Jobs, effect: node_effects.Effect, now: float) -> None:
    """Do what an agent wants of processes and files, as the daemon does."""
    if isinstance(effect, node_effects.Revoke):
        agent.revoked(effect.worker, jobs.revoke(effect.worker), now)
    elif isinstance(effect, node_effects.Give):
        jobs.give(effect.worker, effect.jobs)
    elif isinstance(effect, node_effects.Spawn):
        jobs.spawn(effect.computation, effect.worker, effect.max_tasks)
    elif isinstance(effect, node_effects.Acknowledge):
        jobs.acknowledge(*effect)
    elif isinstance(effect, node_effects.FollowOutput):
        jobs.follow(effect.worker, effect.seq, effect.attempt)
    elif isinstance(effect, node_effects.Retire):
        jobs.retire(effect.worker)
    elif isinstance(effect, node_effects.Interrupt):
        jobs.interrupt(effect.worker)
    elif isinstance(effect, node_effects.Terminate):
        jobs.terminate(effect.worker)
    elif isinstance(effect, node_effects.Destroy):
        jobs.kill(effect.worker)
    else:
        _set_up(agent, jobs, effect)


def _set_up(agent: Agent, jobs: Jobs, effect: node_effects.Effect) -> None:
    if isinstance(effect, node_effects.StartTemplate):
        jobs.prepare(effect.prepare)
    elif isinstance(effect, node_effects.DefineLayers):
        jobs.define(effect.computation, effect.layers)
    elif isinstance(effect, node_effects.Put):
        jobs.put(effect.computation, effect.request, effect.file)
    elif isinstance(effect, node_effects.StopTemplate):
        jobs.release(effect.computation, effect.keep)
    elif isinstance(effect, node_effects.DropBlob):
        jobs.store.drop(effect.digest)
    elif isinstance(effect, node_effects.KeepPiece):
        jobs.store.write(effect.digest, effect.offset, effect.buffers)
        if effect.last and jobs.store.commit(effect.digest):
            agent.blob_kept(effect.digest)
        elif effect.last:
            agent.blob_spoiled(effect.digest)


def may_be_late(effect: client_effects.Effect) -> bool:
    """Whether this may come after the cluster was closed: it is the end of what comes too late."""
    if isinstance(effect, client_effects.Ended):
        return all(end.status == CANCELLED and not end.attempt for _, end in effect.jobs)
    return isinstance(effect, client_effects.Answered)


def urgency(spec: JobSpec) -> int:
    """Return the priority of a job."""
    return 0 if spec.options is None else spec.options.priority


@dataclass
class Record:
    """What the client has been told of one cluster, and has done about it."""

    opening: OpenCluster
    submitted: int = 0
    ends: dict[int, list[JobResult]] = field(default_factory=dict)  # by seq
    nodes: dict[int, NodeInfo] = field(default_factory=dict)  # ready now, by id
    met: dict[int, NodeInfo] = field(default_factory=dict)  # ever ready
    alive: dict[int, float] = field(default_factory=dict)  # when they told what they can spare
    told: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # by seq, attempt
    asked: dict[int, NodeRequest | SendFile | int] = field(default_factory=dict)  # by request
    answers: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    offers: int = 0
    served: Counter[tuple[int, bytes, int]] = field(default_factory=Counter)  # pieces of files
    is_closed: bool = False


class ClientProcess(Process):
    """Does what `session.Session` does, and what users' callbacks do."""

    def __init__(
        self, clock: Clock, socket: Socket, identity: Identity, chance: random.Random
    ) -> None:
        super().__init__(clock, socket, identity)
        self.core = client_core.Core()
        self.records: dict[int, Record] = {}
        self.broker = ""
        self.sessions = 0  # with the broker, so far
        self.unreadable: set[tuple[int, bytes]] = set()  # files that have vanished, by cluster
        self.cpus_of_offer: Callable[[int, NodeInfo], int] = lambda number, node: node.cpus
        self.on_answer: Callable[[int, int, int], None] = lambda number, request, code: None
        self.on_node: Callable[[int, int], None] = lambda number, node: None
        self.on_report: Callable[[Report], None] = lambda report: None
        self._chance = chance
        self._orders: list[Order] = []
        self._requests = 0

    # -- the user ----------------------------------------------------------------------------

    def open(self, opening: OpenCluster) -> None:
        """Open a cluster."""
        self.records[opening.cluster] = Record(opening)
        self._order(lambda core: core.open(opening, self.clock.now))

    def submit(self, jobs: list[DispyJob]) -> None:
        """Submit jobs of one cluster."""
        number = jobs[0]._cluster
        self.records[number].submitted += len(jobs)
        for job in jobs:
            self._order(lambda core, job=job: core.submit(number, job))  # type: ignore[misc]

    def cancel(self, number: int, seq: int) -> None:
        """Cancel a job."""
        self._order(lambda core: core.cancel(number, seq))

    def define(self, number: int, layers: list[Code]) -> None:
        """Make code known."""
        self._order(lambda core: core.define(number, layers))

    def follow(self, number: int, seq: int) -> None:
        """Follow a job's output."""
        self._order(lambda core: core.follow(number, seq))

    def ask(self, number: int, make: Callable[[int], NodeRequest | SendFile]) -> int:
        """Ask the broker for something; return the number of the request."""
        self._requests += 1
        message = make(self._requests)
        self.records[number].asked[self._requests] = message
        self._order(lambda core: core.request(message))
        return self._requests

    def explain(self, number: int, seq: int) -> None:
        """Ask why a job hasn't ended."""
        self._requests += 1
        request = self._requests
        self.records[number].asked[request] = seq
        self._order(lambda core: core.explain(number, request, seq))

    def close(self, number: int) -> None:
        """Close a cluster."""
        self._order(lambda core: core.close(number))

    def _order(self, order: Order) -> None:
        self._orders.append(order)
        self.wake()

    def _order_later(self, order: Order) -> None:
        """Have something done by another thread, which takes its time."""
        self.clock.after(self._chance.choice([0.0, 0.001, 0.02]), partial(self._order, order))

    # -- the session -------------------------------------------------------------------------

    def on_event(self, event: Event, now: float) -> None:
        """As the session's."""
        if isinstance(event, Received) and isinstance(event.message, Report):
            self.on_report(event.message)
        elif isinstance(event, Received):
            self.core.receive(event.message, now)
        elif isinstance(event, Joined):
            self.broker = event.peer
            self.sessions += 1
            self.core.join(now)
        elif isinstance(event, Left):
            self.core.leave()
        else:
            assert isinstance(event, (Away, Back, DialFailed))

    def round(self, now: float) -> None:
        """As the session's."""
        self.handle(self.exchange.tick(now), now)
        self.core.tick(now)
        orders, self._orders = self._orders, []
        for order in orders:
            order(self.core)
        effects = self.core.take()
        submits = [
            effect.message
            for effect in effects
            if isinstance(effect, client_effects.Send) and isinstance(effect.message, Submit)
        ]
        if submits:
            self._check_submits(submits)
        for effect in effects:
            self._carry_out(effect)
        self.exchange.flush(now)

    def _carry_out(self, effect: client_effects.Effect) -> None:
        if isinstance(effect, client_effects.Send):
            self.exchange.send(self.broker, effect.message)
        elif not isinstance(effect, client_effects.Warned):
            record = self.records[effect.cluster]
            late = record.is_closed and not may_be_late(effect)
            assert not late, "something happens after the cluster was closed"
            handler = self.EFFECTS.get(type(effect))
            if handler is not None:
                handler(self, record, effect)

    def _on_ended(self, record: Record, effect: client_effects.Ended) -> None:
        for job, result in effect.jobs:
            assert job._seq == result.seq
            record.ends.setdefault(result.seq, []).append(result)

    def _on_node_up(self, record: Record, effect: client_effects.NodeUp) -> None:
        record.nodes[effect.node.id] = record.met[effect.node.id] = effect.node
        self.on_node(effect.cluster, effect.node.id)

    def _on_node_down(self, record: Record, effect: client_effects.NodeDown) -> None:
        record.nodes.pop(effect.node, None)

    def _on_node_alive(self, record: Record, effect: client_effects.NodeAlive) -> None:
        assert effect.vitals == VITALS
        record.alive[effect.node] = self.clock.now

    def _on_told(self, record: Record, effect: client_effects.Told) -> None:
        for job, said in effect.records:
            assert job._seq == said.seq
            self._note_record(effect.cluster, record, said)

    def _note_record(self, number: int, record: Record, said: JobRecord) -> None:
        key = (said.seq, said.attempt)
        told = record.told.setdefault(key, [])
        told.append(said.number)
        cluster = self.core.clusters.get(number)  # it may have been lost since
        report_of = None if cluster is None else cluster.reports.get(said.seq)
        if report_of is not None and report_of.attempt == said.attempt:
            ahead = said.number - report_of.heard
            most = RECORDS_AHEAD * self.sessions  # none waits for what went with a broker
            assert ahead <= most, f"job {key} says {ahead} things without being heard"
        hear = partial(client_core.Core.hear, number=number, seq=said.seq, attempt=said.attempt)
        self._order_later(lambda core: hear(core, count=said.number))

    def _on_offered(self, record: Record, effect: client_effects.Offered) -> None:
        record.offers += 1
        cpus = self.cpus_of_offer(effect.cluster, effect.node)
        message = Allocate(effect.cluster, effect.node.id, cpus)
        self._order_later(lambda core: core.allocate(message, effect.node.address))

    def _on_wanted(self, record: Record, effect: client_effects.Wanted) -> None:
        for wanted in effect.ranges:
            record.served[effect.node, wanted.digest, wanted.offset] += 1
        self._order_later(lambda core: self._send_pieces(core, effect))

    def _send_pieces(self, core: client_core.Core, effect: client_effects.Wanted) -> None:
        pieces = [piece(each, self._error_of(effect.cluster, each)) for each in effect.ranges]
        core.send_pieces(effect.cluster, effect.node, pieces)

    def _error_of(self, number: int, wanted: BlobRange) -> str:
        return "it has vanished" if (number, wanted.digest) in self.unreadable else ""

    def _on_answered(self, record: Record, effect: client_effects.Answered) -> None:
        record.answers.setdefault(effect.request, []).append((effect.code, effect.text))
        self.on_answer(effect.cluster, effect.request, effect.code)

    def _on_closed(self, record: Record, effect: client_effects.Closed) -> None:
        record.is_closed = True

    EFFECTS: ClassVar[dict[type, Callable[..., None]]] = {
        client_effects.Ended: _on_ended,
        client_effects.NodeUp: _on_node_up,
        client_effects.NodeDown: _on_node_down,
        client_effects.NodeAlive: _on_node_alive,
        client_effects.Told: _on_told,
        client_effects.Offered: _on_offered,
        client_effects.Wanted: _on_wanted,
        client_effects.Answered: _on_answered,
        client_effects.Closed: _on_closed,
    }

    def _check_submits(self, submits: list[Submit]) -> None:
        """No job is sent while a more urgent one waits here."""
        for submit in submits:
            least = min(map(urgency, submit.jobs))
            cluster = self.core.clusters.get(submit.cluster)
            others = cluster.waiting._others if cluster is not None else ()
            for _, seq, job in others:
                if cluster is not None and seq in cluster.unfinished:
                    assert priority_of(job) <= least, "a less urgent job is sent first"

    def deadline(self) -> float:
        """When the core wants to be ticked."""
        return self.core.deadline()

    def check(self) -> None:
        """Check the core."""
        self.core.check()
