"""The relay: it brings peers to a broker where neither could reach the other.

It has one connection towards the broker, the trunk. Sessions go through it from end to end, so
it keeps nothing whose loss would cost anything: what a peer behind it (a child) says is passed
on with a number in front, undecoded. Pure: the transport, the time and the guard are passed in.

Its rule: the broker is told of each child, then of its end; whenever the trunk is another one,
all children are told to begin anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from dispy.protocol.arrivals import Arrival, Arrived, Down, Route, Transport, Up
from dispy.protocol.dials import GREETING_S, REDIAL_MAX_S, REDIAL_S, REFUSED_PAUSE_S
from dispy.protocol.errors import ProtocolError
from dispy.protocol.events import Away, Back, DialFailed, Event, Joined, Left
from dispy.protocol.exchange import DOUBTFUL_ROUNDS, ROUND_S, Exchange, unknown_time
from dispy.protocol.framecache import MISSED, Kept, Sent, Shelf
from dispy.protocol.guard import NODES, OPEN, Guard
from dispy.protocol.handshake import LINKS_MAX
from dispy.protocol.link import RELAYED_SILENCE_S, RETRY_S, SILENCE_S
from dispy.protocol.messages import (
    CARRIED,
    DOCTOR,
    DROPPED,
    INTRODUCED,
    LOST,
    MARK,
    MARKED,
    Buffer,
    Cached,
    Frame,
    Hello,
    Identity,
    Nudge,
    Refused,
    Relayed,
    Unknown,
    Welcome,
)
from dispy.protocol.pacing import FULL_BYTES, OWN, Pacing, size_of
from dispy.protocol.wire import FRAMES_MAX, Codec

from .children import Caller, Child, Place

PATIENCE_S = 2.5  # a child's Hello may wait so long for an up-link; it gives up after 3 s
KEEP_S = 5.0  # an up-link that is away for so long may be replaced by another
# After how many looks a peer that says nothing is given up; none count while the relay is stopped.
SILENT_LOOKS = round(SILENCE_S / ROUND_S)
SILENT_RELAY_LOOKS = round(RELAYED_SILENCE_S / ROUND_S)  # signs of life come a slow way
SILENT = "it has no session any more, or hangs"
UNGREETED = "the broker didn't greet it"
MARKED_MAX_BYTES = 4 * FULL_BYTES  # when so much waits, the broker doesn't listen to answers
WAITING_MAX_BYTES = 8 << 20  # a child that takes in less than it is sent is given up
ALL_WAITING_MAX_BYTES = 64 << 20  # ... and the slowest when all together take in too little


class News(NamedTuple):
    """Something for the log."""

    text: str
    is_warning: bool = False


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
        self.trunk: Route | None = None
        self.broker = ""  # the instance at the other end of the trunk, also while it's away
        self.broker_name = ""
        self.malformed = 0  # messages dropped because they could not be understood
        self.news: list[News] = []
        self.failed: list[DialFailed] = []  # addresses on either side that led nowhere
        self.gone: list[str] = []  # instances that were behind it
        self._transport = transport
        self._guard = guard
        self._codec = Codec()
        self._children: dict[Route, Child] = {}
        self._numbers: dict[int, Child] = {}
        self._known: dict[str, Child] = {}  # by instance
        self._last_number = 0
        self._callers: dict[Route, Caller] = {}
        self._places: dict[str, Place] = {}
        self._dialled: dict[Route, Place] = {}
        self._up_address = ""
        self._is_home = False  # the broker was found at that address
        self._new_shelf = new_shelf
        self._kept = Kept(new_shelf())
        self._upward = Pacing(self._codec)
        self._slow: dict[Child, None] = {}  # something waits for these
        self._waiting_bytes = 0  # for all of them
        self._away_since: float | None = None
        self._doubtful_rounds = 0
        self._next_round = 0.0
        self._next_look = 0.0  # for silent children; rounds may follow each other sooner
        self._retry_at = float("inf")
        self._now = 0.0  # when something arrived last

    # -- what a shell calls ----------------------------------------------------------------

    def dial_up(self, address: str) -> None:
        """Look for a broker, or a relay nearer to it, at this address."""
        self._up_address = address
        self._next_round = 0.0

    def dial_down(self, address: str, instance: str = "") -> None:
        """Keep a node, or a relay behind this one, connected while there is an up-link.

        ``instance``: who is expected there. Of several addresses of the same only one is used.
        """
        if address not in self._places:
            self._places[address] = Place(address, instance, is_hint=bool(instance))
            self._next_round = 0.0

    def undial_down(self, address: str, instance: str) -> None:
        """Forget an address at which somebody was expected."""
        place = self._places.get(address)
        if place is None or not place.is_hint or place.instance != instance:
            return
        child = self._children.get(place.route) if place.route is not None else None
        if child is not None:
            self._tell(child.number, LOST, "its address was given up")
            self._forget(child)
        self._hang_up(place)
        del self._places[address]

    def knows(self, instance: str) -> bool:
        """Whether this peer is behind the relay at present."""
        return instance in self._known

    @property
    def is_full(self) -> bool:
        """Whether so much waits to go up that nothing more should be taken from children."""
        return self._upward.waiting_bytes > FULL_BYTES

    @property
    def has_room(self) -> bool:
        """Whether children may be listened to again."""
        return self._upward.waiting_bytes <= FULL_BYTES // 2

    @property
    def children(self) -> int:
        """How many peers are behind it at present."""
        return len(self._children)

    def receive(self, arrival: Arrival, now: float) -> None:
        """Handle what the transport has delivered."""
        self._now = now
        if isinstance(arrival, Arrived):
            self._on_frames(arrival, now)
        elif isinstance(arrival, Up):
            self._on_up(arrival, now)
        elif isinstance(arrival, Down):
            self._on_down(arrival, now)
        else:
            if not self._doubtful_rounds:  # else whoever comes and goes has us beat each time
                self._next_round = now
            self._doubtful_rounds = DOUBTFUL_ROUNDS
            self._handle(self.exchange.receive(arrival, now), now)

    def deadline(self) -> float:
        """When `tick` next has something to do, in seconds of the same clock as ``now``."""
        return min(self._next_round, self._retry_at, self.exchange.deadline())

    def tick(self, now: float) -> None:
        """Dial, beat, and notice who has been silent or has waited for too long."""
        self._handle(self.exchange.tick(now), now)
        if now < self._next_round:
            return
        self._next_round = now + ROUND_S
        self._seek_broker(now)
        if self.trunk is not None:
            self._look_for_silence(now)
            for place in self._places.values():
                self._tick_place(place, now)
        for route, caller in list(self._callers.items()):
            if now >= caller.until:
                del self._callers[route]
                self._say(route, Refused(f"relay {self.identity.name} has no broker at present"))
        if self._doubtful_rounds:
            self._doubtful_rounds -= 1
            for route in [*self._children, *self._callers]:
                if isinstance(route, bytes):
                    self._say(route, Nudge())

    def flush(self, now: float) -> None:
        """Hand over what waits, as far as the transport takes it."""
        self.exchange.flush(now)
        is_done = True
        trunk = self.trunk
        if trunk is not None:
            is_done = self._upward.flush(now, partial(self._transport.send, trunk))
        for child in list(self._slow):
            is_done &= self._flush_child(child)
        self._retry_at = float("inf") if is_done else now + RETRY_S

    def stop(self, reason: str = "the relay was stopped") -> None:
        """Tell all that it is over."""
        self._tell_children()
        for route in self._callers:
            self._say(route, Refused(reason))
        self._callers.clear()
        for peer in list(self.exchange.links):
            self.exchange.goodbye(peer, reason)
        self.trunk = None

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        self._upward.check()
        assert {child.number for child in self._children.values()} == set(self._numbers)
        assert not self._children or self.trunk is not None
        assert not self._callers or self.trunk is None
        for route, child in self._children.items():
            assert child.route == route
            assert child.place is self._dialled.get(route)
            assert child.waiting_bytes == sum(size_of(each) for each in child.waiting)
            assert bool(child.waiting) == (child in self._slow)
        assert self._waiting_bytes == sum(child.waiting_bytes for child in self._slow)
        for route, place in self._dialled.items():
            assert place.route == route

    # -- the trunk -------------------------------------------------------------------------

    def _admit(self, identity: Identity) -> str:
        if identity.role == DOCTOR:
            whom = self.broker_name or "no broker at present"
            return f"this relay works for {whom}, and brings {self.children} peers to it"
        if identity.role != "broker":
            return f"a relay takes nodes, relays and brokers, not a {identity.role}"
        if self.broker not in ("", identity.instance):
            return self._engagement
        return ""

    @property
    def _engagement(self) -> str:
        """Say to others whom the relay works for, and for how long if that is away."""
        if self._away_since is None:
            return f"this relay works for {self.broker_name}"
        left_s = max(0.0, self._away_since + KEEP_S - self._now)
        return f"this relay waits {left_s:.0f} s more for {self.broker_name} to come back"

    def _seek_broker(self, now: float) -> None:
        if self._away_since is not None and now > self._away_since + KEEP_S:
            self.news.append(News(f"{self.broker_name} is given up: another may use this relay"))
            self.exchange.forget(self.broker)
            self._let_go()
        if self._up_address:
            if not self.broker or self._is_home:
                self.exchange.dial(self._up_address)
            else:
                self.exchange.undial(self._up_address)

    def _handle(self, events: list[Event], now: float) -> None:
        for event in events:
            if isinstance(event, Joined):
                self._on_joined(event, now)
            elif isinstance(event, Back):
                self.news.append(News(f"{self.broker_name} can be reached again"))
                self._begin_trunk(now)
            elif isinstance(event, Away) and event.peer == self.broker:
                if self._away_since is None:  # else it was dialled once more
                    self._on_away(event.reason, now)
            elif isinstance(event, Left) and event.peer == self.broker:
                reason = event.reason or "it said goodbye"
                self.news.append(News(f"{self.broker_name} is gone: {reason}"))
                self._end_trunk()
                self._let_go()
            elif isinstance(event, DialFailed):
                self.failed.append(event)

    def _on_away(self, reason: str, now: float) -> None:
        self.news.append(News(f"{self.broker_name} can't be reached: {reason}"))
        self._end_trunk()
        self._away_since = now

    def _on_joined(self, event: Joined, now: float) -> None:
        if self.broker not in ("", event.peer):
            self.exchange.goodbye(event.peer, self._engagement)
            return
        if event.identity.role != "broker":
            self.exchange.goodbye(event.peer, f"a relay can't work for a {event.identity.role}")
            self.news.append(News(f"{event.identity.name} is no broker", is_warning=True))
            return
        self.broker, self.broker_name = event.peer, event.identity.name
        self._is_home = bool(event.address)
        self.news.append(News(f"working for {self.broker_name}"))
        self._begin_trunk(now)

    def _let_go(self) -> None:
        self.broker = self.broker_name = ""
        self._away_since = None

    def _begin_trunk(self, now: float) -> None:
        """There is a new connection to the broker: bring all children to it."""
        self._end_trunk()
        self._away_since = None
        self.trunk = self.exchange.links[self.broker].route
        self._next_round = now
        callers, self._callers = self._callers, {}
        for caller in callers.values():
            self._bring(caller.arrival, caller.who)

    def _end_trunk(self) -> None:
        self._tell_children()
        self._upward = Pacing(self._codec)
        self._kept.close()
        self._kept = Kept(self._new_shelf())
        self.trunk = None

    def _tell_children(self) -> None:
        """Whom they talked to through this relay can't be reached that way any more."""
        for route in self._children:
            self._say(route, Unknown())
        for place in self._places.values():
            self._hang_up(place)
            place.lost, place.again_at, place.pause_s = 0, 0.0, REDIAL_S
        self._children.clear()
        self._numbers.clear()
        self.gone += self._known
        self._known.clear()
        self._slow.clear()
        self._waiting_bytes = 0

    def _tell(
        self, child: int, event: int, text: str = "", refused: bool = False, first: bool = False
    ) -> None:
        """Say something about a child on the trunk, after all that it has said itself."""
        header, _ = self._codec.encode(Relayed(child, event, text, refused))
        self._upward.add(OWN if first else child, [header])

    # -- frames ----------------------------------------------------------------------------

    def _on_frames(self, arrival: Arrived, now: float) -> None:
        route = arrival.route
        if len(arrival.frames) > FRAMES_MAX:
            self.malformed += 1
            return
        if route == self.trunk:
            self._from_trunk(arrival, now)
            return
        child = self._children.get(route)
        try:
            if child is None:
                self._from_stranger(arrival, now)
                return
            child.silent_looks = 0
            if child.has_answered or self._is_answer(child, arrival.frames):
                if child.sent is not None and len(arrival.frames) == 1:
                    self._note_missed(child.sent, arrival.frames)
                self._upward.add(child.number, [child.header, *arrival.frames])
        except ProtocolError:
            self.malformed += 1

    def _from_trunk(self, arrival: Arrived, now: float) -> None:
        try:
            frame = self._decode(arrival.frames)
        except ProtocolError:
            frame = Unknown()  # the exchange looks at it once more, and says what is to be said
        if isinstance(frame, (Relayed, Cached)):
            self.exchange.links[self.broker].heard = now
            try:
                self._unwrap(frame, arrival.frames, now)
            except ProtocolError:
                self.malformed += 1
        else:
            self._handle(self.exchange.receive(arrival, now), now)

    def _unwrap(self, frame: Relayed | Cached, frames: Sequence[Buffer], now: float) -> None:
        """Put back what was left out on the way, and see whom a message is for."""
        cached = frame if isinstance(frame, Cached) else None
        frames = frames[1:] if cached else frames
        first: Frame = frame if cached is None else self._decode(frames)
        restored = self._kept.restore(cached, frames)
        if not isinstance(first, Relayed):
            self.malformed += 1
        elif restored is not None:
            self._on_relayed(first, restored[1:], now)
        elif first.child in self._numbers:
            child = self._numbers[first.child]
            self._say(child.route, Unknown())
            self._lose(child, MISSED, now)

    def _decode(self, frames: Sequence[Buffer]) -> Frame:
        frame, _ = self._codec.decode(frames[0] if frames else b"")
        return frame

    def _on_relayed(self, relayed: Relayed, frames: list[Buffer], now: float) -> None:
        if relayed.event == MARK:
            if self._upward.waiting_bytes <= MARKED_MAX_BYTES:
                self._tell(relayed.child, MARKED, first=True)
        elif relayed.event == MARKED:
            self._upward.marked(relayed.child, now)
        else:
            child = self._numbers.get(relayed.child)
            if child is None:
                return  # it is gone, and the broker will hear that
            if relayed.event == DROPPED:
                self._say(child.route, Unknown())
                self._drop(child, REFUSED_PAUSE_S if relayed.refused else 0.0, now)
            elif relayed.event == CARRIED and frames:
                self._carry_down(child, frames, now)

    def _from_stranger(self, arrival: Arrived, now: float) -> None:
        """Look at what comes first over a connection: only children's Hellos are ours."""
        route = arrival.route
        if route in self._callers:
            return
        frame = self._decode(arrival.frames)
        if not isinstance(frame, Hello) or frame.identity.role not in NODES:
            self._handle(self.exchange.receive(arrival, now), now)
            return
        who = frame.identity
        reason = self._guard.refuse(frame, arrival.key, arrival.door) or self._is_too_much(arrival)
        if reason:
            self.news.append(News(f"{who.role} {who.name} is refused: {reason}", is_warning=True))
            self._say(route, Refused(reason))
        elif self.trunk is None:
            self._callers[route] = Caller(arrival, now + PATIENCE_S, who)
        else:
            self._bring(arrival, who)

    def _is_too_much(self, arrival: Arrived) -> str:
        """Say why a child isn't taken for whom there is a limit; empty: it is."""
        if len(arrival.frames) > 1:
            return "its Hello brings more than that"
        if len(self._callers) + len(self._children) >= LINKS_MAX:
            return f"relay {self.identity.name} has {LINKS_MAX} peers already"
        return ""

    def _note_missed(self, sent: Sent, frames: Sequence[Buffer]) -> None:
        """Count on nothing any more, if that's what a relay behind this one says."""
        frame = self._decode(frames)
        if isinstance(frame, Relayed) and frame.event == LOST and frame.text == MISSED:
            sent.clear()

    # -- children --------------------------------------------------------------------------

    def _bring(self, arrival: Arrived, who: Identity) -> None:
        """Pass a child's Hello on; from now on all that it says is."""
        child = self._add_child(arrival.route)
        self._know(child, who)
        self._upward.add(child.number, [child.header, *arrival.frames])

    def _know(self, child: Child, who: Identity) -> None:
        """Note who a child is. To a relay nothing goes twice that it keeps for its own children."""
        child.name, child.instance = who.name, who.instance
        self._known[who.instance] = child
        if child.place is not None and not child.place.is_hint:
            child.place.instance = who.instance
        if who.role == "relay":
            child.sent = Sent()
            child.sent.keeps = True

    def _add_child(self, route: Route, place: Place | None = None) -> Child:
        self._last_number += 1
        number = self._last_number
        header, _ = self._codec.encode(Relayed(number))
        is_old = place is None
        child = Child(number, route, header, place, is_greeted=is_old, has_answered=is_old)
        self._children[route] = self._numbers[number] = child
        return child

    def _introduce(self, place: Place, up: Up, now: float) -> None:
        """Have the broker say Hello to a peer that was dialled."""
        place.lost = 0
        child = self._add_child(up.route, place)
        child.name, child.key, child.since = place.address, up.key, now
        self._tell(child.number, INTRODUCED, place.address)

    def _is_answer(self, child: Child, frames: Sequence[Buffer]) -> bool:
        """Tell whether a dialled child answers the broker's Hello; before that nothing counts."""
        frame = self._decode(frames)
        if not child.is_greeted or not isinstance(frame, (Welcome, Refused)):
            return False
        child.has_answered = True
        if isinstance(frame, Welcome) and self._is_itself(frame):
            self._know(child, frame.identity)
            assert child.place is not None
            child.place.pause_s = REDIAL_S
        return True

    def _is_itself(self, welcome: Welcome) -> bool:
        """Whether a peer is who it says; if it isn't, the broker drops it."""
        return not self._guard.refuse_instance(welcome.identity.instance, welcome.token)

    def _carry_down(self, child: Child, frames: list[Buffer], now: float) -> None:
        if not child.is_greeted:
            frames = [self._vouch(child, frames[0])]
            child.is_greeted = True
        if not child.waiting and self._send_down(child, frames):
            return
        child.waiting.append(frames)
        child.waiting_bytes += size_of(frames)
        self._waiting_bytes += size_of(frames)
        self._slow[child] = None
        if child.waiting_bytes > WAITING_MAX_BYTES:
            self._give_up(child, now)
        elif self._waiting_bytes > ALL_WAITING_MAX_BYTES:
            self._give_up(max(self._slow, key=lambda each: each.waiting_bytes), now)

    def _give_up(self, child: Child, now: float) -> None:
        self.news.append(News(f"{child.name} is given up: it is too slow", is_warning=True))
        self._lose(child, "it is too slow", now)

    def _vouch(self, child: Child, header: Buffer) -> Buffer:
        """Sign a broker's Hello for the connection that it goes over: the relay has dialled it."""
        frame, _ = self._codec.decode(header)
        if isinstance(frame, Hello):
            who = frame.identity
            _, proof = self._guard.present(who.role, who.instance, child.key)
            frame = msgspec.structs.replace(frame, proof=proof)
        signed, _ = self._codec.encode(frame)
        return signed

    def _send_down(self, child: Child, frames: list[Buffer]) -> bool:
        if child.sent is None:
            return self._transport.send(child.route, frames)
        shorter, news = child.sent.shorten(frames)
        if not self._transport.send(child.route, shorter):
            return False
        child.sent.sent(news)
        return True

    def _flush_child(self, child: Child) -> bool:
        while child.waiting:
            if not self._send_down(child, child.waiting[0]):
                return False
            size = size_of(child.waiting.popleft())
            child.waiting_bytes -= size
            self._waiting_bytes -= size
        del self._slow[child]
        return True

    def _lose(self, child: Child, reason: str, now: float) -> None:
        """The connection to a child is of no use any more; the broker is told."""
        self._tell(child.number, LOST, reason)
        self._drop(child, 0.0, now)

    def _drop(self, child: Child, pause_s: float, now: float) -> None:
        """Close a child's connection; one that was accepted is forgotten."""
        self._forget(child)
        place = child.place
        if place is not None:
            self._hang_up(place)
            self._pause(place, now, pause_s)

    def _forget(self, child: Child) -> None:
        del self._children[child.route]
        del self._numbers[child.number]
        if self._known.get(child.instance) is child:
            del self._known[child.instance]
            self.gone.append(child.instance)
        self._slow.pop(child, None)
        self._waiting_bytes -= child.waiting_bytes

    # -- connections -----------------------------------------------------------------------

    def _look_for_silence(self, now: float) -> None:
        is_time = now >= self._next_look
        if is_time:
            self._next_look = now + ROUND_S
        self._next_round = min(self._next_round, self._next_look)
        if not is_time or not self.has_room:  # children can't be heard without room
            return
        for child in list(self._children.values()):
            child.silent_looks += 1
            is_relay = child.sent is not None
            if child.silent_looks > (SILENT_RELAY_LOOKS if is_relay else SILENT_LOOKS):
                self._lose(child, SILENT, now)

    def _tick_place(self, place: Place, now: float) -> None:
        if place.route is not None:
            child = self._children.get(place.route)
            if child is not None and not child.is_greeted and now > child.since + GREETING_S:
                self._lose(child, UNGREETED, now)
            return
        if now >= place.again_at and not self._has_rival(place):
            place.route = self._transport.dial(place.address)
            self._dialled[place.route] = place
        elif now < place.again_at:
            self._next_round = min(self._next_round, place.again_at)

    def _on_up(self, up: Up, now: float) -> None:
        place = self._dialled.get(up.route)
        if place is None:
            self._handle(self.exchange.receive(up, now), now)
            return
        if self._has_rival(place):
            self._hang_up(place)
            self._pause(place, now, 0.0)
        else:
            self._introduce(place, up, now)

    def _has_rival(self, place: Place) -> bool:
        """Whether the same peer is connected in another way already."""
        if not place.instance:
            return False
        others = [each for each in self._places.values() if each.instance == place.instance]
        routes = {each.route for each in others if each is not place}
        return place.instance in self._known or any(route in self._children for route in routes)

    def _on_down(self, down: Down, now: float) -> None:
        child = self._children.get(down.route)
        place = self._dialled.get(down.route)
        if child is not None:
            self._tell(child.number, LOST, down.reason, down.refused)
            if place is not None:
                place.lost = 0 if down.refused else child.number
            self._drop(child, 0.0, now)
        elif place is not None:
            self._unreached(place, down, now)
        elif self._callers.pop(down.route, None) is None:
            self._handle(self.exchange.receive(down, now), now)

    def _unreached(self, place: Place, down: Down, now: float) -> None:
        """An address doesn't lead to a peer; perhaps that proves the end of the last one there."""
        if down.refused and place.lost:
            self._tell(place.lost, LOST, down.reason, refused=True)
            place.lost = 0
        self.failed.append(DialFailed(place.address, down.reason))
        self._hang_up(place)
        self._pause(place, now, REFUSED_PAUSE_S if down.denied else 0.0)

    def _hang_up(self, place: Place) -> None:
        if place.route is not None:
            del self._dialled[place.route]
            self._transport.drop(place.route)
            place.route = None

    def _pause(self, place: Place, now: float, pause_s: float) -> None:
        place.again_at = now + max(place.pause_s, pause_s)
        place.pause_s = min(place.pause_s * 2, REDIAL_MAX_S)
        self._next_round = min(self._next_round, place.again_at)

    def _say(self, route: Route, frame: Frame) -> None:
        header, _ = self._codec.encode(frame)
        self._transport.send(route, [header])
