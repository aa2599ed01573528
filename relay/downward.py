"""What goes down to children, and what waits for those that take in less than they are sent.

How much may wait, for one and for all together, is limited here: whoever is too slow is to be
given up. To a relay frames that it has already aren't sent again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from dispy.protocol.arrivals import Transport
from dispy.protocol.messages import Buffer
from dispy.protocol.pacing import size_of

from .children import Child

WAITING_MAX_BYTES = 8 << 20  # a child that takes in less than it is sent is given up
ALL_WAITING_MAX_BYTES = 64 << 20  # ... and the slowest when all together take in too little


@dataclass(eq=False)
class Waiting:
    """What one child hasn't taken in."""

    messages: deque[list[Buffer]] = field(default_factory=deque)
    size_bytes: int = 0


class Downward:
    """The way down, to all children of one relay."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._slow: dict[Child, Waiting] = {}
        self._waiting_bytes = 0  # for all of them

    def carry(self, child: Child, frames: list[Buffer]) -> Child | None:
        """Pass a message on, or have it wait; return who is too slow, if one is by now."""
        if child not in self._slow and self._send(child, frames):
            return None
        waiting = self._slow.setdefault(child, Waiting())
        waiting.messages.append(frames)
        waiting.size_bytes += size_of(frames)
        self._waiting_bytes += size_of(frames)
        if waiting.size_bytes > WAITING_MAX_BYTES:
            return child
        if self._waiting_bytes > ALL_WAITING_MAX_BYTES:
            return max(self._slow, key=lambda each: self._slow[each].size_bytes)
        return None

    def flush(self) -> bool:
        """Hand over what waits, as far as the transport takes it; return whether that is all."""
        return all([self._flush_child(child) for child in list(self._slow)])

    def forget(self, child: Child) -> None:
        """A child is gone: nothing waits for it any more."""
        waiting = self._slow.pop(child, None)
        if waiting is not None:
            self._waiting_bytes -= waiting.size_bytes

    def clear(self) -> None:
        """All children are gone."""
        self._slow.clear()
        self._waiting_bytes = 0

    @property
    def slow(self) -> set[Child]:
        """Those for whom something waits."""
        return {*self._slow}

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        for waiting in self._slow.values():
            assert waiting.messages
            assert waiting.size_bytes == sum(size_of(each) for each in waiting.messages)
        assert self._waiting_bytes == sum(each.size_bytes for each in self._slow.values())

    def _flush_child(self, child: Child) -> bool:
        waiting = self._slow[child]
        while waiting.messages:
            if not self._send(child, waiting.messages[0]):
                return False
            size = size_of(waiting.messages.popleft())
            waiting.size_bytes -= size
            self._waiting_bytes -= size
        del self._slow[child]
        return True

    def _send(self, child: Child, frames: list[Buffer]) -> bool:
        if child.sent is None:
            return self._transport.send(child.route, frames)
        shorter, news = child.sent.shorten(frames)
        if not self._transport.send(child.route, shorter):
            return False
        child.sent.sent(news)
        return True
