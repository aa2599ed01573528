"""The thread that talks to a broker for all clusters of the process.

It alone touches the bus, the exchange and the core. Users' threads hand orders over in a
queue, and wake it only when it sleeps, so that submitting a job costs no system call.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from dispy.protocol.arrivals import Arrival
from dispy.protocol.errors import ProtocolError
from dispy.protocol.events import Away, Back, DialFailed, Event, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.messages import FILE, PROVISIONAL

from .core import Core
from .effects import (
    Answered,
    Begun,
    Closed,
    Effect,
    Ended,
    Known,
    NodeAlive,
    NodeDown,
    NodeUp,
    Offered,
    Requeued,
    Send,
    Sending,
    Silent,
    Told,
    Wanted,
    Warned,
)
from .filework import FileWork, Pieces, Written
from .job import DispyJob
from .ledger import Ledger
from .log import logger
from .orders import (
    Ask,
    AskWhy,
    Cancel,
    Close,
    Define,
    Follow,
    Forget,
    Hear,
    Open,
    Order,
    Use,
)
from .recording import Recordings

ORDERS_MAX = 5_000  # taken at a time, so that the network gets its turn
PAUSE_MAX_S = 1.0
GIVE_WAY_S = 2e-5  # long enough for the thread to take the GIL, which it waits for
STOP_S = 2.0  # how long the thread may take to end
FINISH_S = 0.01  # how often it's looked whether orders are left, when it is to end


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

    def __init__(
        self,
        address: str,
        bus: Waiter,
        exchange: Exchange,
        recordings: Recordings | None = None,
        *,
        shared: bool = False,  # with other programs: the broker may come and go
    ) -> None:
        self.address = address
        self._shared = shared
        self._bus = bus
        self._exchange = exchange
        self._core = Core()
        self._files = FileWork(self.hand_over)
        self._recordings = recordings or Recordings()
        self._ledgers: dict[int, Ledger] = {}
        self._effects: deque[Effect] = deque()  # not carried out so far
        self.orders: deque[Order] = deque()
        self._sleeping = False
        self._has_polled = True  # in the last step
        self._stopping = False
        self._left_behind = False  # the end of this process is nobody else's
        self._broker = ""  # the instance id of the broker, once joined
        self._refusal = ""  # the last reason for not getting to the broker
        self._thread = threading.Thread(target=self._run, name="dispy-session", daemon=True)

    # -- for the user's threads ----------------------------------------------------------

    def start(self) -> None:
        """Begin to connect."""
        self._exchange.dial(self.address)
        self._thread.start()

    def open(self, order: Open) -> None:
        """Begin with a cluster soon; it counts as one of the session's from now on."""
        self._ledgers[order.opening.cluster] = order.ledger
        self.hand_over(order)

    def hand_over(self, order: Order) -> None:
        """Have something done soon."""
        self.orders.append(order)
        self.wake()

    def wake(self) -> None:
        """Have the session look at its orders; to be called after one was appended."""
        if self._sleeping:  # it looks at the orders after it has said so
            self._sleeping = False
            self._bus.wake()

    def give_way(self) -> None:
        """Let the thread go on if it has fallen behind, as who submits many jobs should.

        It needs the GIL, and would have to wait 5 ms (`sys.getswitchinterval`) for each time that
        it has let go of it to send something: the first job would begin when all are submitted.
        """
        if self.orders and threading.current_thread() is not self._thread:
            time.sleep(GIVE_WAY_S)

    def alive(self) -> bool:
        """Whether orders are still carried out."""
        return self._thread.is_alive() and not self._stopping

    def is_used(self) -> bool:
        """Whether there is a cluster that isn't closed."""
        return not all(ledger.closed for ledger in list(self._ledgers.values()))

    def unfinished(self) -> list[Ledger]:
        """Return the clusters that have jobs left, or ends to tell of."""
        ledgers = list(self._ledgers.values())
        return [ledger for ledger in ledgers if not (ledger.is_idle or ledger.closed)]

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
        if self._thread.is_alive():  # else it has ended, or never begun
            self._thread.join(STOP_S)

    def leave_behind(self, timeout_s: float) -> int:
        """End the thread, but none of the jobs, and return how many the broker has.

        With 0 the thread goes on: there are none, or the broker is this process's own.
        """
        if not self._shared or not self.unfinished() or not self.alive():
            return 0
        until = time.monotonic() + timeout_s
        for number, ledger in list(self._ledgers.items()):
            ledger.listener.silent = True
            if ledger.stop_accepting(even_if_pending=False):  # nothing of it is left
                self.hand_over(Close(number))
                ledger.wait_closed(max(0.0, until - time.monotonic()))
        while not self._is_handed_over() and time.monotonic() < until:
            time.sleep(FINISH_S)
        left = sum(len(cluster.away) for cluster in list(self._core.clusters.values()))
        if not left:  # the broker has got none
            return 0
        self._left_behind = self._stopping = True
        self._bus.wake()
        self._thread.join(STOP_S)
        return left

    def _is_handed_over(self) -> bool:
        """Whether the broker has all that it takes now."""
        clusters = list(self._core.clusters.values())
        waits = [each.waiting and each.sent < each.credit for each in clusters]
        return not self.orders and all(each.opened for each in clusters) and not any(waits)

    def orphan(self) -> None:
        """In a forked child, where the thread doesn't exist: nothing can be submitted."""
        for ledger in self._ledgers.values():
            ledger.orphan()
        self._files.forget()
        self._recordings.forget()

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
        if not self._left_behind:
            self._end_all(reason)
        self._recordings.flush(time.monotonic())
        self._files.stop()
        self._bus.close()

    def _end_all(self, reason: str) -> None:
        _survive(self._exchange.goodbye, self._broker, reason)
        while self.orders or self._core.clusters or self._effects:
            _survive(self._take_orders)
            self._core.give_up(reason)
            self._effects += self._core.take()
            while self._effects:  # what has failed isn't among them any more
                _survive(self._carry_out)
        for ledger in list(self._ledgers.values()):  # that the core didn't get to know
            _survive(ledger.close)

    def _step(self) -> None:
        """Do all that is to be done now, then wait for more."""
        self._take_orders()
        self._recordings.grown(self._core.state.sendable)
        self._effects += self._core.take()
        self._carry_out()
        now = time.monotonic()
        self._recordings.flush(now)
        self._exchange.flush(now)
        self._has_polled = not (self.orders and self._has_polled)
        if not self._has_polled:
            return  # these orders first: what they ask for may go out at once
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
        deadlines = (self._exchange, self._core, self._recordings)
        until = min(now + PAUSE_MAX_S, *[owner.deadline() for owner in deadlines])
        return max(0.0, until - now)

    def _take_orders(self) -> None:
        orders, core = self.orders, self._core
        for _ in range(min(len(orders), ORDERS_MAX)):
            order = orders.popleft()
            if type(order) is DispyJob:
                core.submit(order._cluster, order)
            else:
                self.ORDERS[type(order)](self, order)

    def _open(self, order: Open) -> None:
        number = order.opening.cluster
        self._core.open(order.opening, time.monotonic())
        cluster = self._core.clusters[number]
        is_program = bool(order.opening.computation.program)
        self._recordings.open(
            number, is_program, order.recover_file, cluster.unfinished, cluster.away
        )

    def _define(self, order: Define) -> None:
        self._core.define(order.cluster, order.layers)

    def _cancel(self, order: Cancel) -> None:
        self._core.cancel(order.cluster, order.seq)

    def _follow(self, order: Follow) -> None:
        self._core.follow(order.cluster, order.seq)

    def _hear(self, order: Hear | Written) -> None:
        self._core.hear(*order)

    def _use(self, order: Use) -> None:
        self._core.allocate(order.message, order.address)

    def _ask(self, order: Ask) -> None:
        self._core.request(order.message)

    def _ask_why(self, order: AskWhy) -> None:
        self._core.explain(order.cluster, order.request, order.seq)

    def _send_pieces(self, order: Pieces) -> None:
        ledger = self._ledgers.get(order.cluster)
        if ledger is not None:
            sizes = [len(p.data) + sum([part.size for part in p.parts]) for p in order.pieces]
            ledger.sent(order.node, sum(sizes))
        self._core.send_pieces(order.cluster, order.node, order.pieces)

    def _close(self, order: Close) -> None:
        self._core.close(order.cluster)

    def _forget(self, order: Forget) -> None:
        del self._ledgers[order.cluster]

    def _handle(self, events: list[Event], now: float) -> None:
        for event in events:
            if type(event) is Received:
                self._receive(event, now)
            elif type(event) is Joined:
                self._broker = event.peer
                self._there()
                self._core.join(now)
            elif type(event) is Left:
                self._left(event)
            elif type(event) is DialFailed:
                self._refused(event)
            elif type(event) is Away:
                logger.debug("the broker is away: %s", event.reason)
                self._core.unreachable(event.reason)
            elif type(event) is Back:
                logger.debug("the broker is back")
                self._there()
                self._core.unreachable("")

    def _left(self, event: Left) -> None:
        if self._shared and self.is_used():
            logger.warning(
                "the broker at %s has ended the session (%s); clusters and jobs wait for it to "
                "come back",
                self.address,
                event.reason,
            )
        else:
            logger.info("the broker has ended the session: %s", event.reason)
        self._core.leave()

    def _there(self) -> None:
        """The broker can be reached; say so if it was said that it can't."""
        if self._refusal:
            logger.info("connected to the broker at %s", self.address)
        self._refusal = ""

    def _receive(self, event: Received, now: float) -> None:
        try:
            self._core.receive(event.message, now)
        except ProtocolError as error:
            logger.error("a message of the broker was dropped: %s", error)

    def _refused(self, failure: DialFailed) -> None:
        self._core.unreachable(failure.reason)
        if failure.reason != self._refusal and self.is_used():  # else nobody needs it
            self._refusal = failure.reason
            advice = (
                " (is dispy-broker running there?)"
                if "connection refused" in failure.reason
                else ""
            )
            logger.warning(
                "can't get to the broker at %s: %s%s; still trying",
                failure.address,
                failure.reason,
                advice if self._shared else "",
            )

    def _carry_out(self) -> None:
        while self._effects:
            effect = self._effects.popleft()
            if isinstance(effect, Send):
                self._exchange.send(self._broker, effect.message)
            elif isinstance(effect, Warned):
                logger.warning(effect.text)
            else:
                self.EFFECTS[type(effect)](self, effect, self._ledgers[effect.cluster])

    def _on_sending(self, effect: Sending, ledger: Ledger) -> None:
        self._recordings.sent(effect.cluster, [job._seq for job in effect.jobs])

    def _on_known(self, effect: Known, ledger: Ledger) -> None:
        self._recordings.opened(effect.cluster, effect.computation, self._broker)

    def _on_ended(self, effect: Ended, ledger: Ledger) -> None:
        self._recordings.ended(effect.cluster, [result.seq for _, result in effect.jobs])
        ledger.end(effect.node, effect.jobs)

    def _on_begun(self, effect: Begun, ledger: Ledger) -> None:
        self._recordings.running(effect.cluster, effect.node, [job._seq for job, _ in effect.jobs])
        ledger.begin(effect.node, effect.jobs)

    def _on_requeued(self, effect: Requeued, ledger: Ledger) -> None:
        ledger.requeue(effect.jobs)

    def _on_told(self, effect: Told, ledger: Ledger) -> None:
        for job, record in effect.records:
            if record.kind == PROVISIONAL:
                ledger.provisional(effect.node, job, record)
            elif record.kind == FILE:
                ledger.received(effect.node, job, record)
                self._files.write(effect.cluster, record, ledger.folder)
            else:
                ledger.printed(effect.node, job, record)

    def _on_silent(self, effect: Silent, ledger: Ledger) -> None:
        for seq in effect.jobs:
            self._files.drop_job(effect.cluster, seq)

    def _on_node_up(self, effect: NodeUp, ledger: Ledger) -> None:
        self._recordings.node(effect.cluster, effect.node)
        ledger.node_up(effect.node, effect.cpus, effect.named)

    def _on_node_down(self, effect: NodeDown, ledger: Ledger) -> None:
        ledger.node_down(effect.node)

    def _on_node_alive(self, effect: NodeAlive, ledger: Ledger) -> None:
        ledger.node_alive(effect.node, effect.vitals)

    def _on_offered(self, effect: Offered, ledger: Ledger) -> None:
        ledger.offered(effect.node, effect.vitals)

    def _on_wanted(self, effect: Wanted, ledger: Ledger) -> None:
        if ledger.blobs is not None:
            self._files.read(ledger.blobs, effect.cluster, effect.node, effect.ranges)

    def _on_answered(self, effect: Answered, ledger: Ledger) -> None:
        ledger.requests.answer(effect.request, effect.code, effect.text)

    def _on_closed(self, effect: Closed, ledger: Ledger) -> None:
        self._recordings.closed(effect.cluster)
        self._files.drop(effect.cluster)
        ledger.close()  # after that, no job comes any more
        self.orders.append(Forget(effect.cluster))

    ORDERS: ClassVar[dict[type, Callable[[Session, Any], None]]] = {
        Open: _open,
        Define: _define,
        Cancel: _cancel,
        Follow: _follow,
        Hear: _hear,
        Written: _hear,
        Use: _use,
        Ask: _ask,
        AskWhy: _ask_why,
        Pieces: _send_pieces,
        Close: _close,
        Forget: _forget,
    }
    EFFECTS: ClassVar[dict[type, Callable[[Session, Any, Ledger], None]]] = {
        Sending: _on_sending,
        Known: _on_known,
        Ended: _on_ended,
        Begun: _on_begun,
        Requeued: _on_requeued,
        Told: _on_told,
        Silent: _on_silent,
        NodeUp: _on_node_up,
        NodeDown: _on_node_down,
        NodeAlive: _on_node_alive,
        Offered: _on_offered,
        Wanted: _on_wanted,
        Answered: _on_answered,
        Closed: _on_closed,
    }


def _survive(act: Callable[..., None], *args: object) -> None:
    """At the end: do something, and go on whatever comes of it."""
    try:
        act(*args)
    except Exception:
        logger.exception("a session with the broker could not end as it should: a bug in dispy")
