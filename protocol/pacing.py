"""What waits to go over a trunk: peers take turns, and only so much is on its way at a time.

What lies in ZeroMQ's and the system's queues can't be seen, so marks measure it: each is
answered at once when it arrives, and what was sent after the last answered one counts as being
on its way. How much may be follows from how long a mark takes: over a slow trunk a sign of life
mustn't wait for long behind what was sent before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import NamedTuple

from .messages import MARK, Buffer, Relayed
from .wire import Codec

MARK_BYTES = 1 << 17  # between two marks
WAY_MIN_BYTES = 1 << 18  # on its way at least, however slow the trunk is
WAY_MAX_BYTES = 16 << 20
FULL_BYTES = 8 << 20  # waiting: nothing is to be taken from children until half of it is gone
QUICK_S = 0.3  # a mark that is back so soon: more may be on its way
SLOW_S = 0.8  # ... so late: less
SMALL_BYTES = 1 << 14  # messages up to this size go before longer ones of others
SMALL_RUN_BYTES = 1 << 18  # ... but so much of them makes room for a longer one

Transmit = Callable[[list[Buffer]], bool]
REMARK_S = 3.0  # a mark whose answer is so late may be lost: another one is sent
OWN = 0  # the number for what this process itself has to say; it goes first


class Mark(NamedTuple):
    """A mark that hasn't been answered."""

    number: int
    sent_bytes: int  # before it, since the trunk is there
    sent_at: float


class Pacing:
    """All that waits to go over a trunk in one direction. To be made anew with each trunk."""

    def __init__(self, codec: Codec) -> None:
        self.waiting_bytes = 0
        self._codec = codec
        self._waiting: dict[Hashable, deque[list[Buffer]]] = {}
        self._small: deque[Hashable] = deque()  # whose next message is small
        self._large: deque[Hashable] = deque()  # ... is not
        self._small_run = 0  # bytes of small messages since the last long one
        self._marks: deque[Mark] = deque()
        self._last_mark = 0
        self._sent_bytes = 0
        self._marked_bytes = 0  # of these, what was sent before the last mark was
        self._arrived_bytes = 0
        self._way_bytes = WAY_MIN_BYTES
        self._judged = 0  # marks up to this one went out before the last change of _way_bytes

    def add(self, child: Hashable, frames: list[Buffer]) -> None:
        """Let a message wait; those of a child keep their order."""
        size = size_of(frames)
        self.waiting_bytes += size
        waiting = self._waiting.get(child)
        if waiting is not None:
            waiting.append(frames)
            return
        self._waiting[child] = deque([frames])
        self._line_up(child, size)

    def flush(self, now: float, transmit: Transmit) -> bool:
        """Send what may go; return False if the transport takes no more for the moment."""
        while self._waiting and self._on_its_way < self._way_bytes:
            if self._is_mark_due and not self._mark(now, transmit):
                return False
            turns = self._next_turns()
            child = turns[0]
            waiting = self._waiting[child]
            if not transmit(waiting[0]):
                return False
            turns.popleft()
            self._note_sent(size_of(waiting.popleft()), turns is self._small)
            if waiting:
                self._line_up(child, size_of(waiting[0]))
            else:
                del self._waiting[child]
        if self._waiting and (self._is_mark_due or self._is_answer_late(now)):
            return self._mark(now, transmit)  # its answer lets the others go
        return True

    @property
    def is_full(self) -> bool:
        """Whether as much waits already as may be on its way."""
        return self.waiting_bytes >= self._way_bytes

    def marked(self, number: int, now: float) -> None:
        """The other side has answered a mark: all that was sent before it has arrived."""
        while self._marks and self._marks[0].number <= number:
            mark = self._marks.popleft()
            self._arrived_bytes = mark.sent_bytes
            if mark.number == number and number > self._judged:
                self._judge(now - mark.sent_at)

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        turns = [*self._small, *self._large]
        assert len(turns) == len(self._waiting) and set(turns) == set(self._waiting)
        held = [frames for each in self._waiting.values() for frames in each]
        assert self.waiting_bytes == sum(size_of(frames) for frames in held)
        assert self._arrived_bytes <= self._marked_bytes <= self._sent_bytes

    @property
    def _on_its_way(self) -> int:
        return self._sent_bytes - self._arrived_bytes

    @property
    def _is_mark_due(self) -> bool:
        return self._sent_bytes - self._marked_bytes >= MARK_BYTES

    def _is_answer_late(self, now: float) -> bool:
        return not self._marks or now > self._marks[-1].sent_at + REMARK_S

    def _line_up(self, child: Hashable, size: int) -> None:
        """Give a child its place among those with something to send next of about this size."""
        if child == OWN:
            self._small.appendleft(child)
        elif size <= SMALL_BYTES:
            self._small.append(child)
        else:
            self._large.append(child)

    def _next_turns(self) -> deque[Hashable]:
        if not self._large:
            return self._small
        if not self._small or self._small_run >= SMALL_RUN_BYTES:
            return self._large
        return self._small

    def _note_sent(self, size: int, is_small: bool) -> None:
        self.waiting_bytes -= size
        self._sent_bytes += size
        self._small_run = self._small_run + size if is_small else 0

    def _mark(self, now: float, transmit: Transmit) -> bool:
        number = self._last_mark + 1
        header, _ = self._codec.encode(Relayed(number, MARK))
        if not transmit([header]):
            return False
        self._last_mark = number
        self._marked_bytes = self._sent_bytes
        self._marks.append(Mark(number, self._sent_bytes, now))
        return True

    def _judge(self, took_s: float) -> None:
        if took_s > SLOW_S:
            self._way_bytes = max(WAY_MIN_BYTES, self._way_bytes // 2)
        elif took_s < QUICK_S and self._way_bytes < WAY_MAX_BYTES:
            self._way_bytes *= 2
        else:
            return
        self._judged = self._last_mark


def size_of(frames: list[Buffer]) -> int:
    """How many bytes a message has; each frame counts for a bit more."""
    return sum([len(frame) for frame in frames]) + 64 * len(frames)
