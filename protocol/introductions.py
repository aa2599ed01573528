"""What relays tell about the peers behind them: whom they have dialled, and whom they lost.

What such peers say themselves goes the way of all that arrives, over a route through the relay.
"""

from __future__ import annotations

from .arrivals import Route
from .connections import Connections
from .events import Away, Event
from .handshake import Handshake
from .messages import INTRODUCED, LOST, MARK, MARKED, Relayed


class Introductions:
    """The peers that relays bring."""

    def __init__(self, connections: Connections, handshake: Handshake) -> None:
        self._connections = connections
        self._handshake = handshake

    def receive(self, route: Route, relayed: Relayed, now: float) -> list[Event]:
        """A relay says something about a peer behind it, or about the way to there."""
        child = (route, relayed.child)
        if relayed.event == INTRODUCED:
            self._on_introduced(child, relayed.text, now)
        elif relayed.event == LOST:
            return self._on_lost(child, relayed, now)
        elif relayed.event == MARK:
            self._connections.trunks.answer(route, relayed.child)
        elif relayed.event == MARKED:
            self._connections.trunks.marked(route, relayed.child, now)
            self._connections.next_round = min(self._connections.next_round, now)
        return []

    def _on_introduced(self, route: tuple[Route, int], address: str, now: float) -> None:
        """A relay has dialled somebody for us: say Hello."""
        dials = self._connections.dials
        if route in self._connections.routes or route in dials.by_route:
            return
        dial = dials.introduce(route, address)
        if dial is not None:
            self._handshake.say_hello(dial, route, now)

    def _on_lost(self, route: tuple[Route, int], lost: Relayed, now: float) -> list[Event]:
        """A relay has lost a peer, or knows by now that one which it lost is gone for good."""
        connections = self._connections
        trunk = connections.trunks.of(route)
        link, dial = connections.routes.get(route), connections.dials.by_route.get(route)
        assert trunk is not None
        trunk.missed(lost.text)
        events: list[Event] = []
        if link is not None:
            trunk.note_lost(route, link.peer.instance)
            connections.broken(link, lost.text, lost.refused, now, events)
        elif dial is not None:
            connections.hang_up(dial)
        elif lost.refused:
            away = connections.links.get(trunk.lost.pop(route, ""))
            if away is not None and away.route is None:
                events.append(Away(away.peer.instance, lost.text, True))
        return events

    def give_up(self, now: float) -> None:
        """Have relays close what they have dialled and what doesn't answer."""
        for route, dial in list(self._connections.dials.by_route.items()):
            if isinstance(route, tuple) and dial.is_unanswered(now):
                self._connections.hang_up(dial)
