"""Broker, node and client as processes of the simulation: the real cores behind real exchanges.

Each drives its core like the daemon or session does, in the same order; that is all that is
written a second time here. After every step all invariants are checked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from dispy import core as client_core
from dispy.broker import effects as broker_effects
from dispy.broker.core import Scheduler
from dispy.job import DispyJob
from dispy.node import effects as node_effects
from dispy.node import launcher
from dispy.node.core import Agent
from dispy.protocol import exchange as exchanges
from dispy.protocol.errors import ProtocolError
from dispy.protocol.exchange import Away, Back, DialFailed, Exchange, Joined, Left, Received
from dispy.protocol.messages import Identity, JobResult, OpenCluster

from .clock import Clock
from .jobs import Jobs
from .network import Socket

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
        for arrival in self.socket.take():
            self.handle(self.exchange.receive(arrival, now), now)
        self.round(now)
        self.check()
        for link in self.exchange.links.values():
            link.check()
        self._wake_at(min(self.exchange.deadline(), self.deadline()))

    def handle(self, events: list[exchanges.Event], now: float) -> None:
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
    def on_event(self, event: exchanges.Event, now: float) -> None:
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


class BrokerProcess(Process):
    """Does what `broker.daemon.BrokerDaemon` does."""

    def __init__(self, clock: Clock, socket: Socket, identity: Identity) -> None:
        super().__init__(clock, socket, identity)
        self.scheduler = Scheduler(first_id=1000)

    def on_event(self, event: exchanges.Event, now: float) -> None:
        """As the daemon's."""
        scheduler = self.scheduler
        if isinstance(event, Received):
            scheduler.receive(event.peer, event.message, now)
        elif isinstance(event, Joined):
            scheduler.joined(event.peer, event.identity, event.undelivered, event.address, now)
        elif isinstance(event, Back):
            scheduler.back(event.peer)
        elif isinstance(event, Away):
            scheduler.away(event.peer, event.reason, event.gone, now)
            if event.gone:
                self.exchange.forget(event.peer)
        elif isinstance(event, Left):
            scheduler.left(event.peer, event.reason)
        else:
            scheduler.unreachable(event.address, event.reason)

    def round(self, now: float) -> None:
        """As the daemon's."""
        self.handle(self.exchange.tick(now), now)
        self.scheduler.tick(now)
        for effect in self.scheduler.flush(now):
            if isinstance(effect, broker_effects.Send):
                self.exchange.send(effect.peer, effect.message)
            elif isinstance(effect, broker_effects.Dial):
                self.exchange.dial(effect.address)
            elif isinstance(effect, broker_effects.Forget):
                self.exchange.forget(effect.peer)
            elif isinstance(effect, broker_effects.Goodbye):
                self.exchange.goodbye(effect.peer, effect.reason)
            else:
                self.exchange.undial(effect.address)
        self.exchange.flush(now)

    def deadline(self) -> float:
        """When the scheduler wants to be ticked."""
        return self.scheduler.deadline()

    def check(self) -> None:
        """Check the scheduler."""
        self.scheduler.check()


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
        self.agent.stop()
        self.round(self.clock.now)
        self.kill()

    def on_event(self, event: exchanges.Event, now: float) -> None:
        """As the daemon's."""
        agent = self.agent
        if isinstance(event, Received):
            agent.receive(event.peer, event.message, now)
        elif isinstance(event, Joined):
            agent.joined(event.peer, event.identity, event.undelivered, now)
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
        while effects := self.agent.flush(now):
            for effect in effects:
                self._carry_out(effect, now)
            self._report_processes(now)
        self.exchange.flush(now)

    def _report_processes(self, now: float) -> None:
        agent = self.agent
        for event in self.jobs.take_events():
            if isinstance(event, launcher.Outcomes):
                agent.outcomes(event.worker, event.results, now)
            elif isinstance(event, launcher.WorkerExited):
                output = (event.stdout, event.stderr)
                agent.worker_exited(event.worker, event.started, event.reason, output, now)
            elif isinstance(event, launcher.TemplateReady):
                agent.template_ready(event.computation)
            elif isinstance(event, launcher.TemplateFailed):
                agent.template_failed(event.computation, event.reason)
            elif isinstance(event, launcher.TemplateGone):
                agent.template_gone(event.computation)

    def _carry_out(self, effect: node_effects.Effect, now: float) -> None:
        jobs = self.jobs
        if isinstance(effect, node_effects.Send):
            self.exchange.send(effect.peer, effect.message)
        elif isinstance(effect, node_effects.Goodbye):
            self.exchange.goodbye(effect.peer, effect.reason)
        elif isinstance(effect, node_effects.Revoke):
            self.agent.revoked(effect.worker, jobs.revoke(effect.worker), now)
        elif isinstance(effect, node_effects.Give):
            jobs.give(effect.worker, effect.jobs)
        elif isinstance(effect, node_effects.Spawn):
            jobs.spawn(effect.computation, effect.worker, effect.max_tasks)
        elif isinstance(effect, node_effects.StartTemplate):
            jobs.prepare(effect.computation, effect.prepare.name, effect.prepare.code)
        elif isinstance(effect, node_effects.StopTemplate):
            jobs.release(effect.computation)
        elif isinstance(effect, node_effects.Interrupt):
            jobs.interrupt(effect.worker)
        elif isinstance(effect, node_effects.Terminate):
            jobs.terminate(effect.worker)
        else:
            jobs.kill(effect.worker)

    def deadline(self) -> float:
        """When the agent wants to be ticked."""
        return self.agent.deadline()

    def check(self) -> None:
        """Check the agent."""
        self.agent.check()


@dataclass
class Record:
    """What the client has been told of one cluster."""

    opening: OpenCluster
    submitted: int = 0
    ends: dict[int, list[JobResult]] = field(default_factory=dict)  # by seq
    nodes: set[int] = field(default_factory=set)
    is_closed: bool = False


class ClientProcess(Process):
    """Does what `session.Session` does."""

    def __init__(self, clock: Clock, socket: Socket, identity: Identity) -> None:
        super().__init__(clock, socket, identity)
        self.core = client_core.Core()
        self.records: dict[int, Record] = {}
        self.broker = ""
        self._orders: list[Order] = []

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

    def close(self, number: int) -> None:
        """Close a cluster."""
        self._order(lambda core: core.close(number))

    def _order(self, order: Order) -> None:
        self._orders.append(order)
        self.wake()

    # -- the session -------------------------------------------------------------------------

    def on_event(self, event: exchanges.Event, now: float) -> None:
        """As the session's."""
        if isinstance(event, Received):
            self.core.receive(event.message, now)
        elif isinstance(event, Joined):
            self.broker = event.peer
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
        for effect in self.core.take():
            self._carry_out(effect)
        self.exchange.flush(now)

    def _carry_out(self, effect: client_core.Effect) -> None:
        if isinstance(effect, client_core.Send):
            self.exchange.send(self.broker, effect.message)
        elif isinstance(effect, client_core.Ended):
            record = self.records[effect.cluster]
            assert not record.is_closed, "a job ended after its cluster was closed"
            for job, result in effect.jobs:
                assert job._seq == result.seq
                record.ends.setdefault(result.seq, []).append(result)
        elif isinstance(effect, client_core.NodeUp):
            self.records[effect.cluster].nodes.add(effect.node.id)
        elif isinstance(effect, client_core.NodeDown):
            self.records[effect.cluster].nodes.discard(effect.node)
        elif isinstance(effect, client_core.Closed):
            self.records[effect.cluster].is_closed = True

    def deadline(self) -> float:
        """When the core wants to be ticked."""
        return self.core.deadline()

    def check(self) -> None:
        """Check the core."""
        self.core.check()
