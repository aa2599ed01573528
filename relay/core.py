"""The relay: it brings peers to a broker where neither could reach the other.

It has one connection towards the broker, the trunk. Sessions go through it from end to end, so
it keeps nothing whose loss would cost anything: what a peer behind it (a child) says is passed
on with a number in front, undecoded. Pure: the transport, the time and the guard are passed in.

Its rule: the broker is told of each child, then of its end; whenever the trunk is another one,
all children are told to begin anew. Its parts:

`engagement`: which broker it works for. `trunk`: the connection to that, what goes up it, and
what is kept of what has come down. `callers`: who waits for one.
`connections`: those to the children, from first to last. `children`: who they are. `places`: what
is dialled for the broker; `introductions`: how it comes to know who is there.
`carrying`: what goes up and down; `downward`: what waits to go down, and for whom too much.
"""

from __future__ import annotations

from collections.abc import Callable

from dispy.protocol.arrivals import Arrival, Arrived, Down, HungUp, Route, Transport, Up
from dispy.protocol.doubts import Doubts
from dispy.protocol.errors import ProtocolError
from dispy.protocol.events import Away, Back, DialFailed, Event, Joined, Left
from dispy.protocol.exchange import ROUND_S, Exchange, unknown_time
from dispy.protocol.framecache import Shelf
from dispy.protocol.guard import NODES, OPEN, Guard
from dispy.protocol.handshake import LINKS_MAX
from dispy.protocol.link import RETRY_S
from dispy.protocol.messages import (
    DOCTOR,
    Cached,
    Hello,
    Identity,
    Nudge,
    Refused,
    Relayed,
    Unknown,
)
from dispy.protocol.wire import FRAMES_MAX, Codec

from .callers import Callers
from .carrying import Carrying
from .connections import Connections
from .engagement import Engagement
from .news import News
from .trunk import Trunk


class Relay:
    """All connections of a relay, and what passes between them.

    ``new_shelf`` makes room for frames that have come down the trunk and aren't in memory.
    """

    def __init__(
        self,
        identity: Identity,
        transport: Transport,
        name_session: Callable[[], str],
        new_shelf: Callable[[], Shelf],
        guard: Guard = OPEN,
        tell_time: Callable[[], float] = unknown_time,
    ) -> None:
        self.identity = identity
        self.exchange = Exchange(identity, transport, name_session, self._admit, guard, tell_time)
        self.malformed = 0  # messages dropped because they could not be understood
        self._guard = guard
        codec = Codec()
        self._engagement = Engagement()
        self._trunk = Trunk(codec, transport, new_shelf)
        self._callers = Callers()
        self._connections = Connections(transport, self._trunk, guard, codec)
        self._children = self._connections.children
        self._carrying = Carrying(self._trunk, self._connections)
        self._doubts = Doubts()
        self._retry_at = float("inf")
        self._now = 0.0  # when something arrived last

    # -- what a shell calls ----------------------------------------------------------------

    def dial_up(self, address: str) -> None:
        """Look for a broker, or a relay nearer to it, at this address."""
        self._engagement.home = address
        self._connections.next_round = 0.0

    def dial_down(self, address: str, instance: str = "") -> None:
        """Keep a node, or a relay behind this one, connected while there is an up-link.

        ``instance``: who is expected there. Of several addresses of the same only one is used.
        """
        if self._connections.places.add(address, instance):
            self._connections.next_round = 0.0

    def undial_down(self, address: str, instance: str) -> None:
        """Forget an address at which somebody was expected."""
        place = self._connections.places.hint(address, instance)
        if place is not None:
            self._connections.undial(place)

    def knows(self, instance: str) -> bool:
        """Whether this peer is behind the relay at present."""
        return self._children.knows(instance)

    @property
    def trunk(self) -> Route | None:
        """The connection towards the broker."""
        return self._trunk.route

    @property
    def broker(self) -> str:
        """The instance at the other end of the trunk, also while it's away; empty: none."""
        return self._engagement.broker

    @property
    def broker_name(self) -> str:
        """Its name."""
        return self._engagement.broker_name

    @property
    def is_full(self) -> bool:
        """Whether so much waits to go up that nothing more should be taken from children."""
        return self._trunk.is_full

    @property
    def has_room(self) -> bool:
        """Whether children may be listened to again."""
        return self._trunk.has_room

    @property
    def children(self) -> int:
        """How many peers are behind it at present."""
        return len(self._children)

    @property
    def news(self) -> list[News]:
        """What is for the log, until somebody takes it off this list."""
        return self._connections.news

    @property
    def failed(self) -> list[DialFailed]:
        """Addresses on either side that led nowhere, until somebody takes them off this list."""
        return self._connections.failed

    @property
    def gone(self) -> list[str]:
        """Instances that were behind it, until somebody takes them off this list."""
        return self._children.gone

    def receive(self, arrival: Arrival, now: float) -> None:
        """Handle what the transport has delivered."""
        self._now = now
        if isinstance(arrival, Arrived):
            self._on_frames(arrival, now)
            return
        if isinstance(arrival, Up) and self._connections.is_dialled(arrival.route):
            self._connections.up(arrival, now)
            return
        if isinstance(arrival, Down) and self._is_of_a_child(arrival, now):
            return
        if isinstance(arrival, HungUp):
            self._doubts.begin(now)
        self._handle(self.exchange.receive(arrival, now), now)

    def deadline(self) -> float:
        """When `tick` next has something to do, in seconds of the same clock as ``now``."""
        dues = self._connections.next_round, self._retry_at, self._doubts.next_at
        return min(*dues, self.exchange.deadline())

    def tick(self, now: float) -> None:
        """Dial, beat, and notice who has been silent or has waited for too long."""
        self._handle(self.exchange.tick(now), now)
        if self._doubts.are_due(now):
            self._try_accepted()
        if now < self._connections.next_round:
            return
        self._connections.next_round = now + ROUND_S
        self._seek_broker(now)
        if self.trunk is not None:
            self._connections.tick(now)
        for caller in self._callers.take_late(now):
            reason = f"relay {self.identity.name} has no broker at present"
            self._connections.say(caller.arrival.route, Refused(reason))

    def flush(self, now: float) -> None:
        """Hand over what waits, as far as the transport takes it."""
        self.exchange.flush(now)
        is_done = self._trunk.flush(now)
        is_done &= self._connections.downward.flush()
        self._retry_at = float("inf") if is_done else now + RETRY_S

    def stop(self, reason: str = "the relay was stopped") -> None:
        """Tell all that it is over."""
        self._end_trunk()
        for caller in self._callers.take_all():
            self._connections.say(caller.arrival.route, Refused(reason))
        for peer in list(self.exchange.links):
            self.exchange.goodbye(peer, reason)

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        self._engagement.check()
        self._trunk.check()
        self._callers.check()
        self._connections.check()
        assert self.trunk is None or (self.broker and not self._engagement.is_away)
        assert self.trunk is None or not self._callers

    # -- the broker ------------------------------------------------------------------------

    def _admit(self, identity: Identity) -> str:
        if identity.role == DOCTOR:
            whom = self.broker_name or "no broker at present"
            return f"this relay works for {whom}, and brings {self.children} peers to it"
        if identity.role != "broker":
            return f"a relay takes nodes, relays and brokers, not a {identity.role}"
        if not self._engagement.takes(identity.instance):
            return self._engagement.explain(self._now)
        return ""

    def _seek_broker(self, now: float) -> None:
        engagement = self._engagement
        if engagement.is_over(now):
            self.news.append(News(f"{self.broker_name} is given up: another may use this relay"))
            self.exchange.forget(self.broker)
            engagement.let_go()
        if engagement.home and engagement.dials_home:
            self.exchange.dial(engagement.home)
        elif engagement.home:
            self.exchange.undial(engagement.home)

    def _handle(self, events: list[Event], now: float) -> None:
        for event in events:
            if isinstance(event, Joined):
                self._on_joined(event, now)
            elif isinstance(event, Back):
                self.news.append(News(f"{self.broker_name} can be reached again"))
                self._engagement.back()
                self._begin_trunk(now)
            elif isinstance(event, Away) and event.peer == self.broker:
                if not self._engagement.is_away:  # else it was dialled once more
                    self._on_away(event.reason, now)
            elif isinstance(event, Left) and event.peer == self.broker:
                reason = event.reason or "it said goodbye"
                self.news.append(News(f"{self.broker_name} is gone: {reason}"))
                self._end_trunk()
                self._engagement.let_go()
            elif isinstance(event, DialFailed):
                self.failed.append(event)

    def _on_away(self, reason: str, now: float) -> None:
        self.news.append(News(f"{self.broker_name} can't be reached: {reason}"))
        self._end_trunk()
        self._engagement.away(now)

    def _on_joined(self, event: Joined, now: float) -> None:
        if not self._engagement.takes(event.peer):
            self.exchange.goodbye(event.peer, self._engagement.explain(self._now))
            return
        if event.identity.role != "broker":
            self.exchange.goodbye(event.peer, f"a relay can't work for a {event.identity.role}")
            self.news.append(News(f"{event.identity.name} is no broker", is_warning=True))
            return
        self._engagement.begin(event.identity, is_home=bool(event.address))
        self.news.append(News(f"working for {self.broker_name}"))
        self._begin_trunk(now)

    def _begin_trunk(self, now: float) -> None:
        """There is a new connection to the broker: bring all children to it."""
        self._end_trunk()
        self._trunk.begin(self.exchange.links[self.broker].route)
        self._connections.next_round = now
        for caller in self._callers.take_all():
            self._connections.bring(caller.arrival, caller.who)

    def _end_trunk(self) -> None:
        """The connection to the broker is gone, and so are those that were there for it."""
        self._connections.clear()
        self._trunk.end()

    # -- frames ----------------------------------------------------------------------------

    def _on_frames(self, arrival: Arrived, now: float) -> None:
        route = arrival.route
        if len(arrival.frames) > FRAMES_MAX:
            self.malformed += 1
            return
        if route == self.trunk:
            self._from_trunk(arrival, now)
            return
        child = self._children.by_route.get(route)
        try:
            if child is None:
                self._from_stranger(arrival, now)
            else:
                self._carrying.from_child(child, arrival.frames)
        except ProtocolError:
            self.malformed += 1

    def _from_trunk(self, arrival: Arrived, now: float) -> None:
        try:
            frame = self._connections.read(arrival.frames)
        except ProtocolError:
            frame = Unknown()  # the exchange looks at it once more, and says what is to be said
        if isinstance(frame, (Relayed, Cached)):
            self.exchange.links[self.broker].heard = now
            try:
                self._carrying.from_trunk(frame, arrival.frames, now)
            except ProtocolError:
                self.malformed += 1
        else:
            self._handle(self.exchange.receive(arrival, now), now)

    def _from_stranger(self, arrival: Arrived, now: float) -> None:
        """Look at what comes first over a connection: only children's Hellos are ours."""
        route = arrival.route
        if route in self._callers:
            return
        frame = self._connections.read(arrival.frames)
        if not isinstance(frame, Hello) or frame.identity.role not in NODES:
            self._handle(self.exchange.receive(arrival, now), now)
            return
        who = frame.identity
        reason = self._guard.refuse(frame, arrival.key, arrival.door) or self._is_too_much(arrival)
        if reason:
            self.news.append(News(f"{who.role} {who.name} is refused: {reason}", is_warning=True))
            self._connections.say(route, Refused(reason))
        elif self.trunk is None:
            self._callers.add(arrival, who, now)
        else:
            self._connections.bring(arrival, who)

    def _is_too_much(self, arrival: Arrived) -> str:
        """Say why a child isn't taken for whom there is a limit; empty: it is."""
        if len(arrival.frames) > 1:
            return "its Hello brings more than that"
        if len(self._callers) + len(self._children) >= LINKS_MAX:
            return f"relay {self.identity.name} has {LINKS_MAX} peers already"
        return ""

    # -- children --------------------------------------------------------------------------

    def _is_of_a_child(self, down: Down, now: float) -> bool:
        """Tell whether a connection that is gone was one of the other side, and see to that."""
        return self._connections.down(down, now) or self._callers.forget(down.route)

    def _try_accepted(self) -> None:
        """Say something to each peer that dialled in: the transport notices who is gone."""
        for route in (*self._children.by_route, *self._callers.routes):
            if isinstance(route, bytes):
                self._connections.say(route, Nudge())
