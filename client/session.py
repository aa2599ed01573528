"""The thread that talks to a broker for all clusters of the process.

It alone touches the bus, the exchange and the core. Users' threads hand orders over in a
queue, and wake it only when it sleeps, so that submitting a job costs no system call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple, Protocol, TypeAlias

from dispy.protocol.errors import ProtocolError
from dispy.protocol.exchange import (
    Arrival,
    Away,
    Back,
    DialFailed,
    Event,
    Exchange,
    Joined,
    Left,
    Received,
)
from dispy.protocol.messages import OpenCluster

from .core import Begun, Closed, Core, Effect, Ended, NodeDown, NodeUp, Send, Warned
from .job import DispyJob
from .ledger import Ledger
from .log import logger

ORDERS_MAX = 5_000  # taken at a time, so that the network gets its turn
PAUSE_MAX_S = 1.0
STOP_S = 2.0  # how long the thread may take to end


class Open(NamedTuple):
    """Order: begin with a cluster."""

    opening: OpenCluster
    ledger: Ledger


class Cancel(NamedTuple):
    """Order: end a job."""

    cluster: int
    seq: int


class Close(NamedTuple):
    """Order: end a cluster and all of its jobs."""

    cluster: int


class Forget(NamedTuple):
    """Order of the session to itself: no job of this cluster can be in the queue any more."""

    cluster: int


Order: TypeAlias = DispyJob | Open | Cancel | Close | Forget


class Waiter(Protocol):
    """What a session needs of a bus."""

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for something to arrive."""

    def wake(self) -> None:
        """Make `poll` return, from any thread."""

    def close(self) -> None:
        """Close all sockets."""


class Session:
    """One broker, and the clusters of this process there."""

    def __init__(self, address: str, bus: Waiter, exchange: Exchange) -> None:
        self.address = address
        self._bus = bus
        self._exchange = exchange
        self._core = Core()
        self._ledgers: dict[int, Ledger] = {}
        self.orders: deque[Order] = deque()
        self._sleeping = False
        self._stopping = False
        self._broker = ""  # the instance id of the broker, once joined
        self._refusal = ""  # the last reason for not getting to the broker
        self._thread = threading.Thread(target=self._run, name="dispy-session", daemon=True)

    # -- for the user's threads ----------------------------------------------------------

    def start(self) -> None:
        """Begin to connect."""
        self._exchange.dial(self.address)
        self._thread.start()

    def hand_over(self, order: Order) -> None:
        """Have something done soon."""
        self.orders.append(order)
        self.wake()

    def wake(self) -> None:
        """Have the session look at its orders; to be called after one was appended."""
        if self._sleeping:  # it looks at the orders after it has said so
            self._sleeping = False
            self._bus.wake()

    def alive(self) -> bool:
        """Whether orders are still carried out."""
        return self._thread.is_alive() and not self._stopping

    def is_used(self) -> bool:
        """Whether there is a cluster that isn't closed."""
        return not all(ledger.closed for ledger in list(self._ledgers.values()))

    def stop(self, timeout_s: float) -> None:
        """Cancel what is left, close all clusters if that takes no longer, end the thread."""
        until = time.monotonic() + timeout_s
        ledgers = list(self._ledgers.items())
        for number, ledger in ledgers:
            ledger.listener.silent = True
            ledger.stop_accepting(even_if_pending=True)
            self.hand_over(Close(number))
        for _, ledger in ledgers:
            ledger.wait_closed(max(0.0, until - time.monotonic()))
        self._stopping = True
        self._bus.wake()
        self._thread.join(STOP_S)

    def orphan(self) -> None:
        """In a forked child, where the thread doesn't exist: nothing can be submitted."""
        opening = [order.ledger for order in self.orders if type(order) is Open]
        for ledger in [*self._ledgers.values(), *opening]:
            ledger.orphan()

    # -- the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._step()
            reason = "the client ended its session with the broker"
        except Exception as error:
            logger.exception("the thread that talks to the broker failed: a bug in dispy")
            reason = f"dispy itself failed: {type(error).__name__}: {error}"
        self._end(reason)

    def _end(self, reason: str) -> None:
        """Leave nobody waiting: end every job, close every cluster, then the sockets."""
        self._stopping = True
        self._exchange.goodbye(self._broker, reason)
        while self.orders or self._core.clusters:
            self._take_orders()
            self._core.give_up(reason)
            self._carry_out(self._core.take())
        self._bus.close()

    def _step(self) -> None:
        """Do all that is to be done now, then wait for more."""
        self._take_orders()
        self._carry_out(self._core.take())
        now = time.monotonic()
        self._exchange.flush(now)
        self._sleeping = True
        pause = 0.0 if self.orders or self._stopping else self._pause(now)
        arrivals = self._bus.poll(pause)
        self._sleeping = False
        now = time.monotonic()
        for arrival in arrivals:
            self._handle(self._exchange.receive(arrival, now), now)
        if now >= self._exchange.deadline():
            self._handle(self._exchange.tick(now), now)
        self._core.tick(now)

    def _pause(self, now: float) -> float:
        until = min(self._exchange.deadline(), self._core.deadline(), now + PAUSE_MAX_S)
        return max(0.0, until - now)

    def _take_orders(self) -> None:
        orders, core = self.orders, self._core
        for _ in range(min(len(orders), ORDERS_MAX)):
            order = orders.popleft()
            if type(order) is DispyJob:
                core.submit(order._cluster, order)
            elif type(order) is Cancel:
                core.cancel(order.cluster, order.seq)
            elif type(order) is Close:
                core.close(order.cluster)
            elif type(order) is Open:
                self._ledgers[order.opening.cluster] = order.ledger
                core.open(order.opening, time.monotonic())
            elif type(order) is Forget:
                del self._ledgers[order.cluster]

    def _handle(self, events: list[Event], now: float) -> None:
        for event in events:
            if type(event) is Received:
                self._receive(event, now)
            elif type(event) is Joined:
                self._broker, self._refusal = event.peer, ""
                self._core.join(now)
            elif type(event) is Left:
                logger.info("the broker has ended the session: %s", event.reason)
                self._core.leave()
            elif type(event) is DialFailed:
                self._refused(event)
            elif type(event) is Away:
                logger.debug("the broker is away: %s", event.reason)
            elif type(event) is Back:
                logger.debug("the broker is back")

    def _receive(self, event: Received, now: float) -> None:
        try:
            self._core.receive(event.message, now)
        except ProtocolError as error:
            logger.error("a message of the broker was dropped: %s", error)

    def _refused(self, failure: DialFailed) -> None:
        if failure.reason != self._refusal:
            self._refusal = failure.reason
            logger.warning(
                "can't get to the broker at %s: %s; still trying", failure.address, failure.reason
            )

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if type(effect) is Send:
                self._exchange.send(self._broker, effect.message)
            elif type(effect) is Warned:
                logger.warning(effect.text)
            elif type(effect) is Closed:
                self._ledgers[effect.cluster].close()  # after that, no job comes any more
                self.orders.append(Forget(effect.cluster))
            elif type(effect) is Ended:
                self._ledgers[effect.cluster].end(effect.node, effect.jobs)
            elif type(effect) is Begun:
                self._ledgers[effect.cluster].begin(effect.node, effect.jobs)
            elif type(effect) is NodeUp:
                self._ledgers[effect.cluster].node_up(effect.node, effect.cpus)
            elif type(effect) is NodeDown:
                self._ledgers[effect.cluster].node_down(effect.node)
