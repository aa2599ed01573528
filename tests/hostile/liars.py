"""What is between a core and the peers under whose fire it is: a wire in memory, and these peers.

A liar has a session, and knows the protocol well enough to keep it, until it says what nobody
should; then it comes back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from dispy.protocol import messages as m
from dispy.protocol.arrivals import Arrival, Arrived, Route
from dispy.protocol.errors import ProtocolError
from dispy.protocol.guard import instance_of
from dispy.protocol.wire import Codec

from .babble import Babbler

OUT_OF_TURN = 0.01  # how often a whole frame makes no sense
ASTRAY = 0.7  # how often a spoilt message comes over a connection of nobody's
EPOCH_S = 1.7e9


class Wire:
    """In place of a `Bus`: what is sent is decoded and kept by route until somebody takes it."""

    def __init__(self, carries: bool = False) -> None:
        self._carries = carries  # what others have written
        self.sent: dict[Route, list[m.Frame]] = {}
        self.dialled: list[Route] = []
        self.arrivals: list[Arrival] = []  # what a shell is to find at its next look
        self.keys = None
        self.public_key = b""
        self.was_stirred = False
        self._codec = Codec()
        self._routes = 0

    def dial(self, address: str, *_: object) -> Route:
        """Begin to connect."""
        self._routes += 1
        self.dialled.append(self._routes)
        return self._routes

    def listen(self, address: str, *_: object, **__: object) -> str:
        """Nobody dials in by himself."""
        return address

    def watch(self, *_: object) -> None:
        """There are no descriptors."""

    unwatch = watch

    def drop(self, route: Route) -> None:
        """Close a connection; what was sent over one that was accepted still arrives."""
        if isinstance(route, int):
            self.sent.pop(route, None)
        if route in self.dialled:
            self.dialled.remove(route)

    def send(self, route: Route, frames: list[m.Buffer]) -> bool:
        """Keep what is sent: it must be readable, unless a relay passes it on."""
        try:
            frame, _ = self._codec.decode(bytes(frames[0]))
        except ProtocolError:
            assert self._carries
            return True
        if isinstance(frame, m.Relayed) and len(frames) > 1 and isinstance(route, bytes):
            return self.send((route, frame.child), frames[1:])
        self.sent.setdefault(route, []).append(frame)
        return True

    def take(self, route: Route) -> list[m.Frame]:
        """Return what was sent to a peer since the last time."""
        return self.sent.pop(route, [])

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Return what has arrived, without waiting."""
        arrivals, self.arrivals = self.arrivals, []
        return arrivals

    def pause(self, keep: Route) -> None:
        """What arrives is always taken in."""

    def resume(self) -> None:
        """There was no pause."""

    def wake(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Nothing is open."""


class Clock:
    """In place of the module `time` in a shell, so that hours pass in a moment."""

    localtime = staticmethod(time.localtime)

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Say how much time has passed."""
        return self.now

    def time(self) -> float:
        """Say so since the epoch."""
        return EPOCH_S + self.now


class Liar:
    """A peer with a session, that says what it likes in it."""

    def __init__(self, wire: Wire, identity: m.Identity, babbler: Babbler, route: str) -> None:
        self._token = babbler.chance.randbytes(32)
        self.identity = msgspec.structs.replace(identity, instance=instance_of(self._token))
        self.route: Route = route.encode()
        self.is_in = False
        self.dismissals: list[str] = []  # why its sessions were ended, or not begun
        self.heard: list[m.Body] = []
        self.said: list[m.Buffer] = [b""]  # the last message, as it should have been
        self._wire = wire
        self._babbler = babbler
        self._codec = Codec()
        self.session = ""
        self._epoch = self._seq = self._received = 0

    def hello(self) -> Arrived:
        """Register, or try to; go on with a session if there was one."""
        chance = self._babbler.chance
        session = self.session if chance.random() < 0.7 else ""
        received = (
            self._received if chance.random() > self._babbler.lies else chance.choice((-1, 9))
        )
        return self._hello(session, received)

    def _hello(self, session: str, received: int) -> Arrived:
        who, token = self.identity, self._token
        major, minor = m.VERSION_MAJOR, m.VERSION_MINOR
        return self._arrived(m.Hello(major, minor, who, session, received, token))

    def listen(self) -> None:
        """Take in what was said; only the latest is remembered."""
        self.heard.clear()
        for frame in self._wire.take(self.route):
            if isinstance(frame, m.Welcome):
                self.is_in, self._epoch = True, frame.epoch
                self._seq = frame.received
                if frame.session != self.session:
                    self.session, self._received = frame.session, 0
            elif isinstance(frame, m.Envelope):
                self._received = max(self._received, frame.seq)
                self.heard += frame.messages
            elif isinstance(frame, m.Unknown):
                self.is_in = False
            elif isinstance(frame, (m.Goodbye, m.Refused)):
                self.is_in = False
                self.dismissals.append(frame.reason)

    def say(self, messages: list[m.Body]) -> Arrived:
        """Say something in the session, or something that doesn't belong into one."""
        chance = self._babbler.chance
        if chance.random() < OUT_OF_TURN * self._babbler.lies:
            return self._arrived(self._strange())
        self._seq += 1
        envelope = m.Envelope(self._epoch, self._seq, self._received, messages)
        return self._arrived(envelope)

    def astray(self) -> Arrived:
        """Spoil what was said last, and say it over a connection of nobody's."""
        route = b"stranger%d" % self._babbler.spoilt
        return Arrived(route, self._babbler.spoilt_frames(self.said))

    def goodbye(self) -> Arrived:
        """Leave."""
        return self._arrived(m.Goodbye())

    def _strange(self) -> m.Frame:
        chance = self._babbler.chance
        kinds: Sequence[Any] = (m.Hello, m.Welcome, m.Refused, m.Unknown, m.Goodbye, m.Envelope)
        kind = chance.choice((*kinds, m.Relayed, m.Cached, m.Nudge))
        frame: m.Frame = (
            self._babbler.message(kind)
            if kind is not m.Envelope
            else m.Envelope(
                self._epoch,
                self._seq + chance.choice((0, 1, 2, 1 << 63)),
                chance.choice((0, -1, 9)),
                [],
            )
        )
        return frame

    def _arrived(self, frame: m.Frame) -> Arrived:
        header, larges = self._codec.encode(frame)
        chunks = [chunk for large in larges for chunk in large.chunks]
        self.said = [header, *chunks]
        return Arrived(self.route, self._babbler.spoil(self.said))


class Behind(Liar):
    """A peer behind a relay, which lies as well."""

    relay: Liar
    child = 0

    def _arrived(self, frame: m.Frame) -> Arrived:
        said = super()._arrived(frame)
        header, _ = self._codec.encode(m.Relayed(self.child))
        self.said = [header, *self.said]
        return Arrived(self.relay.route, self._babbler.spoil([header, *said.frames]))

    def lose(self) -> Arrived:
        """Have the relay say something about it."""
        chance = self._babbler.chance
        event = chance.choice((*range(7), m.LOST, m.LOST))
        number = chance.choice((self.child, self.child, 1, -1, 1 << 63))
        lost = m.Relayed(number, event, "cache", chance.random() < 0.3)
        return Arrived(self.relay.route, [self._codec.encode(lost)[0]])
