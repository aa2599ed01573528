"""Addresses that the relay keeps connected for the broker, and when to try each again.

The only file that dials for it and hangs up. Who is there is said in `children`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dispy.protocol.arrivals import Route, Transport
from dispy.protocol.dials import REDIAL_MAX_S, REDIAL_S


@dataclass(eq=False)
class Place:
    """An address that is kept connected."""

    address: str
    instance: str = ""  # who was there last, or is expected
    is_hint: bool = False  # it was found, not told
    route: Route | None = None
    again_at: float = 0.0  # while there is no route: when to try next
    pause_s: float = REDIAL_S
    lost: int = 0  # the child that was there last, whose end isn't proven so far; 0: none

    def answered(self, instance: str) -> None:
        """A peer has answered there, and is who it says."""
        if not self.is_hint:
            self.instance = instance
        self.pause_s = REDIAL_S

    def pause(self, now: float, pause_s: float) -> None:
        """Try again after this many seconds, or more if that has failed before."""
        self.again_at = now + max(self.pause_s, pause_s)
        self.pause_s = min(self.pause_s * 2, REDIAL_MAX_S)


class Places:
    """All of one relay, by address and, those that are connected, by route."""

    def __init__(self, transport: Transport) -> None:
        self.by_route: dict[Route, Place] = {}
        self._transport = transport
        self._by_address: dict[str, Place] = {}

    def all(self) -> list[Place]:
        """Return all that is to be kept connected."""
        return list(self._by_address.values())

    def add(self, address: str, instance: str) -> bool:
        """Keep an address connected, for whoever is expected; return whether that is new."""
        if address in self._by_address:
            return False
        self._by_address[address] = Place(address, instance, is_hint=bool(instance))
        return True

    def hint(self, address: str, instance: str) -> Place | None:
        """Return the place at an address at which this instance is expected."""
        place = self._by_address.get(address)
        is_it = place is not None and place.is_hint and place.instance == instance
        return place if is_it else None

    def remove(self, place: Place) -> None:
        """Don't keep it connected."""
        self.hang_up(place)
        del self._by_address[place.address]

    def rivals(self, place: Place) -> set[Route]:
        """Return the connections that perhaps lead to the same peer by other addresses."""
        others = [each for each in self._by_address.values() if each.instance == place.instance]
        return {each.route for each in others if each is not place and each.route is not None}

    def dial(self, place: Place) -> None:
        """Begin to connect."""
        place.route = self._transport.dial(place.address)
        self.by_route[place.route] = place

    def hang_up(self, place: Place) -> None:
        """Close its connection, if it has one."""
        if place.route is not None:
            del self.by_route[place.route]
            self._transport.drop(place.route)
            place.route = None

    def reset(self) -> None:
        """Close all connections; what has happened before is of no account."""
        for place in self._by_address.values():
            self.hang_up(place)
            place.lost, place.again_at, place.pause_s = 0, 0.0, REDIAL_S

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        connected = {place.route: place for place in self.all() if place.route is not None}
        assert connected == self.by_route
