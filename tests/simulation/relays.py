"""Relays as processes of the simulation: the real core, which may die at any moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from dispy.protocol.events import Event
from dispy.protocol.messages import Identity
from dispy.relay.core import Relay
from tests.memoryshelf import MemoryShelf

from .clock import Clock
from .network import Socket
from .processes import Process


class RelayProcess(Process):
    """One life of a relay."""

    def __init__(self, clock: Clock, socket: Socket, identity: Identity) -> None:
        super().__init__(clock, socket, identity)
        self.relay = Relay(identity, socket, self._name_session, MemoryShelf)
        self.exchange = self.relay.exchange
        self.news: list[str] = []

    def turn(self, now: float) -> None:
        """As the daemon's."""
        self.relay.tick(now)
        for arrival in self.socket.take():
            self.relay.receive(arrival, now)
        self.round(now)

    def round(self, now: float) -> None:
        """As the daemon's."""
        self.relay.flush(now)
        self.news += [each.text for each in self.relay.news]
        self.relay.news.clear()

    def on_event(self, event: Event, now: float) -> None:
        """The core sees to them by itself."""

    def stop(self) -> None:
        """End orderly."""
        if self.clock.now >= self.paused_until:
            self.relay.stop()
        self.kill()

    def deadline(self) -> float:
        """When the core wants to be ticked."""
        return self.relay.deadline()

    def check(self) -> None:
        """Check the core."""
        self.relay.check()


@dataclass
class Outpost:
    """A place for a relay, which may be started there again and again."""

    name: str
    address: str
    above: str  # address of the broker, or of a relay nearer to it
    dials: bool  # the relay dials it; else it waits to be dialled
    comes: bool = True  # to the broker, whatever that wants
    below: list[str] = field(default_factory=list)  # addresses that it dials itself
    lives: int = 0
    relay: RelayProcess | None = None  # while one lives
