"""Which peers a process has sessions with, over which route each is reached, what is unsaid.

The only file that puts a link on a route or takes it off. A connection to a relay carries others:
when it goes, they go with it.
"""

from __future__ import annotations

from functools import partial

from .arrivals import Route, Transport, above
from .dials import REDIAL_S, Dial, Dials
from .events import Away, Event, Joined
from .link import RELAYED_SILENCE_S, RETRY_S, Link
from .messages import Frame, Hello, Identity, Welcome
from .trunks import Trunks
from .wire import Codec

RELAYED_RETRY_S = 0.05  # how soon to try again when a trunk takes no more, unless it says so


class Connections:
    """The links of one process by the peer's instance, and by route those that are connected."""

    def __init__(self, transport: Transport, role: str) -> None:
        self.links: dict[str, Link] = {}
        self.routes: dict[Route, Link] = {}
        self.dials = Dials()
        self.codec = Codec()
        self.trunks = Trunks(self.codec, transport.send)
        self.unflushed: dict[Link, None] = {}  # in order, so that runs can be repeated
        self.acks_late = False
        self.next_round = 0.0  # when there is something to do next
        self._transport = transport
        self._is_relay = role == "relay"
        self.news: list[Event] = []  # of peers behind a relay, which come before its own
        # Greetings say what has arrived, so they wait for `flush` as all other acknowledgements.
        self._greetings: list[tuple[Route, Hello | Welcome]] = []

    # -- saying something ------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Hand all that is queued over to the transport."""
        if self._greetings:
            self.greet()
        if self.unflushed:
            unflushed, self.unflushed = self.unflushed, {}
            for link in unflushed:
                self.flush_link(link, now)
        if self.trunks.by_route:
            self.flush_trunks(now)

    def flush_link(self, link: Link, now: float) -> None:
        """Hand over what is queued in one link, as far as the transport takes it."""
        route = link.route
        if route is None:
            return
        if isinstance(route, tuple):
            link.flush(now, partial(self.trunks.send, route))
            retry_s = RELAYED_RETRY_S
        else:
            link.flush(now, partial(self._transport.send, route))
            retry_s = RETRY_S
        if link.blocked:
            self.unflushed[link] = None
            self.next_round = min(self.next_round, now + retry_s)

    def flush_trunks(self, now: float) -> None:
        """Send what may go over trunks, and fill up what waits for them; links take turns."""
        while self.trunks.flush(now):
            blocked = [link for link in self.unflushed if isinstance(link.route, tuple)]
            for link in blocked:
                del self.unflushed[link]
                self.flush_link(link, now)
            if blocked and blocked[0] in self.unflushed:
                del self.unflushed[blocked[0]]
                self.unflushed[blocked[0]] = None
        if self.trunks.are_stuck:
            self.next_round = min(self.next_round, now + RETRY_S)

    def say(self, route: Route, frame: Frame) -> None:
        """Send a frame that belongs to no session, at once."""
        header, _ = self.codec.encode(frame)
        if isinstance(route, tuple):
            self.trunks.send(route, [header])
        else:
            self._transport.send(route, [header])

    def greet_later(self, route: Route, greeting: Hello | Welcome) -> None:
        """Say this at the next flush."""
        self._greetings.append((route, greeting))

    def greet(self, only: Route | None = None) -> None:
        """Say the greetings that wait."""
        greetings, self._greetings = self._greetings, []
        for route, greeting in greetings:
            if only not in (None, route):
                self._greetings.append((route, greeting))
            elif route in self.routes or route in self.dials.by_route:  # else it is gone by now
                self.say(route, greeting)

    def try_accepted(self, now: float) -> None:
        """Say something to each peer that dialled in: the transport notices who is gone."""
        self.greet()
        for route, link in list(self.routes.items()):
            if isinstance(route, bytes):
                link.beat(now, partial(self._transport.send, route))

    # -- dialling --------------------------------------------------------------------------

    def dial(self, dial: Dial) -> None:
        """Begin to connect."""
        self.dials.connect(dial, self._transport.dial(dial.address))

    def is_linked(self, dial: Dial) -> bool:
        """Whether the peer that a dial leads to is connected, whoever has dialled."""
        link = self.links.get(dial.peer)
        return link is not None and link.route is not None

    def hang_up(self, dial: Dial) -> None:
        """Close the connection of a dial, if it has one."""
        route = self.dials.disconnect(dial)
        if route is not None:
            self.drop(route)

    def pause(self, dial: Dial, now: float, pause_s: float = 0.0) -> None:
        """Dial again later on."""
        dial.pause(now, pause_s)
        self.next_round = min(self.next_round, dial.again_at)

    def settle(self, dial: Dial) -> None:
        """An address has worked: those that lead to the same peer aren't needed now."""
        for rival in dial.rivals:
            rival.peer = dial.peer
            if rival is not dial and rival.route is not None:
                self.hang_up(rival)

    def drop(self, route: Route) -> None:
        """Close a connection; forget one that was accepted."""
        if isinstance(route, tuple):
            self.trunks.drop(route)
        else:
            self._transport.drop(route)

    def _close(self, route: Route) -> None:
        dial = self.dials.by_route.get(route)
        if dial is not None:
            self.hang_up(dial)
        else:
            self.drop(route)

    # -- links -----------------------------------------------------------------------------

    def begin(
        self, identity: Identity, session: str, route: Route, epoch: int, now: float
    ) -> tuple[Link, list[Event]]:
        """Start a session; an earlier one with the same instance ends."""
        old = self.links.get(identity.instance)
        undelivered = old.undelivered() if old is not None else []
        if old is not None:
            self._unroute(old)
            self.unflushed.pop(old, None)
        link = Link(identity, session, self.codec, now, self.acks_late)
        link.connect(route, epoch, 0, now)
        self.links[identity.instance] = link
        dial = self.dials.by_route.get(route)
        address, reached = (dial.address, dial.reached) if dial is not None else ("", "")
        via = self.routes[route[0]].peer.name if isinstance(route, tuple) else ""
        trunk = self.dials.by_route.get([route, *above(route)][-1]) if via else None
        relay = trunk.address if trunk is not None else ""
        peer = identity.instance
        return link, [Joined(peer, identity, undelivered, address, via, reached, relay)]

    def resume(self, link: Link, route: Route, epoch: int, received: int, now: float) -> None:
        """Go on with a session over a new connection: the newest one wins."""
        self._unroute(link)
        link.connect(route, epoch, received, now)

    def enter(self, route: Route, link: Link, is_relayed: bool) -> None:
        """A link has a new connection, with a relay in between as far as the peer knows."""
        link.limit(is_relayed or isinstance(route, tuple))
        self.routes[route] = link
        self.unflushed[link] = None
        has_relay = link.peer.role == "relay"
        if has_relay or self._is_relay:
            link.silence_s = RELAYED_SILENCE_S
        if has_relay:
            self.trunks.open(route)
        if isinstance(route, tuple):
            self.trunks.enter(route)
            dial = self.dials.by_route.get(route)
            if dial is not None:
                self.dials.note_introduced(dial.address, link.peer.instance)

    def forget(self, peer: str) -> None:
        """Drop a session and all that waits in it."""
        link = self.links.pop(peer, None)
        if link is None:
            return
        self.unflushed.pop(link, None)
        route = link.route
        link.disconnect()
        if route is not None:
            del self.routes[route]
            self._orphan(link, route, "its relay has left")
            self._close(route)
            return
        for dial in list(self.dials.by_route.values()):
            if dial.peer == peer:
                self.hang_up(dial)  # it may have asked for this session just now

    def broken(
        self, link: Link, reason: str, refused: bool, now: float, events: list[Event]
    ) -> None:
        """The link's connection is gone: keep the session, dial again if it was us."""
        assert link.route is not None
        route = link.route
        del self.routes[route]
        link.disconnect()
        self._orphan(link, route, f"its relay can't be reached: {reason}")
        dial = self.dials.by_route.get(route)
        if dial is not None:
            self.hang_up(dial)
            dial.pause_s = REDIAL_S
            self.pause(dial, now)
        else:
            self.drop(route)
        events.append(Away(link.peer.instance, reason, refused))

    def _unroute(self, link: Link) -> None:
        """Take a link off its connection, since it gets another one."""
        if link.route is None:
            return
        old = link.route
        self.routes.pop(old, None)
        link.disconnect()
        self._orphan(link, old, "its relay has a new connection")
        self._close(old)

    def _orphan(self, relay: Link, route: Route, reason: str) -> None:
        """The connection to a relay is gone: so are those to the peers behind it."""
        if relay.peer.role != "relay":
            return
        self.trunks.close(route)
        for child in (*self.routes, *self.dials.by_route):
            if not isinstance(child, tuple) or child[0] != route:
                continue
            link, dial = self.routes.get(child), self.dials.by_route.get(child)
            if link is not None:
                self.broken(link, reason, False, relay.heard, self.news)
            elif dial is not None:
                self.hang_up(dial)
        if self.news:
            self.next_round = 0.0

    def with_news(self, events: list[Event]) -> list[Event]:
        """Put what has happened to peers behind relays first."""
        if not self.news:
            return events
        news, self.news = self.news, []
        return news + events

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        for link in self.links.values():
            link.check()
        for route in (*self.routes, *self.dials.by_route):
            assert all(relay in self.routes for relay in above(route)), "its relay is gone"
        assert all(dial.route == route for route, dial in self.dials.by_route.items())
        relays = {route for route, link in self.routes.items() if link.peer.role == "relay"}
        direct = {each for each in relays if not isinstance(each, tuple)}
        assert self.trunks.by_route.keys() == direct
        assert all(self.routes[link.route] is link for link in self.links.values() if link.route)
        self.trunks.check()
