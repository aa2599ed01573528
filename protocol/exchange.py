"""All sessions of one process: heartbeats, reconnecting, who is alive.

It turns what a transport delivers into events for a core, and a core's messages into frames.
Pure: the transport, the time and the source of session names are passed in. After the
handshake it makes no difference which side dialled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .arrivals import Arrival, Arrived, Down, Route, Transport, Up, above
from .connections import Connections
from .dials import GREETING_S, REFUSED_PAUSE_S, Dial
from .doubts import Doubts
from .errors import Gap, ProtocolError
from .events import Away, DialFailed, Event, Left, Received
from .guard import OPEN, Guard
from .handshake import Handshake
from .introductions import Introductions
from .link import Link
from .messages import (
    CARRIED,
    Body,
    Buffer,
    Cached,
    Envelope,
    Frame,
    Goodbye,
    Hello,
    Identity,
    Large,
    Nudge,
    Refused,
    Relayed,
    Unknown,
    Welcome,
)
from .wire import FRAMES_MAX, INCOMPLETE_MAX_BYTES

ROUND_S = 0.25  # how often all links are looked at
RELAYS_MAX = 8  # one behind the other


def admit_all(identity: Identity) -> str:
    """Refuse nobody."""
    return ""


def unknown_time() -> float:
    """Tell no time: a shell that has a clock passes it."""
    return 0.0


class Exchange:
    """Every link of this process, by the peer's instance id.

    ``admit`` is asked about each new peer that dials in; a text is the reason to refuse it.
    Before that, ``guard`` examines whether it is who it says it is. ``tell_time`` is what a
    doctor compares its clock with.
    """

    def __init__(
        self,
        identity: Identity,
        transport: Transport,
        name_session: Callable[[], str],
        admit: Callable[[Identity], str] = admit_all,
        guard: Guard = OPEN,
        tell_time: Callable[[], float] = unknown_time,
    ) -> None:
        self._connections = Connections(transport, identity.role)
        self._handshake = Handshake(
            self._connections, identity, name_session, admit, guard, tell_time
        )
        self._introductions = Introductions(self._connections, self._handshake)
        self.links = self._connections.links
        self.malformed = 0  # messages dropped because they could not be understood
        self.incomplete_max_bytes = INCOMPLETE_MAX_BYTES  # a shell knows how much memory there is
        self._unconfirmed: dict[Link, None] = {}
        self._doubts = Doubts()

    @property
    def identity(self) -> Identity:
        """Who this process is to its peers."""
        return self._handshake.identity

    # -- what a shell calls --------------------------------------------------------------

    def ack_late(self) -> None:
        """Acknowledge what arrives only after `confirm`, in all sessions that begin from now on.

        Until then its sender keeps it, should this process be killed.
        """
        self._connections.acks_late = True

    def dial(self, address: str, expected: str = "", group: str = "") -> None:
        """Connect to an address, and again whenever the connection is lost.

        ``expected`` is the instance that is wanted there: no other may answer. All addresses
        that are dialled for one instance, or for one ``group``, lead to the same peer: they are
        tried at once, and the first that works is kept; `DialFailed` tells of the others.
        """
        if self._connections.dials.add(address, expected, group):
            self._connections.next_round = 0.0

    def undial(self, address: str, expected: str = "") -> None:
        """Don't try this address again; an established session goes on.

        With ``expected`` only if it is dialled for that instance, and no other purpose.
        """
        dial = self._connections.dials.remove(address, expected)
        if dial is not None and dial.route not in self._connections.routes:
            self._connections.hang_up(dial)

    def send(self, peer: str, message: Body) -> None:
        """Queue a message for a registered peer; a peer that left meanwhile gets nothing."""
        link = self.links.get(peer)
        if link is not None:
            link.send(message)
            self._connections.unflushed[link] = None

    def relay_at(self, address: str) -> str:
        """Return the instance of the relay that was dialled at an address; empty: none."""
        dial = self._connections.dials.at(address)
        if dial is None or dial.route is None:
            return ""
        link = self._connections.routes.get(dial.route)
        return "" if link is None or link.peer.role != "relay" else link.peer.instance

    def peers_via(self, relay: str) -> list[str]:
        """Return the peers that are behind a relay at present, those behind further ones first."""
        link = self.links.get(relay)
        if link is None or link.route is None:
            return []
        behind = [
            (len(above(route)), each.peer.instance)
            for route, each in self._connections.routes.items()
            if link.route in above(route)
        ]
        return [peer for _, peer in sorted(behind, reverse=True)]

    def is_behind(self, peer: str) -> bool:
        """Whether a peer has yet to take in much of what was said before."""
        link = self.links.get(peer)
        return link is not None and link.is_behind

    def flush(self, now: float) -> None:
        """Hand all that is queued over to the transport, one batch for each peer.

        Nothing before it tells a peer that what it has sent since the last call has arrived.
        """
        self._connections.flush(now)

    def confirm(self, now: float) -> None:
        """All that has arrived has been dealt with, as far as others will ever know."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for link in unconfirmed:
            link.confirm()
            if link.needs_flush(now):
                self._connections.unflushed[link] = None

    def is_sent(self, route: Route) -> bool:
        """Whether all that was to be said over a connection has been handed to the transport."""
        link = self._connections.routes.get(route)
        return link is None or link.is_sent

    def goodbye(self, peer: str, reason: str = "") -> None:
        """End a session for good: send what was to be said before, and tell the peer."""
        link = self.links.get(peer)
        if link is None:
            return
        if link.route is not None:
            now = link.heard  # the time makes no difference any more
            self._connections.greet(link.route)
            self._connections.flush_link(link, now)
            self._connections.say(link.route, Goodbye(reason))
            if isinstance(link.route, tuple):
                self._connections.flush_trunks(now)
        self.forget(peer)

    def forget(self, peer: str) -> None:
        """Drop a session and all that waits in it."""
        self._connections.forget(peer)

    def deadline(self) -> float:
        """When `tick` next has something to do, in seconds of the same clock as ``now``."""
        return min(self._connections.next_round, self._doubts.next_at)

    def tick(self, now: float) -> list[Event]:
        """Dial, beat, and notice who has been silent for too long."""
        connections = self._connections
        if self._doubts.are_due(now):
            connections.try_accepted(now)
        if now < connections.next_round:
            return connections.with_news([]) if connections.news else []
        connections.next_round = now + ROUND_S
        events: list[Event] = []
        for dial in connections.dials.all():
            self._tick_dial(dial, now, events)
        for link in list(self.links.values()):
            if link.owes_too_much:
                events += self._expel(link, "it asks for more and more, and takes in nothing")
            elif link.route is not None and now > link.heard + link.silence_s:
                reason = f"silent for {link.silence_s} s"
                connections.broken(link, reason, False, now, events)
            elif link.needs_flush(now):
                connections.unflushed[link] = None
        if connections.trunks.by_route:
            self._introductions.give_up(now)
        return connections.with_news(events)

    def receive(self, arrival: Arrival, now: float) -> list[Event]:
        """Handle what the transport has delivered."""
        if type(arrival) is Arrived:
            events = self._on_frames(arrival, now)
            return self._connections.with_news(events) if self._connections.news else events
        if isinstance(arrival, Up):
            return self._on_up(arrival, now)
        if isinstance(arrival, Down):
            return self._connections.with_news(self._on_down(arrival, now))
        self._doubts.begin(now)
        return []

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        self._connections.check()

    # -- connections ---------------------------------------------------------------------

    def _tick_dial(self, dial: Dial, now: float, events: list[Event]) -> None:
        connections = self._connections
        if dial.route is None:
            if connections.is_linked(dial):
                return  # the peer has dialled us meanwhile, or another address has worked
            if now >= dial.again_at:
                connections.dial(dial)
            else:
                connections.next_round = min(connections.next_round, dial.again_at)
        elif dial.waits:
            self._handshake.take_turn(dial, dial.route, now)
        elif dial.is_unanswered(now):
            connections.hang_up(dial)
            connections.pause(dial, now)
            reason = f"connected, but it didn't answer within {GREETING_S:g} s"
            events.append(DialFailed(dial.address, reason))

    def _on_up(self, up: Up, now: float) -> list[Event]:
        dial = self._connections.dials.by_route.get(up.route)
        if dial is not None:
            dial.key, dial.reached = up.key, up.address
            self._handshake.take_turn(dial, up.route, now)
        return []

    def _on_down(self, down: Down, now: float) -> list[Event]:
        connections = self._connections
        events: list[Event] = []
        dial = connections.dials.by_route.get(down.route)
        link = connections.routes.get(down.route)
        if link is not None:
            connections.broken(link, down.reason, down.refused, now, events)
        elif dial is not None:
            connections.hang_up(dial)
            connections.pause(dial, now, REFUSED_PAUSE_S if down.denied else 0.0)
            events.append(DialFailed(dial.address, down.reason))
            away = self.links.get(dial.peer)
            if dial.proven and away is not None and away.route is None:
                events.append(Away(dial.peer, down.reason, down.refused))
        return events

    # -- frames --------------------------------------------------------------------------

    def _on_frames(self, arrived: Arrived, now: float) -> list[Event]:
        route, frames = arrived.route, arrived.frames
        try:
            if not 0 < len(frames) <= FRAMES_MAX:
                raise ProtocolError("a message of no frames, or of very many")
            frame, larges = self._connections.codec.decode(frames[0])
            if type(frame) is Envelope:
                return self._on_envelope(route, frame, larges, frames, now)
            if isinstance(frame, Hello):
                return self._handshake.on_hello(arrived, frame, now)
            if isinstance(frame, Relayed):
                return self._on_relayed(route, frame, frames[1:], now)
            return self._on_frame(route, frame, now)
        except Gap as gap:
            return self._incomplete(route, str(gap), now)
        except ProtocolError as error:
            self.malformed += 1
            return self._offended(route, str(error))

    def _on_envelope(
        self,
        route: Route,
        envelope: Envelope,
        larges: list[Large],
        frames: Sequence[Buffer],
        now: float,
    ) -> list[Event]:
        connections = self._connections
        link = connections.routes.get(route)
        if link is None:
            connections.say(route, Unknown())
            return []
        messages = link.receive(envelope, larges, list(frames[1:]), now, len(frames[0]))
        if connections.acks_late:
            self._unconfirmed[link] = None
        if link not in connections.unflushed and link.needs_flush(now):
            connections.unflushed[link] = None
        if envelope.more:
            return self._limit_incomplete()
        return [Received(link.peer.instance, message) for message in messages]

    def _on_frame(self, route: Route, frame: Frame, now: float) -> list[Event]:
        connections = self._connections
        link = connections.routes.get(route)
        dial = connections.dials.by_route.get(route)
        if isinstance(frame, Welcome):
            return self._handshake.on_welcome(route, dial, frame, now)
        if isinstance(frame, Refused):
            return self._handshake.on_refused(dial, frame, now)
        is_greeted = dial is not None and dial.greeted_at is not None
        if isinstance(frame, Unknown) and is_greeted and isinstance(route, int):
            assert dial is not None
            connections.hang_up(dial)  # our Hello was lost at a relay: its trunk is another one
            connections.pause(dial, now)
        if link is None or isinstance(frame, Nudge):
            return []
        if isinstance(frame, Cached):
            raise ProtocolError("frames that have never come are left out")
        if isinstance(frame, Goodbye):
            self.forget(link.peer.instance)
            return [Left(link.peer.instance, frame.reason)]
        events: list[Event] = []
        reason = "the other side didn't know this connection"
        connections.broken(link, reason, False, now, events)
        return events

    def _on_relayed(
        self, route: Route, relayed: Relayed, frames: Sequence[Buffer], now: float
    ) -> list[Event]:
        """A relay passes something on, or tells of a peer behind it."""
        link = self._connections.routes.get(route)
        if link is None:
            self._connections.say(route, Unknown())
            return []
        if link.peer.role != "relay" or len(above(route)) >= RELAYS_MAX:
            raise ProtocolError("only a relay may bring others, and not through many more")
        link.heard = now
        if relayed.event == CARRIED:
            return self._on_frames(Arrived((route, relayed.child), frames), now)
        return self._introductions.receive(route, relayed, now)

    def _incomplete(self, route: Route, reason: str, now: float) -> list[Event]:
        """Messages were lost within a connection: start a new one, which brings them."""
        events: list[Event] = []
        self._connections.say(route, Unknown())
        self._connections.broken(self._connections.routes[route], reason, False, now, events)
        return events

    def _offended(self, route: Route, reason: str) -> list[Event]:
        """The peer broke the protocol: end its session, since resending would do it again."""
        link = self._connections.routes.get(route)
        return [] if link is None else self._expel(link, reason)

    def _expel(self, link: Link, reason: str) -> list[Event]:
        peer = link.peer.instance
        if link.route is not None:
            self._connections.say(link.route, Goodbye(f"protocol error: {reason}"))
        self.forget(peer)
        return [Left(peer, f"it broke the protocol: {reason}", True)]

    def _limit_incomplete(self) -> list[Event]:
        """See that payloads which never end don't fill the memory: who sends most of it leaves."""
        total = sum(link.incomplete_bytes for link in self.links.values())
        if total <= self.incomplete_max_bytes:
            return []
        worst = max(self.links.values(), key=lambda link: link.incomplete_bytes)
        return self._expel(worst, f"payloads of {total} bytes are more than there is room for")
