"""Very many nodes in one process: they register with a broker, beat, and never get a job.

Run as a program: address of the broker, how many. It says when all are registered, and goes on
until it is killed.
"""

from __future__ import annotations

import sys
import time

from dispy.protocol import protection
from dispy.protocol.arrivals import HungUp, Route
from dispy.protocol.events import Event, Joined
from dispy.protocol.exchange import Exchange
from dispy.protocol.identity import new_guard, random_name
from dispy.protocol.messages import Buffer, Holding, Identity
from dispy.protocol.sockets import raise_limits
from dispy.protocol.transport import Bus

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
AT_ONCE = 100  # that are dialling at a time
KEYS = protection.find().keys


class FakeNode:
    """One of them; all share a bus."""

    def __init__(self, number: int, bus: Bus, owners: dict[Route, FakeNode]) -> None:
        self.is_registered = False
        self._bus = bus
        self._owners = owners
        name = f"fake-{number}"
        guard = new_guard(KEYS)
        who = Identity("node", guard.instance, name, "0", PYTHON, "Linux", 4, place=name)
        self.exchange = Exchange(who, self, random_name, guard=guard)

    def dial(self, address: str) -> Route:
        """Begin to connect."""
        route = self._bus.dial(address)
        self._owners[route] = self
        return route

    def drop(self, route: Route) -> None:
        """Close a connection."""
        self._bus.drop(route)
        self._owners.pop(route, None)

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        """Send without waiting."""
        return self._bus.send(route, frames)

    def handle(self, events: list[Event], now: float) -> None:
        """Register, and then do nothing."""
        for event in events:
            if isinstance(event, Joined):
                self.is_registered = True
                self.exchange.send(event.peer, Holding([], []))
        self.exchange.flush(now)


def main(address: str, count: int) -> None:
    """Register, and beat for ever."""
    raise_limits()
    bus = Bus(KEYS)
    owners: dict[Route, FakeNode] = {}
    nodes = [FakeNode(number, bus, owners) for number in range(count)]
    idle = list(reversed(nodes))
    begin, is_said = time.monotonic(), False
    while True:
        registered = sum(node.is_registered for node in nodes)
        while idle and count - len(idle) - registered < AT_ONCE:
            idle.pop().exchange.dial(address)
        if registered == count and not is_said:
            is_said = True
            print(f"registered {time.monotonic() - begin:.2f}", flush=True)
        now = time.monotonic()
        for node in nodes:
            if node.exchange.deadline() <= now:
                node.handle(node.exchange.tick(now), now)
        for arrival in bus.poll(0.05):
            owner = None if isinstance(arrival, HungUp) else owners.get(arrival.route)
            if owner is not None:
                owner.handle(owner.exchange.receive(arrival, time.monotonic()), now)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
