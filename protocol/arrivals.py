"""What carries frames, and what it says has happened to its connections.

The contract between sessions, which are pure, and what they use: sockets, or a simulation of
them. Nothing here knows what is in a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from .messages import Buffer

# How to reach a peer: what was dialled, who dialled, or a relay and its number for the peer.
Route: TypeAlias = "int | bytes | tuple[Route, int]"


class Up(NamedTuple):
    """A dialled connection is there.

    ``key``: our public key on it; empty: not encrypted. ``address``: which one has worked, when
    what was dialled stands for several.
    """

    route: Route
    key: bytes = b""
    address: str = ""


class Down(NamedTuple):
    """A connection is gone, or could not be made; its route is never used again."""

    route: Route
    reason: str
    refused: bool = False  # nothing listens there: the peer's process is gone
    denied: bool = False  # the secrets don't fit, so there is no hurry to try again


class HungUp(NamedTuple):
    """One of the accepted connections was closed; a ROUTER can't tell which."""


class Arrived(msgspec.Struct, frozen=True):
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


def above(route: Route) -> list[Route]:
    """Return the routes of the relays in between, the nearest to the peer first."""
    relays: list[Route] = []
    while isinstance(route, tuple):
        route = route[0]
        relays.append(route)
    return relays
