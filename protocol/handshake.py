"""How two processes that are connected agree on a session: Hello, then Welcome or Refused.

Whoever has dialled says Hello. Who the other is, and whether it may come in, is decided here;
that a link has its connection then is `connections`' business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from .arrivals import Arrived, Route, above
from .connections import Connections
from .dials import REFUSED_PAUSE_S, Dial
from .errors import ProtocolError
from .events import Back, DialFailed, Event, Left
from .guard import Guard
from .logs import Seldom
from .messages import (
    DOCTOR,
    VERSION_MAJOR,
    VERSION_MINOR,
    Hello,
    Identity,
    Refused,
    Welcome,
)

LINKS_MAX = 20_000  # peers that are registered or may come back
RELAYED_ROLES = frozenset({"node", "relay"})

log = logging.getLogger("dispy.exchange")


class Handshake:
    """Greets those who were dialled, and answers those who dial in."""

    def __init__(
        self,
        connections: Connections,
        identity: Identity,
        name_session: Callable[[], str],
        admit: Callable[[Identity], str],
        guard: Guard,
        tell_time: Callable[[], float],
    ) -> None:
        self.identity = identity
        self._connections = connections
        self._name_session = name_session
        self._admit = admit
        self._guard = guard
        self._tell_time = tell_time
        self._refusals = Seldom()

    # -- the side that has dialled ---------------------------------------------------------

    def take_turn(self, dial: Dial, route: Route, now: float) -> None:
        """Say Hello, unless another address of the same peer is about to work.

        Two at once would begin two sessions with it.
        """
        if self._connections.is_linked(dial):
            self._connections.hang_up(dial)
            return
        dial.waits = any(rival.greeted_at is not None for rival in dial.rivals)
        if dial.waits:
            return
        self.say_hello(dial, route, now)

    def say_hello(self, dial: Dial, route: Route, now: float) -> None:
        """Ask for a session, or to go on with the one that there is."""
        link = self._connections.links.get(dial.peer)
        session, received = (link.session, link.confirmed) if link else ("", 0)
        me = self.identity
        proofs = self._guard.present(me.role, me.instance, dial.key)
        relayed = isinstance(route, tuple)
        hello = Hello(VERSION_MAJOR, VERSION_MINOR, me, session, received, *proofs, relayed)
        dial.greeted_at = now
        self._connections.greet_later(route, hello)

    def on_welcome(
        self, route: Route, dial: Dial | None, welcome: Welcome, now: float
    ) -> list[Event]:
        """The peer has accepted: begin the session, or go on with it."""
        connections = self._connections
        if route in connections.routes:
            return []  # said twice
        if dial is None or dial.greeted_at is None:
            raise ProtocolError("a Welcome that nobody asked for")
        reason = self._mistrust(route, dial, welcome)
        if reason:
            return self.on_refused(dial, Refused(reason), now)
        peer = welcome.identity.instance
        link = connections.links.get(peer)
        before = dial.answered(peer)
        events: list[Event] = []
        if before and before != peer and before in connections.links:
            connections.forget(before)
            events.append(Left(before, "another process answers at its address now"))
        if link is not None and link.can_resume(welcome.session, welcome.received):
            connections.resume(link, route, welcome.epoch, welcome.received, now)
            events.append(Back(peer))
        else:
            link, begun = connections.begin(
                welcome.identity, welcome.session, route, welcome.epoch, now
            )
            events += begun
        connections.enter(route, link, welcome.relayed)
        connections.settle(dial)
        return events

    def _mistrust(self, route: Route, dial: Dial, welcome: Welcome) -> str:
        """Return why this isn't whom we wanted."""
        peer = welcome.identity.instance
        if isinstance(route, tuple):
            reason = self._doubt(route, welcome.identity, welcome.token)
        else:
            reason = self._guard.refuse_instance(peer, welcome.token)
            reason = reason or self._change(welcome.identity)
        if dial.expected not in ("", peer):
            reason = reason or "another process answers there than was found"
        return reason

    def on_refused(self, dial: Dial | None, refused: Refused, now: float) -> list[Event]:
        """The peer has said no, or isn't who it should be."""
        if dial is None:
            return []
        if isinstance(dial.route, tuple):
            log.info("%s, behind a relay, refused: %s", dial.address, refused.reason)
            self._connections.trunks.drop(dial.route, refused=True)
            self._connections.hang_up(dial)
            return []
        self._connections.hang_up(dial)
        self._connections.pause(dial, now, REFUSED_PAUSE_S)
        return [DialFailed(dial.address, f"refused: {refused.reason}")]

    # -- the side that is dialled ----------------------------------------------------------

    def on_hello(self, arrived: Arrived, hello: Hello, now: float) -> list[Event]:
        """Somebody asks for a session, or to go on with the one that there is."""
        route, connections = arrived.route, self._connections
        if route in connections.routes:
            return []  # said twice: there is one Hello for each connection
        reason = self._refusal(hello) or self._suspicion(arrived, hello, now)
        if not reason and hello.identity.role == DOCTOR:
            engaged = self._admit(hello.identity)
            connections.say(route, Refused(engaged, self.identity, self._tell_time()))
            return []
        reason = reason or self._admit(hello.identity) or self._lack_of_room(hello.identity)
        if reason:
            connections.say(route, Refused(reason))
            return []
        peer = hello.identity.instance
        if self._have_crossed(peer):
            return []
        link = connections.links.get(peer)
        if link is not None and link.can_resume(hello.session, hello.received):
            connections.resume(link, route, link.epoch + 1, hello.received, now)
            events: list[Event] = [Back(peer)]
        else:
            link, events = connections.begin(hello.identity, self._name_session(), route, 1, now)
        connections.enter(route, link, hello.relayed)
        welcome = Welcome(
            min(VERSION_MINOR, hello.minor),
            self.identity,
            link.session,
            link.epoch,
            link.confirmed,
            self._guard.token,
            isinstance(route, tuple),
        )
        connections.greet_later(route, welcome)
        return events

    def _lack_of_room(self, identity: Identity) -> str:
        links = self._connections.links
        if len(links) < LINKS_MAX or identity.instance in links:
            return ""
        return f"{self.identity.name} has {LINKS_MAX} peers already, and takes no more"

    def _have_crossed(self, peer: str) -> bool:
        """Whether each side has said Hello to the other, and ours is the one that counts.

        Else each might keep the connection that the other gives up.
        """
        dials = self._connections.dials.group(peer)
        ours = [dial for dial in dials if dial.greeted_at is not None]
        if ours and self.identity.instance < peer:
            return True
        for dial in ours:
            self._connections.hang_up(dial)
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

    # -- both ------------------------------------------------------------------------------

    def _doubt(self, route: tuple[Route, int], identity: Identity, token: bytes) -> str:
        """Return why somebody behind a relay, which has examined it, can't be let in."""
        if identity.role not in RELAYED_ROLES:
            return f"a relay may bring nodes and relays, not a {identity.role}"
        routes = self._connections.routes
        if identity.instance in [routes[each].peer.instance for each in above(route)]:
            return "a relay can't be behind itself"
        reason = self._guard.refuse_instance(identity.instance, token)
        return reason or self._change(identity)

    def _change(self, identity: Identity) -> str:
        """Return why a known peer can't be what it says now: nobody has two roles."""
        link = self._connections.links.get(identity.instance)
        if link is None or identity.role in (link.peer.role, DOCTOR):
            return ""
        return f"it is a {link.peer.role}, and can't be a {identity.role} too"
