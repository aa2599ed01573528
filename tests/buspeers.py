"""Peers over real sockets in one process, moved by hand: an exchange on a bus, and what it says."""

from __future__ import annotations

import time
from collections.abc import Callable

from dispy.protocol.events import Event
from dispy.protocol.exchange import Exchange
from dispy.protocol.transport import Bus

DEADLINE_S = 10.0


class BusPeer:
    """One end: a bus, an exchange, and all events that have come."""

    def __init__(self, bus: Bus, exchange: Exchange) -> None:
        self.bus = bus
        self.exchange = exchange
        self.events: list[Event] = []

    def turn(self) -> None:
        """Do what is to be done now, without waiting."""
        now = time.monotonic()
        self.exchange.flush(now)
        for arrival in self.bus.poll(0.002):
            self.events += self.exchange.receive(arrival, time.monotonic())
        self.events += self.exchange.tick(time.monotonic())

    def of(self, kind: type) -> list[Event]:
        """Return the events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]


def until(condition: Callable[[], object], *peers: BusPeer) -> None:
    """Move peers until a condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, [peer.events for peer in peers]
        for peer in peers:
            peer.turn()
