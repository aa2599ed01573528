"""Peers that have dialled and said Hello while there is no up-link: they wait for one.

Only so long as they would wait for an answer themselves. Pure state.
"""

from __future__ import annotations

from typing import NamedTuple

from dispy.protocol.arrivals import Arrived, Route
from dispy.protocol.messages import Identity

PATIENCE_S = 2.5  # a child's Hello may wait so long for an up-link; it gives up after 3 s


class Caller(NamedTuple):
    """One of them, and its Hello."""

    arrival: Arrived
    until: float
    who: Identity


class Callers:
    """All of them, by route."""

    def __init__(self) -> None:
        self._callers: dict[Route, Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def __contains__(self, route: Route) -> bool:
        return route in self._callers

    @property
    def routes(self) -> list[Route]:
        """Over which connections they have said Hello."""
        return list(self._callers)

    def add(self, arrival: Arrived, who: Identity, now: float) -> None:
        """Have one wait."""
        self._callers[arrival.route] = Caller(arrival, now + PATIENCE_S, who)

    def forget(self, route: Route) -> bool:
        """A connection is gone; return whether that was a caller's."""
        return self._callers.pop(route, None) is not None

    def take_all(self) -> list[Caller]:
        """Return all: nobody waits any more."""
        callers, self._callers = self._callers, {}
        return list(callers.values())

    def take_late(self, now: float) -> list[Caller]:
        """Return those that have waited for too long: they don't wait any more."""
        late = [caller for caller in self._callers.values() if now >= caller.until]
        for caller in late:
            del self._callers[caller.arrival.route]
        return late

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        assert all(caller.arrival.route == route for route, caller in self._callers.items())
