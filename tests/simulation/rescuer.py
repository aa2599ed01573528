"""A program that takes clusters over from a client: the real decisions behind a real exchange."""

from __future__ import annotations

from collections.abc import Callable

from dispy.attached import Takeover
from dispy.protocol.events import Event, Joined, Received
from dispy.protocol.messages import (
    ABANDONED,
    FINISHED,
    Attach,
    Body,
    Identity,
    JobResult,
    Report,
    Results,
)

from .clock import Clock
from .network import Socket
from .processes import Process

CLOSE_S = 5.0  # how long it waits for nodes to clean up
DELIVER_S = 2.0  # ... and for its last messages to arrive
FOREVER = float("inf")
UNKNOWN = "the broker doesn't know the cluster"  # what it says then begins so


class Rescuer(Process):
    """Does what `attaching.Rescue` does.

    Of each cluster it says first what there is in ``orders``. It hands over what has ended by
    ``until``; then it closes the clusters if all has, or leaves them to others. ``ends`` are
    handed over; ``on_done`` is called at the end, ``on_report`` when an operator gets an answer.
    """

    def __init__(
        self,
        clock: Clock,
        socket: Socket,
        identity: Identity,
        wanted: list[Attach],
        until: float,
        orders: dict[int, list[Body]],
        on_done: Callable[[Rescuer], None],
    ) -> None:
        super().__init__(clock, socket, identity)
        self.takeover = Takeover(wanted)
        self.until = until
        self.ends: dict[int, dict[int, JobResult]] = {}  # by cluster and job
        self.told: dict[tuple[int, int], list[JobResult]] = {}  # the ends that came, in order
        self.completed: set[int] = set()  # clusters of which all was handed over
        self.unknown: set[int] = set()  # clusters of which the broker knows nothing
        self.on_report: Callable[[Report], None] = lambda report: None
        self.broker = ""
        self._orders = orders
        self._on_done = on_done
        self._leaves_at = FOREVER  # once all is handed over

    def on_event(self, event: Event, now: float) -> None:
        """As its `_handle`."""
        if isinstance(event, Received):
            if isinstance(event.message, Results):
                self._note(event.message)
            if isinstance(event.message, Report):
                self.on_report(event.message)
            self.takeover.receive(event.message, now)
        elif isinstance(event, Joined):
            self.broker = event.peer
            self.takeover.join(now)

    def _note(self, message: Results) -> None:
        """What comes twice is the same both times; all may come again, from the beginning."""
        for result in message.results:
            key = (message.cluster, result.seq)
            told = self.told.setdefault(key, [result])
            if result not in told:
                assert is_same_or_later(told[-1], result), f"job {key} has ended twice"
                told.append(result)

    def round(self, now: float) -> None:
        """As its phases."""
        self.handle(self.exchange.tick(now), now)
        takeover = self.takeover
        takeover.tick(now)
        is_time = takeover.settled or (now >= self.until and takeover.gathered)
        if self._leaves_at == FOREVER and takeover.joined and is_time:
            self._hand_over(now)
        for number in [each for each in self._orders if takeover.clusters[each].said]:
            for message in self._orders.pop(number):
                self.exchange.send(self.broker, message)
        for message in takeover.take():
            self.exchange.send(self.broker, message)
        self.exchange.flush(now)
        link = self.exchange.links.get(self.broker)
        delivered = link is None or not link.undelivered()
        is_over = takeover.closed if self.completed else delivered
        if self._leaves_at < FOREVER and (is_over or now >= self._leaves_at):
            if self.completed:
                self.exchange.goodbye(self.broker, "its jobs have been recovered")
            self.kill()
            self.finish()

    def _hand_over(self, now: float) -> None:
        takeover = self.takeover
        for number, cluster in takeover.clusters.items():
            self.ends[number] = {seq: result for seq, (result, _) in cluster.ends.items()}
            takeover.hear(number, set())
            if UNKNOWN in cluster.lost:
                self.unknown.add(number)
            elif takeover.settled and not cluster.lost:
                self.completed.add(number)
        if self.completed:
            takeover.close()
        self._leaves_at = now + (CLOSE_S if self.completed else DELIVER_S)

    def finish(self) -> None:
        """Tell what it has come to."""
        self._on_done(self)

    def deadline(self) -> float:
        """When something is to be done, at most."""
        wishes = [self.takeover.deadline(), self._leaves_at]
        if self.clock.now < self.until:
            wishes.append(self.until)
        return min(wishes)

    def check(self) -> None:
        """Have nothing to be checked."""


def is_same_or_later(before: JobResult, after: JobResult) -> bool:
    """Whether a job that has ended so may be said to have ended so."""
    if before.status == ABANDONED and after.status == FINISHED:
        return True
    return (before.status, before.attempt) == (after.status, after.attempt)
