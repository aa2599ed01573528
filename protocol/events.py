"""What an exchange tells a core about its peers."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from .messages import Body, Identity


class Joined(NamedTuple):
    """A peer has registered.

    ``undelivered``: what an earlier session with the same instance could not deliver.
    ``address``: what was dialled to reach it; empty when the peer dialled.
    ``via``: the name of the relay that it is behind. ``reached``: which of several addresses has
    worked, when what was dialled stands for them. ``relay``: what was dialled to reach the first
    relay on the way to it; empty when there is none, or that one dialled.
    """

    peer: str
    identity: Identity
    undelivered: list[Body]
    address: str = ""
    via: str = ""
    reached: str = ""
    relay: str = ""


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


class Received(msgspec.Struct, frozen=True):
    """A message of a registered peer."""

    peer: str
    message: Body


class DialFailed(NamedTuple):
    """An address didn't lead to a peer this time; it is tried again."""

    address: str
    reason: str


Event: TypeAlias = Joined | Back | Away | Left | Received | DialFailed
