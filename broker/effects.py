"""What the scheduler wants done; its shell does it."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from dispy.protocol.messages import Body


class Send(NamedTuple):
    """Send a message to a registered peer."""

    peer: str
    message: Body


class Dial(NamedTuple):
    """Connect to an address, and keep it connected."""

    address: str


class Undial(NamedTuple):
    """No cluster asks for this address any more."""

    address: str


class Forget(NamedTuple):
    """Drop the session with a peer that is given up."""

    peer: str


class Goodbye(NamedTuple):
    """End the session with a peer, and tell it."""

    peer: str
    reason: str


Effect: TypeAlias = Send | Dial | Undial | Forget | Goodbye
