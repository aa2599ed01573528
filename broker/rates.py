"""How many things happen per second, of late: an average that forgets exponentially."""

from __future__ import annotations

from math import exp

MEMORY_S = 30.0  # what is older has little weight
STEP_S = 0.1  # what happens within so short a time counts as one event


class Rate:
    """Counts events. It knows nothing but two numbers, however many there are."""

    __slots__ = ("_at", "_level")

    def __init__(self) -> None:
        self._level = 0.0
        self._at = 0.0

    def add(self, count: int, now: float) -> None:
        """Note that so many have happened."""
        if now > self._at + STEP_S:
            self._level = self._faded(now)
            self._at = now
        self._level += count

    def per_second(self, now: float) -> float:
        """Return how many happen per second."""
        return self._faded(now) / MEMORY_S

    def _faded(self, now: float) -> float:
        return self._level * exp((self._at - now) / MEMORY_S) if self._level else 0.0
