"""The connections to relays, and what goes over them to the peers behind.

A route to such a peer is a pair: that of its relay, and the relay's number for it. Its messages
wait here until it is their turn, and long frames that its relay has had before are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from .arrivals import Route
from .framecache import MISSED, Sent
from .messages import DROPPED, MARKED, Buffer, Relayed
from .pacing import SMALL_BYTES, Pacing, size_of
from .wire import Codec

CACHED_FROM = 2  # peers behind a relay: from then on it may pay to know what has been sent
WAITING_MAX_BYTES = 32 << 20  # whoever lets more wait than this doesn't listen
LOST_MAX = 1000  # peers behind one relay that are gone and may be proven dead later on

SendFrames = Callable[[Route, list[Buffer]], bool]


class Trunk:
    """One connection to a relay."""

    def __init__(self, route: Route, codec: Codec, send: SendFrames) -> None:
        self.route = route
        self.pacing = Pacing(codec)
        self.cache = Sent()
        self.lost: dict[Route, str] = {}  # who was at these
        self.is_stuck = False  # the transport took no more
        self._send = send
        self._entered: set[Route] = set()

    def enter(self, route: Route) -> None:
        """A peer is there behind this relay, or behind one that is behind it."""
        if not self.cache.keeps:
            self._entered.add(route)
            self.cache.keeps = len(self._entered) >= CACHED_FROM

    def add(self, route: Route, frames: list[Buffer]) -> bool:
        """Have a message wait, unless far too much does so already."""
        if self.pacing.waiting_bytes > WAITING_MAX_BYTES:
            return False
        self.pacing.add(route, frames)
        return True

    def missed(self, text: str) -> None:
        """A peer was lost: if that's since the relay missed a frame, count on none."""
        if text == MISSED:
            self.cache.clear()

    def note_lost(self, route: Route, peer: str) -> None:
        """A peer can't be reached this way any more."""
        self.lost[route] = peer
        if len(self.lost) > LOST_MAX:
            del self.lost[next(iter(self.lost))]

    def flush(self, now: float) -> bool:
        """Send what may go; return whether anything has gone."""
        before = self.pacing.waiting_bytes
        self.is_stuck = not self.pacing.flush(now, self._transmit)
        return self.pacing.waiting_bytes < before

    def _transmit(self, frames: list[Buffer]) -> bool:
        shortened, news = self.cache.shorten(frames)
        if not self._send(self.route, shortened):
            return False
        self.cache.sent(news)
        return True


class Trunks:
    """All trunks of one process, by route."""

    def __init__(self, codec: Codec, send: SendFrames) -> None:
        self._codec = codec
        self._send = send
        self.by_route: dict[Route, Trunk] = {}  # where relays are connected

    def open(self, route: Route) -> None:
        """A relay is at the other end of this route."""
        if not isinstance(route, tuple):  # else its messages are those of a peer behind a relay
            self.by_route[route] = Trunk(route, self._codec, self._send)

    def close(self, route: Route) -> None:
        """It is gone, with all that waited."""
        self.by_route.pop(route, None)

    def enter(self, route: tuple[Route, int]) -> None:
        """A peer is there behind a relay."""
        trunk = self.of(route)
        if trunk is not None:
            trunk.enter(route)

    @property
    def are_stuck(self) -> bool:
        """Whether the transport took no more of some trunk."""
        return any(trunk.is_stuck for trunk in self.by_route.values())

    def of(self, route: Route) -> Trunk | None:
        """Return the trunk over which this route goes."""
        while isinstance(route, tuple):
            route = route[0]
        return self.by_route.get(route)

    def send(self, route: tuple[Route, int], frames: list[Buffer]) -> bool:
        """Have a message wait for its turn; False when too much waits already."""
        trunk = self.of(route)
        if trunk is None:
            return True  # it is gone, and with it the peer's session here
        if trunk.pacing.is_full and size_of(frames) > SMALL_BYTES:
            return False  # it waits in its link, where signs of life pass it
        return trunk.add(route, [*self._headers(route), *frames])

    def drop(self, route: tuple[Route, int], refused: bool = False) -> None:
        """Have the relay close its connection to a peer; ``refused``: that said no."""
        above, child = route
        header, _ = self._codec.encode(Relayed(child, DROPPED, "", refused))
        trunk = self.of(route)
        if trunk is not None:
            trunk.add(route, [*self._headers(above), header])

    def answer(self, route: Route, number: int) -> None:
        """Tell a relay that its mark has arrived."""
        header, _ = self._codec.encode(Relayed(number, MARKED))
        if isinstance(route, tuple):
            self.send(route, [header])
        else:
            self._send(route, [header])

    def marked(self, route: Route, number: int, now: float) -> None:
        """A relay says that a mark has arrived there."""
        trunk = self.by_route.get(route)
        if trunk is not None:
            trunk.pacing.marked(number, now)

    def flush(self, now: float) -> bool:
        """Send what may go; return whether anything has gone."""
        return any([trunk.flush(now) for trunk in self.by_route.values()])

    def _headers(self, route: Route) -> list[Buffer]:
        headers: list[Buffer] = []
        while isinstance(route, tuple):
            route, child = route
            headers.insert(0, self._codec.encode(Relayed(child))[0])
        return headers

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        for trunk in self.by_route.values():
            trunk.pacing.check()
            trunk.cache.check()
