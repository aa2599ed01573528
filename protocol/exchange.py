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
from .link import RETRY_S, SILENCE_S, Link
from .logs import Seldom
from .messages import (
    DOCTOR,
    VERSION_MAJOR,
    VERSION_MINOR,
    Body,
    Buffer,
    Envelope,
    Frame,
    Goodbye,
    Hello,
    Identity,
    Large,
    Refused,
    Unknown,
    Welcome,
)
from .wire import Codec

ROUND_S = 0.25  # how often all links are looked at
REDIAL_S = 0.1  # the first pause before dialling again; doubles
REDIAL_MAX_S = 2.0
REFUSED_PAUSE_S = 5.0  # a peer that said no is asked again, but not often
DOUBTFUL_ROUNDS = 3  # in which all accepted connections are tried, after one was closed
GREETING_S = 3.0  # how long a Hello may stay unanswered

log = logging.getLogger("dispy.exchange")

Route: TypeAlias = int | bytes


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
    """

    peer: str
    identity: Identity
    undelivered: list[Body]
    address: str = ""


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
    """A peer has ended the session, or broke the protocol; nothing of it is kept."""

    peer: str
    reason: str


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
        self.malformed = 0  # messages dropped because they could not be understood
        self._transport = transport
        self._admit = admit
        self._guard = guard
        self._refusals = Seldom()
        self._name_session = name_session
        self._codec = Codec()
        self._routes: dict[Route, Link] = {}
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
            dial = self._dialled.get(route)
            if dial is not None:
                self._hang_up(dial)
            else:
                self._transport.drop(route)
            return
        for dial in self._dials.values():
            if dial.peer == peer:
                self._hang_up(dial)  # it may have asked for this session just now

    def deadline(self) -> float:
        """When `tick` next has something to do, in seconds of the same clock as ``now``."""
        return self._next_round

    def tick(self, now: float) -> list[Event]:
        """Dial, beat, and notice who has been silent for too long."""
        if now < self._next_round:
            return []
        self._next_round = now + ROUND_S
        events: list[Event] = []
        for dial in list(self._dials.values()):
            self._tick_dial(dial, now, events)
        for link in list(self.links.values()):
            if link.route is not None and now > link.heard + SILENCE_S:
                reason = f"silent for {SILENCE_S} s"
                self._broken(link, reason, False, now, events)
            elif link.needs_flush(now):
                self._unflushed[link] = None
        if self._doubtful_rounds:
            self._try_accepted(now)
        return events

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
            return self._on_frames(arrival, now)
        if isinstance(arrival, Up):
            return self._on_up(arrival, now)
        if isinstance(arrival, Down):
            return self._on_down(arrival, now)
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
            self._transport.drop(dial.route)
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
        link = self.links.get(dial.peer)
        session, received = (link.session, link.confirmed) if link else ("", 0)
        me = self.identity
        proofs = self._guard.present(me.role, me.instance, dial.key)
        hello = Hello(VERSION_MAJOR, VERSION_MINOR, me, session, received, *proofs)
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
        dial = self._dialled.get(route)
        if dial is not None:
            self._hang_up(dial)
            dial.pause_s = REDIAL_S
            self._pause(dial, now)
        else:
            self._transport.drop(route)
        events.append(Away(link.peer.instance, reason, refused))

    # -- frames --------------------------------------------------------------------------

    def _on_frames(self, arrived: Arrived, now: float) -> list[Event]:
        route, frames = arrived.route, arrived.frames
        try:
            if not frames:
                raise ProtocolError("an empty message")
            frame, larges = self._codec.decode(frames[0])
            if isinstance(frame, Hello):
                return self._on_hello(arrived, frame, now)
            return self._on_frame(route, frame, larges, list(frames[1:]), now)
        except Gap as gap:
            return self._incomplete(route, str(gap), now)
        except ProtocolError as error:
            self.malformed += 1
            return self._offended(route, str(error))

    def _on_frame(
        self, route: Route, frame: Frame, larges: list[Large], chunks: list[Buffer], now: float
    ) -> list[Event]:
        link = self._routes.get(route)
        if isinstance(frame, Envelope):
            if link is None:
                self._say(route, Unknown())
                return []
            messages = link.receive(frame, larges, chunks, now)
            if self.acks_late:
                self._unconfirmed[link] = None
            if link.needs_flush(now):
                self._unflushed[link] = None
            return [Received(link.peer.instance, message) for message in messages]
        dial = self._dialled.get(route)
        if isinstance(frame, Welcome):
            return self._on_welcome(route, dial, frame, now)
        if isinstance(frame, Refused):
            return self._on_refused(dial, frame, now)
        if link is None:
            return []
        if isinstance(frame, Goodbye):
            self.forget(link.peer.instance)
            return [Left(link.peer.instance, frame.reason)]
        events: list[Event] = []
        self._broken(link, "the other side didn't know this connection", False, now, events)
        return events

    def _on_hello(self, arrived: Arrived, hello: Hello, now: float) -> list[Event]:
        route = arrived.route
        if route in self._routes:
            return []  # said twice: there is one Hello for each connection
        reason = self._refusal(hello) or self._suspicion(arrived, hello, now)
        if not reason and hello.identity.role == DOCTOR:
            engaged = self._admit(hello.identity)
            self._say(route, Refused(engaged, self.identity, self.tell_time()))
            return []
        reason = reason or self._admit(hello.identity)
        if reason:
            self._say(route, Refused(reason))
            return []
        peer = hello.identity.instance
        link = self.links.get(peer)
        if link is not None and link.can_resume(hello.session, hello.received):
            self._unroute(link)
            link.connect(route, link.epoch + 1, hello.received, now)
            events: list[Event] = [Back(peer)]
        else:
            session = self._name_session()
            link, events = self._begin(hello.identity, session, route, 1, now)
        self._routes[route] = link
        self._unflushed[link] = None
        welcome = Welcome(
            min(VERSION_MINOR, hello.minor),
            self.identity,
            link.session,
            link.epoch,
            link.confirmed,
            self._guard.token,
        )
        self._greetings.append((route, welcome))
        return events

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
        reason = self._guard.refuse(hello, arrived.key, arrived.door)
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
        reason = self._guard.refuse_instance(peer, welcome.token)
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
        self._routes[route] = link
        self._unflushed[link] = None
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
        return link, [Joined(identity.instance, identity, undelivered, address)]

    def _unroute(self, link: Link) -> None:
        """The newest connection wins: take the link off its older one."""
        if link.route is None:
            return
        old = link.route
        self._routes.pop(old, None)
        link.disconnect()
        dial = self._dialled.get(old)
        if dial is not None:
            self._hang_up(dial)
        else:
            self._transport.drop(old)

    def _on_refused(self, dial: Dial | None, refused: Refused, now: float) -> list[Event]:
        if dial is None:
            return []
        self._hang_up(dial)
        self._pause(dial, now, REFUSED_PAUSE_S)
        return [DialFailed(dial.address, f"refused: {refused.reason}")]

    def _incomplete(self, route: Route, reason: str, now: float) -> list[Event]:
        """Messages were lost within a connection: start a new one, which brings them."""
        events: list[Event] = []
        self._say(route, Unknown())
        self._broken(self._routes[route], reason, False, now, events)
        return events

    def _offended(self, route: Route, reason: str) -> list[Event]:
        """The peer broke the protocol: end its session, since resending would do it again."""
        link = self._routes.get(route)
        if link is None:
            return []
        peer = link.peer.instance
        self._say(route, Goodbye(f"protocol error: {reason}"))
        self.forget(peer)
        return [Left(peer, f"it broke the protocol: {reason}")]

    def _greet(self, only: Route | None = None) -> None:
        greetings, self._greetings = self._greetings, []
        for route, greeting in greetings:
            if only not in (None, route):
                self._greetings.append((route, greeting))
            elif route in self._routes or route in self._dialled:  # else it is gone by now
                self._say(route, greeting)

    def _say(self, route: Route, frame: Frame) -> None:
        header, _ = self._codec.encode(frame)
        self._transport.send(route, [header])

    def _flush(self, link: Link, now: float) -> None:
        route = link.route
        if route is None:
            return
        link.flush(now, partial(self._transport.send, route))
        if link.blocked:
            self._unflushed[link] = None
            self._next_round = min(self._next_round, now + RETRY_S)
