"""The broker as a process of the simulation: the real daemon, which may die at any moment.

The daemon's own code runs; only what it is made of is different: a socket and a disk of the
simulation, and a clock that is virtual.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

from dispy.broker import crashpoints
from dispy.broker.core import Scheduler
from dispy.broker.daemon import BrokerDaemon
from dispy.broker.effects import Effect, Send
from dispy.broker.settings import Settings
from dispy.protocol.errors import ProtocolError
from dispy.protocol.events import Event
from dispy.protocol.exchange import Exchange
from dispy.protocol.logs import Seldom
from dispy.protocol.messages import Identity, JobSpec, Results, Run

from .clock import Clock
from .disk import Disk, Errands
from .network import Socket
from .processes import Process, urgency

LOOK_STEPS = 10  # of the broker, from one look at its disk to the next
EPOCH_S = 1.7e9  # the time of the day when the virtual clock is at 0
SENDING = "sending"  # a further point to be killed at, in the middle of all that is sent
POINTS = (*crashpoints.POINTS, SENDING)


class Killed(BaseException):
    """The broker is killed here and now."""


class Daemon(BrokerDaemon):
    """The real daemon, made of other parts, with somebody who watches it."""

    def __init__(
        self,
        process: BrokerProcess,
        scheduler: Scheduler,
        exchange: Exchange,
        disk: Disk | None,
    ) -> None:
        self.process = process
        self.scheduler = scheduler
        self.exchange = exchange
        self.journal = disk
        self.folder = None
        self.stopping = True  # a full disk is no reason to wait: time doesn't go on here
        self._offences = Seldom()
        self._reaches_out = True
        self._errands: Any = None
        if disk is not None:
            self._errands = Errands(disk.store, scheduler, exchange.send)
        self._discovery = None
        self._reads = []
        self._look_at = 0.0
        self._since = EPOCH_S

    def _on_event(self, event: Event, now: float) -> None:
        self.process.on_event(event, now)

    def do_event(self, event: Event, now: float) -> None:
        """Tell the scheduler."""
        super()._on_event(event, now)

    def _offended(self, event: Event, error: ProtocolError) -> None:
        self.process.broken_protocol.append(str(error))
        super()._offended(event, error)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.process.check_message(effect)
        super()._carry_out(effect)


class BrokerProcess(Process):
    """One life of the broker; its ``disk`` is there for all of them."""

    def __init__(
        self,
        clock: Clock,
        socket: Socket,
        identity: Identity,
        settings: Settings | None = None,
        disk: Disk | None = None,
        life: int = 1,
    ) -> None:
        super().__init__(clock, socket, identity)
        self.scheduler = Scheduler(1000 * life, settings or Settings(), EPOCH_S)
        self.daemon = Daemon(self, self.scheduler, self.exchange, disk)
        self.disk = disk
        self.drained: set[str] = set()  # nodes, by name, of which people have been told so
        self.on_killed: Callable[[], None] = lambda: None
        self.is_in_turn = False  # not everything is done that has to be
        self.dies_at = ""  # which point of the program kills it
        self._dies_after = 0  # so many passings
        self._life = life

    def restore(self) -> None:
        """Go on where the last life has ended; with a disk, to be called first."""
        if self.disk is not None:
            with self._mortal():
                now = self.clock.now
                self.is_in_turn = True
                self.scheduler.restore(self.disk.load(), now)
                self.daemon._round(now)
                self.is_in_turn = False

    def die_at(self, point: str, passings: int) -> None:
        """Be killed when the program gets to this point for so many times."""
        self.dies_at, self._dies_after = point, passings

    def _run(self) -> None:
        with self._mortal():
            super()._run()

    @contextmanager
    def _mortal(self) -> Iterator[None]:
        """Let the process die where it has to."""
        if not self.dies_at:
            yield
            return
        self.socket.on_send = self._on_send
        fake: Any = crashpoints
        fake._point, fake._left = self.dies_at, self._dies_after
        fake.os = SimpleNamespace(kill=die, getpid=os.getpid)
        try:
            yield
        except Killed:
            self.on_killed()
        finally:
            if self.dies_at != SENDING:
                self._dies_after = fake._left
            fake._point, fake._left, fake.os = "", 1, os

    def _on_send(self) -> None:
        if self.dies_at == SENDING:
            self._dies_after -= 1
            if not self._dies_after:
                raise Killed

    def turn(self, now: float) -> None:
        """Take in what has arrived, keep what comes of it, speak."""
        self.is_in_turn = True
        self.daemon.turn(self.socket.take(), now)
        self.is_in_turn = False

    def on_event(self, event: Event, now: float) -> None:
        """Tell the daemon."""
        self.daemon.do_event(event, now)

    def round(self, now: float) -> None:
        """Be asked for nothing: a turn of the daemon is all."""
        raise AssertionError("the daemon has turns")

    def deadline(self) -> float:
        """When the scheduler wants to be ticked."""
        return self.scheduler.deadline()

    def check_message(self, effect: Send) -> None:
        """Check what is about to be sent."""
        if isinstance(effect.message, Run):
            self._check_run(effect.peer, effect.message)
        elif isinstance(effect.message, Results) and self.disk is not None:
            self.disk.check_told(effect.message)

    def _check_run(self, peer: str, run: Run) -> None:
        """Jobs go to the only node that may run them, and none before a more urgent one."""
        node = self.scheduler.nodes[peer]
        assert node.identity.name not in self.drained, "a drained node gets jobs"
        specs = [spec for spec in run.jobs if spec.options is not None]
        for spec in specs:
            if spec.options is not None and spec.options.node:
                assert node.id == spec.options.node, "a pinned job moves"
        cluster = self.scheduler.clusters.get(run.computation)
        first = None if cluster is None else next(iter(cluster.line), None)
        if first is not None:
            free = [urgency(spec) for spec in run.jobs if not is_pinned(spec)]
            least = min(free, default=urgency(first.spec))
            assert urgency(first.spec) <= least, "a less urgent job goes first"

    def check(self) -> None:
        """Check the scheduler, and from time to time what it has on its disk."""
        self.scheduler.check()
        if self.disk is not None and self.steps % LOOK_STEPS == 0:
            self.disk.check_agrees(self.scheduler.state)

    def _name_session(self) -> str:
        self._sessions += 1
        return f"{self.identity.instance}/{self._life}/{self._sessions}"


def die(pid: int, signal: int) -> NoReturn:
    """Be what kill -9 is in the simulation."""
    raise Killed


def is_pinned(spec: JobSpec) -> bool:
    """Whether only one node may run a job."""
    return spec.options is not None and spec.options.node > 0
