"""All sessions of one process: handshakes, heartbeats, reconnecting, who is alive.

It turns what a transport delivers into events for a core, and a core's messages into frames.
Pure: the transport, the time and the source of session names are passed in. After the
handshake it makes no difference which side dialled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

from .errors import Gap, ProtocolError
from .guard import OPEN, Guard
from .link import RELAYED_SILENCE_S, RETRY_S, Link
from .link import Route as Route
from .logs import Seldom
from .messages import (
    CARRIED,
    DOCTOR,
    INTRODUCED,
    LOST,
    MARK,
    MARKED,
    VERSION_MAJOR,
    VERSION_MINOR,
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
from .trunks import Trunks
from .wire import FRAMES_MAX, Codec

ROUND_S = 0.25  # how often all links are looked at
REDIAL_S = 0.02  # the first pause before dialling again; doubles
REDIAL_MAX_S = 2.0
REFUSED_PAUSE_S = 5.0  # a peer that said no is asked again, but not often
DOUBTFUL_ROUNDS = 3  # in which all accepted connections are tried, after one was closed
GREETING_S = 3.0  # how long a Hello may stay unanswered
RELAYS_MAX = 8  # one behind the other
RELAYED_ROLES = frozenset({"node", "relay"})
INTRODUCED_MAX = 10_000  # addresses behind relays of which is known who was there
DIALLED_MAX = 10_000  # connections; beyond that nobody whom a relay has dialled is greeted
LINKS_MAX = 20_000  # peers that are registered or may come back
INCOMPLETE_MAX_BYTES = 16 << 30  # of payloads of all peers that have come in part: for nonsense
RELAYED_RETRY_S = 0.05  # how soon to try again when a trunk takes no more, unless it says so

log = logging.getLogger("dispy.exchange")


class Up(NamedTuple):
    """A dialled connection is there. ``key``: our public key on it; empty: not encrypted."""

    route: Route
    key: bytes = b""


class Down(NamedTuple):
    """A connection is gone, or could not be made; its route is never used again."""

    route: Route
    reason: str
    refused: bool = False  # nothing listens there: the peer's process is gone
    denied: bool = False  # the secrets don't fit, so there is no hurry to try again


class HungUp(NamedTuple):
    """One of the accepted connections was closed; a ROUTER can't tell which."""


class Arrived(NamedTuple):
    """The frames of one message.

    ``key``: the peer's public key, unless the connection isn't encrypted or was dialled.
    ``door``: where it has come in, as `Guard` counts them.
    """

    route: Route
    frames: Sequence[Buffer]
    key: bytes = b""
    door: int = 0


Arrival: TypeAlias = Up | Down | HungUp | Arrived


class Transport(Protocol):
    """What carries frames: sockets, or a simulation of them."""

    def dial(self, address: str) -> Route:
        """Begin to connect; `Up` or `Down` follows."""

    def drop(self, route: Route) -> None:
        """Close a dialled connection; forget one that was accepted."""

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        """Send without waiting; False when there is no room now. A vanished peer: `Down`."""


class Joined(NamedTuple):
    """A peer has registered.

    ``undelivered``: what an earlier session with the same instance could not deliver.
    ``address``: what was dialled to reach it; empty when the peer dialled.
    ``via``: the name of the relay that it is behind.
    """

    peer: str
    identity: Identity
    undelivered: list[Body]
    address: str = ""
    via: str = ""


class Back(NamedTuple):
    """A peer that was away is back, and nothing was lost."""

    peer: str


class Away(NamedTuple):
    """A peer can't be reached; what is sent to it waits.

    ``gone``: certainly for ever, since nothing listens at its door any more.
    """

    peer: str
    reason: str
    gone: bool = False


class Left(NamedTuple):
    """A peer has ended the session, or ``offended`` against the protocol; nothing of it is kept."""

    peer: str
    reason: str
    offended: bool = False


class Received(NamedTuple):
    """A message of a registered peer."""

    peer: str
    message: Body


class DialFailed(NamedTuple):
    """An address didn't lead to a peer this time; it is tried again."""

    address: str
    reason: str


Event: TypeAlias = Joined | Back | Away | Left | Received | DialFailed


@dataclass(eq=False)
class Dial:
    """An address that is kept connected."""

    address: str
    route: Route | None = None
    peer: str = ""  # the instance that answered last, or that is expected
    again_at: float = 0.0  # while there is no route: when to try next
    pause_s: float = REDIAL_S
    greeted_at: float | None = None  # waiting for the answer to a Hello since
    expected: str = ""  # the only instance that is wanted there; empty: any
    proven: bool = False  # a peer has answered there
    key: bytes = b""  # ours, on the present connection
    waits: bool = False  # connected; says Hello should another address of its group fail
    rivals: list[Dial] = field(default_factory=list)  # its group: one of them is enough


def admit_all(identity: Identity) -> str:
    """Refuse nobody."""
    return ""


def unknown_time() -> float:
    """Tell no time: a shell that has a clock says so."""
    return 0.0


class Exchange:
    """Every link of this process, by the peer's instance id.

    ``admit`` is asked about each new peer that dials in; a text is the reason to refuse it.
    Before that, ``guard`` examines whether it is who it says it is.
    With ``acks_late``, what arrives is acknowledged only after `confirm`: until then its sender
    keeps it, should this process be killed.
    """

    def __init__(
        self,
        identity: Identity,
        transport: Transport,
        name_session: Callable[[], str],
        admit: Callable[[Identity], str] = admit_all,
        guard: Guard = OPEN,
    ) -> None:
        self.identity = identity
        self.tell_time = unknown_time  # what a doctor compares its clock with
        self.links: dict[str, Link] = {}
        self.acks_late = False
        self.incomplete_max_bytes = INCOMPLETE_MAX_BYTES  # a shell knows how much memory there is
        self.malformed = 0  # messages dropped because they could not be understood
        self._transport = transport
        self._admit = admit
        self._guard = guard
        self._refusals = Seldom()
        self._name_session = name_session
        self._codec = Codec()
        self._routes: dict[Route, Link] = {}
        self._trunks = Trunks(self._codec, transport.send)
        self._introduced: dict[str, str] = {}  # who was at an address behind a relay
        self._news: list[Event] = []  # of peers behind a relay, which come before its own
        self._dials: dict[str, Dial] = {}
        self._dialled: dict[Route, Dial] = {}
        self._groups: dict[str, list[Dial]] = {}  # dials that lead to the same peer
        self._unflushed: dict[Link, None] = {}  # in order, so that runs can be repeated
        self._unconfirmed: dict[Link, None] = {}
        # Greetings say what has arrived, so they wait for `flush` as all other acknowledgements.
        self._greetings: list[tuple[Route, Hello | Welcome]] = []
        self._next_round = 0.0
        self._doubtful_rounds = 0

    # -- what a shell calls --------------------------------------------------------------

    def dial(self, address: str, expected: str = "", group: str = "") -> None:
        """Connect to an address, and again whenever the connection is lost.

        ``expected`` is the instance that is wanted there: no other may answer. All addresses
        that are dialled for one instance, or for one ``group``, lead to the same peer: they are
        tried at once, and the first that works is kept; `DialFailed` tells of the others.
        """
        if address in self._dials:
            if not expected:
                self._dials[address].expected = ""  # wanted now whoever answers
            return
        group = group or expected
        rivals = self._groups.setdefault(group, []) if group else []
        known = next((each.peer for each in rivals), expected)
        dial = Dial(address, peer=known, expected=expected, rivals=rivals)
        rivals.append(dial)
        self._dials[address] = dial
        self._next_round = 0.0

    def undial(self, address: str, expected: str = "") -> None:
        """Don't try this address again; an established session goes on.

        With ``expected`` only if it is dialled for that instance, and no other purpose.
        """
        dial = self._dials.get(address)
        if dial is None or expected not in ("", dial.expected):
            return
        del self._dials[address]
        if dial in dial.rivals:
            dial.rivals.remove(dial)
        if not dial.rivals:
            self._groups = {name: group for name, group in self._groups.items() if group}
        if dial.route is not None and dial.route not in self._routes:
            self._hang_up(dial)

    def send(self, peer: str, message: Body) -> None:
        """Queue a message for a registered peer; a peer that left meanwhile gets nothing."""
        link = self.links.get(peer)
        if link is not None:
            link.send(message)
            self._unflushed[link] = None

    def relay_at(self, address: str) -> str:
        """Return the instance of the relay that was dialled at an address; empty: none."""
        dial = self._dials.get(address)
        link = None if dial is None or dial.route is None else self._routes.get(dial.route)
        return "" if link is None or link.peer.role != "relay" else link.peer.instance

    def peers_via(self, relay: str) -> list[str]:
        """Return the peers that are behind a relay at present, those behind further ones first."""
        link = self.links.get(relay)
        if link is None or link.route is None:
            return []
        behind = [
            (len(_above(route)), each.peer.instance)
            for route, each in self._routes.items()
            if link.route in _above(route)
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
        self._greet()
        unflushed, self._unflushed = self._unflushed, {}
        for link in unflushed:
            self._flush(link, now)
        if self._trunks:
            self._flush_trunks(now)

    def _flush_trunks(self, now: float) -> None:
        """Send what may go over trunks, and fill up what waits for them; links take turns."""
        while self._trunks.flush(now):
            blocked = [link for link in self._unflushed if isinstance(link.route, tuple)]
            for link in blocked:
                del self._unflushed[link]
                self._flush(link, now)
            if blocked and blocked[0] in self._unflushed:
                del self._unflushed[blocked[0]]
                self._unflushed[blocked[0]] = None
        if self._trunks.are_stuck:
            self._next_round = min(self._next_round, now + RETRY_S)

    def confirm(self, now: float) -> None:
        """All that has arrived has been dealt with, as far as others will ever know."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for link in unconfirmed:
            link.confirm()
            if link.needs_flush(now):
                self._unflushed[link] = None

    def is_sent(self, route: Route) -> bool:
        """Whether all that was to be said over a connection has been handed to the transport."""
        link = self._routes.get(route)
        return link is None or link.is_sent

    def goodbye(self, peer: str, reason: str = "") -> None:
        """End a session for good: send what was to be said before, and tell the peer."""
        link = self.links.get(peer)
        if link is not None:
            if link.route is not None:
                self._greet(link.route)
                self._flush(link, link.heard)  # the time makes no difference any more
                self._say(link.route, Goodbye(reason))
                if isinstance(link.route, tuple):
                    self._flush_trunks(link.heard)
            self.forget(peer)

    def forget(self, peer: str) -> None:
        """Drop a session and all that waits in it."""
        link = self.links.pop(peer, None)
        if link is None:
            return
        self._unflushed.pop(link, None)
        route = link.route
        link.disconnect()
        if route is not None:
            del self._routes[route]
            self._orphan(link, route, "its relay has left")
            dial = self._dialled.get(route)
            if dial is not None:
                self._hang_up(dial)
            else:
                self._drop(route)
            return
        for dial in list(self._dialled.values()):
            if dial.peer == peer:
                self._hang_up(dial)  # it may have asked for this session just now

    def deadline(self) -> float:
        """When `tick` next has something to do, in seconds of the same clock as ``now``."""
        return self._next_round

    def tick(self, now: float) -> list[Event]:
        """Dial, beat, and notice who has been silent for too long."""
        if now < self._next_round:
            return self._with_news([])
        self._next_round = now + ROUND_S
        events: list[Event] = []
        for dial in list(self._dials.values()):
            self._tick_dial(dial, now, events)
        for link in list(self.links.values()):
            if link.owes_too_much:
                events += self._expel(link, "it asks for more and more, and takes in nothing")
            elif link.route is not None and now > link.heard + link.silence_s:
                reason = f"silent for {link.silence_s} s"
                self._broken(link, reason, False, now, events)
            elif link.needs_flush(now):
                self._unflushed[link] = None
        if self._doubtful_rounds:
            self._try_accepted(now)
        if self._trunks:
            self._give_up_introduced(now)
        return self._with_news(events)

    def _try_accepted(self, now: float) -> None:
        """Say something to each peer that dialled in: the transport notices who is gone."""
        self._doubtful_rounds -= 1
        self._greet()
        for route, link in list(self._routes.items()):
            if isinstance(route, bytes):
                link.beat(now, partial(self._transport.send, route))

    def receive(self, arrival: Arrival, now: float) -> list[Event]:
        """Handle what the transport has delivered."""
        if isinstance(arrival, Arrived):
            return self._with_news(self._on_frames(arrival, now))
        if isinstance(arrival, Up):
            return self._on_up(arrival, now)
        if isinstance(arrival, Down):
            return self._with_news(self._on_down(arrival, now))
        self._doubtful_rounds = DOUBTFUL_ROUNDS
        self._next_round = now
        return []

    # -- connections ---------------------------------------------------------------------

    def _tick_dial(self, dial: Dial, now: float, events: list[Event]) -> None:
        if dial.route is None:
            if self._is_linked(dial):
                return  # the peer has dialled us meanwhile, or another address has worked
            if now >= dial.again_at:
                dial.route = self._transport.dial(dial.address)
                self._dialled[dial.route] = dial
            else:
                self._next_round = min(self._next_round, dial.again_at)
        elif dial.waits:
            self._take_turn(dial, dial.route, now)
        elif dial.greeted_at is not None and now > dial.greeted_at + GREETING_S:
            self._hang_up(dial)
            self._pause(dial, now)
            reason = f"connected, but it didn't answer within {GREETING_S:g} s"
            events.append(DialFailed(dial.address, reason))

    def _hang_up(self, dial: Dial) -> None:
        if dial.route is not None:
            del self._dialled[dial.route]
            self._drop(dial.route)
            dial.route = None
        dial.greeted_at = None
        dial.waits = False

    def _pause(self, dial: Dial, now: float, pause_s: float = 0.0) -> None:
        dial.again_at = now + max(dial.pause_s, pause_s)
        dial.pause_s = min(dial.pause_s * 2, REDIAL_MAX_S)
        self._next_round = min(self._next_round, dial.again_at)

    def _on_up(self, up: Up, now: float) -> list[Event]:
        dial = self._dialled.get(up.route)
        if dial is not None:
            dial.key = up.key
            self._take_turn(dial, up.route, now)
        return []

    def _is_linked(self, dial: Dial) -> bool:
        link = self.links.get(dial.peer)
        return link is not None and link.route is not None

    def _take_turn(self, dial: Dial, route: Route, now: float) -> None:
        """Say Hello, unless another address of the same peer is about to work.

        Two at once would begin two sessions with it.
        """
        if self._is_linked(dial):
            self._hang_up(dial)
            return
        dial.waits = any(rival.greeted_at is not None for rival in dial.rivals)
        if dial.waits:
            return
        self._say_hello(dial, route, now)

    def _say_hello(self, dial: Dial, route: Route, now: float) -> None:
        link = self.links.get(dial.peer)
        session, received = (link.session, link.confirmed) if link else ("", 0)
        me = self.identity
        proofs = self._guard.present(me.role, me.instance, dial.key)
        relayed = isinstance(route, tuple)
        hello = Hello(VERSION_MAJOR, VERSION_MINOR, me, session, received, *proofs, relayed)
        dial.greeted_at = now
        self._greetings.append((route, hello))

    def _on_down(self, down: Down, now: float) -> list[Event]:
        events: list[Event] = []
        dial = self._dialled.get(down.route)
        link = self._routes.get(down.route)
        if link is not None:
            self._broken(link, down.reason, down.refused, now, events)
        elif dial is not None:
            self._hang_up(dial)
            self._pause(dial, now, REFUSED_PAUSE_S if down.denied else 0.0)
            events.append(DialFailed(dial.address, down.reason))
            away = self.links.get(dial.peer)
            if dial.proven and away is not None and away.route is None:
                events.append(Away(dial.peer, down.reason, down.refused))
        return events

    def _broken(
        self, link: Link, reason: str, refused: bool, now: float, events: list[Event]
    ) -> None:
        """The link's connection is gone: keep the session, dial again if it was us."""
        assert link.route is not None
        route = link.route
        del self._routes[route]
        link.disconnect()
        self._orphan(link, route, f"its relay can't be reached: {reason}")
        dial = self._dialled.get(route)
        if dial is not None:
            self._hang_up(dial)
            dial.pause_s = REDIAL_S
            self._pause(dial, now)
        else:
            self._drop(route)
        events.append(Away(link.peer.instance, reason, refused))

    # -- frames --------------------------------------------------------------------------

    def _on_frames(self, arrived: Arrived, now: float) -> list[Event]:
        route, frames = arrived.route, arrived.frames
        try:
            if not 0 < len(frames) <= FRAMES_MAX:
                raise ProtocolError("a message of no frames, or of very many")
            frame, larges = self._codec.decode(frames[0])
            if isinstance(frame, Hello):
                return self._on_hello(arrived, frame, now)
            if isinstance(frame, Relayed):
                return self._on_relayed(route, frame, frames[1:], now)
            return self._on_frame(route, frame, larges, frames, now)
        except Gap as gap:
            return self._incomplete(route, str(gap), now)
        except ProtocolError as error:
            self.malformed += 1
            return self._offended(route, str(error))

    def _on_frame(
        self, route: Route, frame: Frame, larges: list[Large], frames: Sequence[Buffer], now: float
    ) -> list[Event]:
        link = self._routes.get(route)
        if isinstance(frame, Envelope):
            if link is not None:
                return self._on_envelope(link, frame, larges, frames, now)
            self._say(route, Unknown())
            return []
        dial = self._dialled.get(route)
        if isinstance(frame, Welcome):
            return self._on_welcome(route, dial, frame, now)
        if isinstance(frame, Refused):
            return self._on_refused(dial, frame, now)
        if link is None or isinstance(frame, Nudge):
            return []
        if isinstance(frame, Cached):
            raise ProtocolError("frames that have never come are left out")
        if isinstance(frame, Goodbye):
            self.forget(link.peer.instance)
            return [Left(link.peer.instance, frame.reason)]
        events: list[Event] = []
        self._broken(link, "the other side didn't know this connection", False, now, events)
        return events

    def _on_envelope(
        self, link: Link, frame: Envelope, larges: list[Large], frames: Sequence[Buffer], now: float
    ) -> list[Event]:
        messages = link.receive(frame, larges, list(frames[1:]), now, len(frames[0]))
        if self.acks_late:
            self._unconfirmed[link] = None
        if link.needs_flush(now):
            self._unflushed[link] = None
        if frame.more:
            return self._limit_incomplete()
        return [Received(link.peer.instance, message) for message in messages]

    def _on_hello(self, arrived: Arrived, hello: Hello, now: float) -> list[Event]:
        route = arrived.route
        if route in self._routes:
            return []  # said twice: there is one Hello for each connection
        reason = self._refusal(hello) or self._suspicion(arrived, hello, now)
        if not reason and hello.identity.role == DOCTOR:
            engaged = self._admit(hello.identity)
            self._say(route, Refused(engaged, self.identity, self.tell_time()))
            return []
        reason = reason or self._admit(hello.identity) or self._lack_of_room(hello.identity)
        if reason:
            self._say(route, Refused(reason))
            return []
        peer = hello.identity.instance
        if self._have_crossed(peer):
            return []
        link = self.links.get(peer)
        if link is not None and link.can_resume(hello.session, hello.received):
            self._unroute(link)
            link.connect(route, link.epoch + 1, hello.received, now)
            events: list[Event] = [Back(peer)]
        else:
            session = self._name_session()
            link, events = self._begin(hello.identity, session, route, 1, now)
        self._enter(route, link, hello.relayed)
        welcome = Welcome(
            min(VERSION_MINOR, hello.minor),
            self.identity,
            link.session,
            link.epoch,
            link.confirmed,
            self._guard.token,
            isinstance(route, tuple),
        )
        self._greetings.append((route, welcome))
        return events

    def _lack_of_room(self, identity: Identity) -> str:
        if len(self.links) < LINKS_MAX or identity.instance in self.links:
            return ""
        return f"{self.identity.name} has {LINKS_MAX} peers already, and takes no more"

    def _have_crossed(self, peer: str) -> bool:
        """Whether each side has said Hello to the other, and ours is the one that counts.

        Else each might keep the connection that the other gives up.
        """
        ours = [dial for dial in self._groups.get(peer, ()) if dial.greeted_at is not None]
        if ours and self.identity.instance < peer:
            return True
        for dial in ours:
            self._hang_up(dial)
        return False

    def _refusal(self, hello: Hello) -> str:
        if hello.major != VERSION_MAJOR:
            return (
                f"{self.identity.name} speaks version {VERSION_MAJOR} of the protocol "
                f"(dispy {self.identity.software}), {hello.identity.name} version {hello.major} "
                f"(dispy {hello.identity.software}): install the same release on both"
            )
        return ""

    def _suspicion(self, arrived: Arrived, hello: Hello, now: float) -> str:
        """Return why a peer can't be who it says."""
        if isinstance(arrived.route, tuple):
            return self._doubt(arrived.route, hello.identity, hello.token)
        reason = self._guard.refuse(hello, arrived.key, arrived.door)
        reason = reason or self._change(hello.identity)
        if reason and self._refusals.allows((hello.identity.name, reason), now):
            who = f"{hello.identity.role!r} {hello.identity.name!r}"
            log.warning("%s at door %d was refused: %s", who, arrived.door, reason)
        return reason

    def _on_welcome(
        self, route: Route, dial: Dial | None, welcome: Welcome, now: float
    ) -> list[Event]:
        if route in self._routes:
            return []  # said twice
        if dial is None or dial.greeted_at is None:
            raise ProtocolError("a Welcome that nobody asked for")
        peer = welcome.identity.instance
        if isinstance(route, tuple):
            reason = self._doubt(route, welcome.identity, welcome.token)
        else:
            reason = self._guard.refuse_instance(peer, welcome.token)
            reason = reason or self._change(welcome.identity)
        if dial.expected not in ("", peer):
            reason = reason or "another process answers there than was found"
        if reason:
            return self._on_refused(dial, Refused(reason), now)
        link = self.links.get(peer)
        before, dial.peer = dial.peer, peer
        dial.greeted_at, dial.pause_s, dial.proven = None, REDIAL_S, True
        events: list[Event] = []
        if before and before != peer and before in self.links:
            self.forget(before)
            events.append(Left(before, "another process answers at its address now"))
        if link is not None and link.can_resume(welcome.session, welcome.received):
            self._unroute(link)
            link.connect(route, welcome.epoch, welcome.received, now)
            events.append(Back(peer))
        else:
            link, begun = self._begin(welcome.identity, welcome.session, route, welcome.epoch, now)
            events += begun
        self._enter(route, link, welcome.relayed)
        self._settle(dial)
        return events

    def _settle(self, dial: Dial) -> None:
        """An address has worked: those that lead to the same peer aren't needed now."""
        for rival in dial.rivals:
            rival.peer = dial.peer
            if rival is not dial and rival.route is not None:
                self._hang_up(rival)

    def _begin(
        self, identity: Identity, session: str, route: Route, epoch: int, now: float
    ) -> tuple[Link, list[Event]]:
        """Start a session; an earlier one with the same instance ends."""
        old = self.links.get(identity.instance)
        undelivered = old.undelivered() if old is not None else []
        if old is not None:
            self._unroute(old)
            self._unflushed.pop(old, None)
        link = Link(identity, session, self._codec, now, self.acks_late)
        link.connect(route, epoch, 0, now)
        self.links[identity.instance] = link
        dial = self._dialled.get(route)
        address = dial.address if dial is not None else ""
        via = self._routes[route[0]].peer.name if isinstance(route, tuple) else ""
        return link, [Joined(identity.instance, identity, undelivered, address, via)]

    def _enter(self, route: Route, link: Link, is_relayed: bool) -> None:
        """A link has a new connection, with a relay in between as far as the peer knows."""
        link.limit(is_relayed or isinstance(route, tuple))
        self._routes[route] = link
        self._unflushed[link] = None
        is_relay = link.peer.role == "relay"
        if is_relay or self.identity.role == "relay":
            link.silence_s = RELAYED_SILENCE_S
        if is_relay:
            self._trunks.open(route)
        if isinstance(route, tuple):
            self._trunks.enter(route)
            dial = self._dialled.get(route)
            if dial is not None:
                self._note_introduced(dial.address, link.peer.instance)

    def _unroute(self, link: Link) -> None:
        """The newest connection wins: take the link off its older one."""
        if link.route is None:
            return
        old = link.route
        self._routes.pop(old, None)
        link.disconnect()
        self._orphan(link, old, "its relay has a new connection")
        dial = self._dialled.get(old)
        if dial is not None:
            self._hang_up(dial)
        else:
            self._drop(old)

    def _on_refused(self, dial: Dial | None, refused: Refused, now: float) -> list[Event]:
        if dial is None:
            return []
        if isinstance(dial.route, tuple):
            log.info("%s, behind a relay, refused: %s", dial.address, refused.reason)
            self._trunks.drop(dial.route, refused=True)
            self._hang_up(dial)
            return []
        self._hang_up(dial)
        self._pause(dial, now, REFUSED_PAUSE_S)
        return [DialFailed(dial.address, f"refused: {refused.reason}")]

    # -- peers behind a relay --------------------------------------------------------------

    def _on_relayed(
        self, route: Route, relayed: Relayed, frames: Sequence[Buffer], now: float
    ) -> list[Event]:
        """A relay passes something on, or tells of a peer behind it."""
        link = self._routes.get(route)
        if link is None:
            self._say(route, Unknown())
            return []
        if link.peer.role != "relay" or len(_above(route)) >= RELAYS_MAX:
            raise ProtocolError("only a relay may bring others, and not through many more")
        link.heard = now
        child = (route, relayed.child)
        if relayed.event == CARRIED:
            return self._on_frames(Arrived(child, frames), now)
        if relayed.event == INTRODUCED:
            self._on_introduced(child, relayed.text, now)
        elif relayed.event == LOST:
            return self._on_lost(child, relayed, now)
        elif relayed.event == MARK:
            self._trunks.answer(route, relayed.child)
        elif relayed.event == MARKED:
            self._trunks.marked(route, relayed.child, now)
            self._next_round = min(self._next_round, now)
        return []

    def _on_introduced(self, route: tuple[Route, int], address: str, now: float) -> None:
        """A relay has dialled somebody for us: say Hello."""
        if route in self._routes or route in self._dialled or len(self._dialled) >= DIALLED_MAX:
            return
        dial = self._dialled[route] = Dial(address, route, self._introduced.get(address, ""))
        self._say_hello(dial, route, now)

    def _note_introduced(self, address: str, peer: str) -> None:
        self._introduced.pop(address, None)
        self._introduced[address] = peer
        if len(self._introduced) > INTRODUCED_MAX:
            del self._introduced[next(iter(self._introduced))]

    def _doubt(self, route: tuple[Route, int], identity: Identity, token: bytes) -> str:
        """Return why somebody behind a relay, which has examined it, can't be let in."""
        if identity.role not in RELAYED_ROLES:
            return f"a relay may bring nodes and relays, not a {identity.role}"
        if identity.instance in [self._routes[each].peer.instance for each in _above(route)]:
            return "a relay can't be behind itself"
        reason = self._guard.refuse_instance(identity.instance, token)
        return reason or self._change(identity)

    def _change(self, identity: Identity) -> str:
        """Return why a known peer can't be what it says now: nobody has two roles."""
        link = self.links.get(identity.instance)
        if link is None or identity.role in (link.peer.role, DOCTOR):
            return ""
        return f"it is a {link.peer.role}, and can't be a {identity.role} too"

    def _give_up_introduced(self, now: float) -> None:
        for route, dial in list(self._dialled.items()):
            is_late = dial.greeted_at is not None and now > dial.greeted_at + GREETING_S
            if is_late and isinstance(route, tuple):
                self._hang_up(dial)

    def _on_lost(self, route: tuple[Route, int], lost: Relayed, now: float) -> list[Event]:
        """A relay has lost a peer, or knows by now that one which it lost is gone for good."""
        trunk = self._trunks.of(route)
        link, dial = self._routes.get(route), self._dialled.get(route)
        assert trunk is not None
        trunk.missed(lost.text)
        events: list[Event] = []
        if link is not None:
            trunk.note_lost(route, link.peer.instance)
            self._broken(link, lost.text, lost.refused, now, events)
        elif dial is not None:
            self._hang_up(dial)
        elif lost.refused:
            away = self.links.get(trunk.lost.pop(route, ""))
            if away is not None and away.route is None:
                events.append(Away(away.peer.instance, lost.text, True))
        return events

    def _orphan(self, relay: Link, route: Route, reason: str) -> None:
        """The connection to a relay is gone: so are those to the peers behind it."""
        if relay.peer.role != "relay":
            return
        self._trunks.close(route)
        for child in (*self._routes, *self._dialled):
            if not isinstance(child, tuple) or child[0] != route:
                continue
            link, dial = self._routes.get(child), self._dialled.get(child)
            if link is not None:
                self._broken(link, reason, False, relay.heard, self._news)
            elif dial is not None:
                self._hang_up(dial)
        if self._news:
            self._next_round = 0.0

    def _with_news(self, events: list[Event]) -> list[Event]:
        if not self._news:
            return events
        news, self._news = self._news, []
        return news + events

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        for link in self.links.values():
            link.check()
        for route in (*self._routes, *self._dialled):
            assert all(above in self._routes for above in _above(route)), "its relay is gone"
        relays = {route for route, link in self._routes.items() if link.peer.role == "relay"}
        assert self._trunks.routes == {each for each in relays if not isinstance(each, tuple)}
        assert all(self._routes[link.route] is link for link in self.links.values() if link.route)
        self._trunks.check()

    def _incomplete(self, route: Route, reason: str, now: float) -> list[Event]:
        """Messages were lost within a connection: start a new one, which brings them."""
        events: list[Event] = []
        self._say(route, Unknown())
        self._broken(self._routes[route], reason, False, now, events)
        return events

    def _offended(self, route: Route, reason: str) -> list[Event]:
        """The peer broke the protocol: end its session, since resending would do it again."""
        link = self._routes.get(route)
        return [] if link is None else self._expel(link, reason)

    def _expel(self, link: Link, reason: str) -> list[Event]:
        peer = link.peer.instance
        if link.route is not None:
            self._say(link.route, Goodbye(f"protocol error: {reason}"))
        self.forget(peer)
        return [Left(peer, f"it broke the protocol: {reason}", True)]

    def _limit_incomplete(self) -> list[Event]:
        """See that payloads which never end don't fill the memory: who sends most of it leaves."""
        total = sum(link.incomplete_bytes for link in self.links.values())
        if total <= self.incomplete_max_bytes:
            return []
        worst = max(self.links.values(), key=lambda link: link.incomplete_bytes)
        return self._expel(worst, f"payloads of {total} bytes are more than there is room for")

    def _greet(self, only: Route | None = None) -> None:
        greetings, self._greetings = self._greetings, []
        for route, greeting in greetings:
            if only not in (None, route):
                self._greetings.append((route, greeting))
            elif route in self._routes or route in self._dialled:  # else it is gone by now
                self._say(route, greeting)

    def _say(self, route: Route, frame: Frame) -> None:
        header, _ = self._codec.encode(frame)
        if isinstance(route, tuple):
            self._trunks.send(route, [header])
        else:
            self._transport.send(route, [header])

    def _drop(self, route: Route) -> None:
        if isinstance(route, tuple):
            self._trunks.drop(route)
        else:
            self._transport.drop(route)

    def _flush(self, link: Link, now: float) -> None:
        route = link.route
        if route is None:
            return
        if isinstance(route, tuple):
            link.flush(now, partial(self._trunks.send, route))
            retry_s = RELAYED_RETRY_S
        else:
            link.flush(now, partial(self._transport.send, route))
            retry_s = RETRY_S
        if link.blocked:
            self._unflushed[link] = None
            self._next_round = min(self._next_round, now + retry_s)


def _above(route: Route) -> list[Route]:
    """Return the routes of the relays in between, the nearest to the peer first."""
    above: list[Route] = []
    while isinstance(route, tuple):
        route = route[0]
        above.append(route)
    return above
