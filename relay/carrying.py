"""Messages that go through the relay: up with a child's number in front, down without it.

What is in them is looked at only where a connection begins, and for what the way itself needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from dispy.protocol.dials import REFUSED_PAUSE_S
from dispy.protocol.errors import ProtocolError
from dispy.protocol.framecache import MISSED, Sent
from dispy.protocol.messages import (
    CARRIED,
    DROPPED,
    LOST,
    MARK,
    MARKED,
    Buffer,
    Cached,
    Frame,
    Relayed,
    Unknown,
)

from .children import Child
from .connections import Connections
from .trunk import Trunk


class Carrying:
    """Between the trunk and the children's connections. Nonsense is a `ProtocolError`."""

    def __init__(self, trunk: Trunk, connections: Connections) -> None:
        self._trunk = trunk
        self._connections = connections

    # -- up ----------------------------------------------------------------------------------

    def from_child(self, child: Child, frames: Sequence[Buffer]) -> None:
        """Pass on what a child says."""
        child.heard()
        if not child.has_answered and not self._is_answer(child, frames):
            return
        if child.sent is not None and len(frames) == 1:
            self._note_missed(child.sent, frames)
        self._trunk.carry(child.number, [child.header, *frames])

    def _is_answer(self, child: Child, frames: Sequence[Buffer]) -> bool:
        return self._connections.introductions.is_answer(child, self._connections.read(frames))

    def _note_missed(self, sent: Sent, frames: Sequence[Buffer]) -> None:
        """Count on nothing any more, if that's what a relay behind this one says."""
        frame = self._connections.read(frames)
        if isinstance(frame, Relayed) and frame.event == LOST and frame.text == MISSED:
            sent.clear()

    # -- down --------------------------------------------------------------------------------

    def from_trunk(self, frame: Relayed | Cached, frames: Sequence[Buffer], now: float) -> None:
        """Put back what was left out on the way, and see whom a message is for.

        ``frame`` is what the first of the ``frames`` says.
        """
        cached = frame if isinstance(frame, Cached) else None
        frames = frames[1:] if cached else frames
        first: Frame = frame if cached is None else self._connections.read(frames)
        restored = self._trunk.restore(cached, frames)
        if not isinstance(first, Relayed):
            raise ProtocolError("only what is for a child is shortened")
        if restored is not None:
            self._on_relayed(first, restored[1:], now)
            return
        child = self._connections.children.by_number.get(first.child)
        if child is not None:
            self._connections.say(child.route, Unknown())
            self._connections.lose(child, MISSED, now)

    def _on_relayed(self, relayed: Relayed, frames: list[Buffer], now: float) -> None:
        if relayed.event == MARK:
            self._trunk.answer(relayed.child)
        elif relayed.event == MARKED:
            self._trunk.marked(relayed.child, now)
        else:
            child = self._connections.children.by_number.get(relayed.child)
            if child is None:
                return  # it is gone, and the broker will hear that
            if relayed.event == DROPPED:
                self._connections.say(child.route, Unknown())
                pause_s = REFUSED_PAUSE_S if relayed.refused else 0.0
                self._connections.drop(child, now, pause_s)
            elif relayed.event == CARRIED and frames:
                self._carry_down(child, frames, now)

    def _carry_down(self, child: Child, frames: list[Buffer], now: float) -> None:
        if not child.is_greeted:
            frames = self._connections.introductions.greet(child, frames)
        slow = self._connections.downward.carry(child, frames)
        if slow is not None:
            self._connections.give_up(slow, now)
