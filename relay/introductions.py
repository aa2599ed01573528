"""Peers that the relay has dialled for the broker, until they have answered its Hello.

The broker is told where somebody is, and says Hello; the relay signs that for the connection,
which is its own. Nothing that the peer says before its answer counts.
"""

from __future__ import annotations

import msgspec

from dispy.protocol.arrivals import Up
from dispy.protocol.dials import GREETING_S
from dispy.protocol.guard import Guard
from dispy.protocol.messages import INTRODUCED, Buffer, Frame, Hello, Refused, Welcome
from dispy.protocol.wire import Codec

from .children import Child, Children
from .places import Place
from .trunk import Trunk


class Introductions:
    """How one relay makes those whom it dials, and its broker, known to each other."""

    def __init__(self, trunk: Trunk, children: Children, guard: Guard, codec: Codec) -> None:
        self._trunk = trunk
        self._children = children
        self._guard = guard
        self._codec = codec

    def introduce(self, place: Place, up: Up, now: float) -> None:
        """Have the broker say Hello to a peer that was dialled."""
        place.lost = 0
        child = self._children.add_dialled(up, place, now)
        self._trunk.tell(child.number, INTRODUCED, place.address)

    def greet(self, child: Child, frames: list[Buffer]) -> list[Buffer]:
        """Return how the first message for a child goes on to it: the broker's Hello, signed."""
        frame, _ = self._codec.decode(frames[0])
        if isinstance(frame, Hello):
            who = frame.identity
            _, proof = self._guard.present(who.role, who.instance, child.key)
            frame = msgspec.structs.replace(frame, proof=proof)
        signed, _ = self._codec.encode(frame)
        child.is_greeted = True
        return [signed]

    def is_ungreeted(self, child: Child, now: float) -> bool:
        """Whether the broker hasn't said Hello for too long."""
        return not child.is_greeted and now > child.since + GREETING_S

    def is_answer(self, child: Child, frame: Frame) -> bool:
        """Tell whether a child answers the broker's Hello; what else it says doesn't count."""
        if not child.is_greeted or not isinstance(frame, (Welcome, Refused)):
            return False
        child.has_answered = True
        if isinstance(frame, Welcome) and self._is_itself(frame):
            self._children.know(child, frame.identity)
            assert child.place is not None
            child.place.answered(frame.identity.instance)
        return True

    def _is_itself(self, welcome: Welcome) -> bool:
        """Whether a peer is who it says; if it isn't, the broker drops it."""
        return not self._guard.refuse_instance(welcome.identity.instance, welcome.token)
