"""Results that a broker has not acknowledged, after the node has ceased to work for it.

A recovery of its client, or the broker itself, may still ask for them. Pure; bounded in number,
size and time, and what is oldest goes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from dispy.protocol.messages import Body, Done, JobResult

RESULTS_MAX = 10_000  # of one broker
BYTES_MAX = 256 << 20  # of one broker
BROKERS_MAX = 4
RESULT_BYTES = 200  # what a result takes beside its payload


@dataclass(eq=False)
class Kept:
    """What there is for one broker."""

    until: float
    results: deque[tuple[int, JobResult]] = field(default_factory=deque)  # with the computation
    size: int = 0  # bytes

    def add(self, computation: int, result: JobResult) -> None:
        """Keep one more; the oldest go when they are too many."""
        self.results.append((computation, result))
        self.size += _size_of(result)
        while len(self.results) > RESULTS_MAX or self.size > BYTES_MAX:
            _, oldest = self.results.popleft()
            self.size -= _size_of(oldest)


class Spool:
    """All such results, by the broker's instance id. ``keep_s``: for how long."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._kept: dict[str, Kept] = {}

    def __contains__(self, broker: str) -> bool:
        return broker in self._kept

    def keep(self, broker: str, messages: Iterable[Body], now: float) -> None:
        """Keep the results among what a broker has not acknowledged."""
        dones = [message for message in messages if isinstance(message, Done)]
        if not dones:
            return
        kept = self._kept.setdefault(broker, Kept(0.0))
        kept.until = now + self._keep_s
        for done in dones:
            for result in done.results:
                kept.add(done.computation, result)
        if not kept.results:
            del self._kept[broker]
        elif len(self._kept) > BROKERS_MAX:
            del self._kept[min(self._kept, key=lambda each: self._kept[each].until)]

    def take(self, broker: str) -> list[Done]:
        """Return what there is for a broker, by computation, and keep it no longer."""
        kept = self._kept.pop(broker, None)
        dones: dict[int, list[JobResult]] = {}
        for computation, result in kept.results if kept else ():
            dones.setdefault(computation, []).append(result)
        return [Done(computation, results) for computation, results in dones.items()]

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return min((kept.until for kept in self._kept.values()), default=float("inf"))

    def tick(self, now: float) -> None:
        """Drop what nobody came for."""
        self._kept = {peer: kept for peer, kept in self._kept.items() if now < kept.until}

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        assert len(self._kept) <= BROKERS_MAX
        for kept in self._kept.values():
            assert 0 < len(kept.results) <= RESULTS_MAX
            assert kept.size == sum(_size_of(result) for _, result in kept.results) <= BYTES_MAX


def _size_of(result: JobResult) -> int:
    return RESULT_BYTES + len(result.payload) + sum([part.size for part in result.parts])
