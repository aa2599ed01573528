"""The records of a relay: the peers behind it, and the addresses that it keeps connected.

Only `core` changes them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from dispy.protocol.arrivals import Arrived, Route
from dispy.protocol.dials import REDIAL_S
from dispy.protocol.framecache import Sent
from dispy.protocol.messages import Buffer, Identity


@dataclass(eq=False)
class Place:
    """An address that the relay keeps connected, for the broker."""

    address: str
    instance: str = ""  # who was there last, or is expected
    is_hint: bool = False  # it was found, not told
    route: Route | None = None
    again_at: float = 0.0  # while there is no route: when to try next
    pause_s: float = REDIAL_S
    lost: int = 0  # the child that was there last, whose end isn't proven so far; 0: none


@dataclass(eq=False)
class Child:
    """A connection to a peer behind the relay, of which the up-link has been told."""

    number: int
    route: Route
    header: bytes  # goes before each of its messages on the trunk
    place: Place | None = None  # None: it has dialled
    key: bytes = b""  # of a connection that was dialled: our public key
    since: float = 0.0  # ... and when the broker was told of it
    is_greeted: bool = True  # else the broker's Hello hasn't come so far
    has_answered: bool = True  # else nothing but its answer to that counts
    silent_looks: int = 0  # since it has said anything
    name: str = ""
    instance: str = ""
    sent: Sent | None = None  # of a relay: what it keeps
    waiting: deque[list[Buffer]] = field(default_factory=deque)  # what it hasn't taken in
    waiting_bytes: int = 0


@dataclass(eq=False)
class Caller:
    """A peer that has dialled and said Hello while there is no up-link."""

    arrival: Arrived
    until: float
    who: Identity
