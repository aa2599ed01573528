"""The connections of a relay to those behind it: how each comes to be a child's, and how it ends.

The only file that begins and ends one. It tells the broker of each child, then of its end.
"""

from __future__ import annotations

from collections.abc import Sequence

from dispy.protocol.arrivals import Arrived, Down, Route, Transport, Up
from dispy.protocol.dials import REFUSED_PAUSE_S
from dispy.protocol.events import DialFailed
from dispy.protocol.guard import Guard
from dispy.protocol.messages import LOST, Buffer, Frame, Identity, Unknown
from dispy.protocol.wire import Codec

from .children import Child, Children
from .downward import Downward
from .introductions import Introductions
from .news import News
from .places import Place, Places
from .trunk import Trunk

SILENT = "it has no session any more, or hangs"
UNGREETED = "the broker didn't greet it"
TOO_SLOW = "it is too slow"
FORGOTTEN = "its address was given up"


class Connections:
    """All on the side of the children. They are there only while there is a trunk."""

    def __init__(self, transport: Transport, trunk: Trunk, guard: Guard, codec: Codec) -> None:
        self.children = Children(codec)
        self.downward = Downward(transport)
        self.places = Places(transport)
        self.introductions = Introductions(trunk, self.children, guard, codec)
        self.next_round = 0.0  # when there is something to do next, here or in the core
        self.news: list[News] = []  # until the shell takes it, as what has failed
        self.failed: list[DialFailed] = []
        self._transport = transport
        self._trunk = trunk
        self._codec = codec

    def say(self, route: Route, frame: Frame) -> None:
        """Say something of its own over an accepted or a dialled connection, at once."""
        header, _ = self._codec.encode(frame)
        self._transport.send(route, [header])

    def read(self, frames: Sequence[Buffer]) -> Frame:
        """Return what the first frame of a message says. Raises `ProtocolError`."""
        frame, _ = self._codec.decode(frames[0] if frames else b"")
        return frame

    def tick(self, now: float) -> None:
        """Dial, and notice who has been silent or hasn't been greeted for too long."""
        for child in self.children.look(now, are_heard=self._trunk.has_room):
            self.lose(child, SILENT, now)
        self.next_round = min(self.next_round, self.children.next_look)
        for place in self.places.all():
            self._tick_place(place, now)

    # -- beginning ---------------------------------------------------------------------------

    def bring(self, hello: Arrived, who: Identity) -> None:
        """Pass a child's Hello on; from now on all that it says is."""
        child = self.children.add(hello.route, who)
        self._trunk.carry(child.number, [child.header, *hello.frames])

    def is_dialled(self, route: Route) -> bool:
        """Whether this connection was dialled for the broker."""
        return route in self.places.by_route

    def up(self, up: Up, now: float) -> None:
        """A connection that was dialled is there."""
        place = self.places.by_route[up.route]
        if self._has_rival(place):
            self._hang_up(place, now)
        else:
            self.introductions.introduce(place, up, now)

    def _tick_place(self, place: Place, now: float) -> None:
        if place.route is not None:
            child = self.children.by_route.get(place.route)
            if child is not None and self.introductions.is_ungreeted(child, now):
                self.lose(child, UNGREETED, now)
        elif now < place.again_at:
            self.next_round = min(self.next_round, place.again_at)
        elif not self._has_rival(place):
            self.places.dial(place)

    def _has_rival(self, place: Place) -> bool:
        """Whether the same peer is connected in another way already."""
        if not place.instance:
            return False
        children = self.children
        return children.knows(place.instance) or children.are_at(self.places.rivals(place))

    # -- ending ------------------------------------------------------------------------------

    def down(self, down: Down, now: float) -> bool:
        """A connection is gone, or couldn't be made; return whether it was one of these."""
        child = self.children.by_route.get(down.route)
        place = self.places.by_route.get(down.route)
        if child is not None:
            self._trunk.tell(child.number, LOST, down.reason, down.refused)
            if place is not None:
                place.lost = 0 if down.refused else child.number
            self.drop(child, now)
        elif place is not None:
            self._unreached(place, down, now)
        return child is not None or place is not None

    def _unreached(self, place: Place, down: Down, now: float) -> None:
        """An address doesn't lead to a peer; perhaps that proves the end of the last one there."""
        if down.refused and place.lost:
            self._trunk.tell(place.lost, LOST, down.reason, refused=True)
            place.lost = 0
        self.failed.append(DialFailed(place.address, down.reason))
        self._hang_up(place, now, REFUSED_PAUSE_S if down.denied else 0.0)

    def undial(self, place: Place) -> None:
        """Don't keep an address connected any more."""
        child = None if place.route is None else self.children.by_route.get(place.route)
        if child is not None:
            self._trunk.tell(child.number, LOST, FORGOTTEN)
            self._forget(child)
        self.places.remove(place)

    def give_up(self, child: Child, now: float) -> None:
        """A child takes in too little of what is for it."""
        self.news.append(News(f"{child.name} is given up: {TOO_SLOW}", is_warning=True))
        self.lose(child, TOO_SLOW, now)

    def lose(self, child: Child, reason: str, now: float) -> None:
        """The connection to a child is of no use any more; the broker is told."""
        self._trunk.tell(child.number, LOST, reason)
        self.drop(child, now)

    def drop(self, child: Child, now: float, pause_s: float = 0.0) -> None:
        """Close a child's connection; one that was accepted is forgotten."""
        self._forget(child)
        if child.place is not None:
            self._hang_up(child.place, now, pause_s)

    def clear(self) -> None:
        """Whom the children talked to can't be reached this way any more: they are told."""
        for route in self.children.by_route:
            self.say(route, Unknown())
        self.places.reset()
        self.children.clear()
        self.downward.clear()

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        self.children.check()
        self.downward.check()
        self.places.check()
        assert not self.children or self._trunk.route is not None
        for route, child in self.children.by_route.items():
            assert child.place is self.places.by_route.get(route)
        assert self.downward.slow <= {*self.children.by_route.values()}

    def _hang_up(self, place: Place, now: float, pause_s: float = 0.0) -> None:
        """Close the connection to a place, and dial it again later on."""
        self.places.hang_up(place)
        place.pause(now, pause_s)
        self.next_round = min(self.next_round, place.again_at)

    def _forget(self, child: Child) -> None:
        self.children.forget(child)
        self.downward.forget(child)
