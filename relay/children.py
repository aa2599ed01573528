"""The peers behind the relay of which the broker has been told: who they are, who is silent.

The only file that takes one in or takes one off. What waits for them is in `downward`; how one
that was dialled comes to be a child like others, in `introductions`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dispy.protocol.arrivals import Route, Up
from dispy.protocol.exchange import ROUND_S
from dispy.protocol.framecache import Sent
from dispy.protocol.link import RELAYED_SILENCE_S, SILENCE_S
from dispy.protocol.messages import Identity, Relayed
from dispy.protocol.wire import Codec

from .places import Place

# After how many looks a peer that says nothing is given up; none count while the relay is stopped.
SILENT_LOOKS = round(SILENCE_S / ROUND_S)
SILENT_RELAY_LOOKS = round(RELAYED_SILENCE_S / ROUND_S)  # signs of life come a slow way


@dataclass(eq=False)
class Child:
    """A connection to a peer behind the relay, of which the up-link has been told."""

    number: int
    route: Route
    header: bytes  # goes before each of its messages on the trunk
    place: Place | None = None  # None: it has dialled
    key: bytes = b""  # of a connection that was dialled: our public key
    since: float = 0.0  # ... and when the broker was told of it
    is_greeted: bool = True  # else the broker's Hello hasn't come so far
    has_answered: bool = True  # else nothing but its answer to that counts
    silent_looks: int = 0  # since it has said anything
    name: str = ""
    instance: str = ""
    sent: Sent | None = None  # of a relay: what it keeps

    def heard(self) -> None:
        """It has said something."""
        self.silent_looks = 0

    @property
    def is_silent(self) -> bool:
        """Whether it has said nothing for so long that it is to be given up."""
        is_relay = self.sent is not None
        return self.silent_looks > (SILENT_RELAY_LOOKS if is_relay else SILENT_LOOKS)


class Children:
    """All of one relay, by route, by the relay's number and, those that are known, by instance."""

    def __init__(self, codec: Codec) -> None:
        self.by_route: dict[Route, Child] = {}
        self.by_number: dict[int, Child] = {}
        self.gone: list[str] = []  # instances that were there
        self.next_look = 0.0  # for silent ones; rounds may follow each other sooner
        self._by_instance: dict[str, Child] = {}
        self._codec = codec
        self._last_number = 0

    def __len__(self) -> int:
        return len(self.by_route)

    def add(self, route: Route, who: Identity) -> Child:
        """Take in a peer that has dialled."""
        child = self._add(route)
        self.know(child, who)
        return child

    def add_dialled(self, up: Up, place: Place, now: float) -> Child:
        """Take in whoever is at a place that was dialled."""
        child = self._add(up.route)
        child.place, child.name, child.key, child.since = place, place.address, up.key, now
        child.is_greeted = child.has_answered = False
        return child

    def know(self, child: Child, who: Identity) -> None:
        """Note who one is. To a relay nothing goes twice that it keeps for its own children."""
        child.name, child.instance = who.name, who.instance
        self._by_instance[who.instance] = child
        if who.role == "relay":
            child.sent = Sent()
            child.sent.keeps = True

    def knows(self, instance: str) -> bool:
        """Whether this peer is there at present."""
        return instance in self._by_instance

    def are_at(self, routes: Iterable[Route]) -> bool:
        """Whether one of these connections leads to a child."""
        return any(route in self.by_route for route in routes)

    def forget(self, child: Child) -> None:
        """One is gone."""
        del self.by_route[child.route]
        del self.by_number[child.number]
        if self._by_instance.get(child.instance) is child:
            del self._by_instance[child.instance]
            self.gone.append(child.instance)

    def clear(self) -> None:
        """All are gone."""
        self.by_route.clear()
        self.by_number.clear()
        self.gone += self._by_instance
        self._by_instance.clear()

    def look(self, now: float, are_heard: bool) -> list[Child]:
        """Return those that have been silent for too long, when it's time to look for them.

        No look counts while nothing is taken from them: they can't be heard.
        """
        if now < self.next_look:
            return []
        self.next_look = now + ROUND_S
        if not are_heard:
            return []
        for child in self.by_route.values():
            child.silent_looks += 1
        return [child for child in self.by_route.values() if child.is_silent]

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        assert all(child.route == route for route, child in self.by_route.items())
        assert all(child.number == number for number, child in self.by_number.items())
        assert {*self.by_route.values()} == {*self.by_number.values()}
        assert {*self._by_instance.values()} <= {*self.by_route.values()}
        for instance, child in self._by_instance.items():
            assert child.instance == instance

    def _add(self, route: Route) -> Child:
        self._last_number += 1
        number = self._last_number
        header, _ = self._codec.encode(Relayed(number))
        child = self.by_route[route] = self.by_number[number] = Child(number, route, header)
        return child
