"""Virtual time: what happens when, in an order that depends on nothing but the calls made."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeAlias

SAME_INSTANT_MAX = 20_000  # events without time going on: somebody spins

Action: TypeAlias = Callable[[], None]


class Clock:
    """A queue of actions by time; those of the same time keep the order of their planning."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0  # how many have happened
        self._planned: list[tuple[float, int, Action]] = []
        self._order = 0

    def at(self, when: float, action: Action) -> None:
        """Plan an action; what is past happens at once."""
        self._order += 1
        heapq.heappush(self._planned, (max(when, self.now), self._order, action))

    def after(self, delay_s: float, action: Action) -> None:
        """Plan an action so many seconds from now."""
        self.at(self.now + delay_s, action)

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; stop early, and return True, once ``done`` says so."""
        planned, same_instant = self._planned, 0
        while planned and planned[0][0] <= until:
            if done is not None and done():
                return True
            when, _, action = heapq.heappop(planned)
            same_instant = 0 if when > self.now else same_instant + 1
            assert same_instant < SAME_INSTANT_MAX, f"something spins at {when:.3f} s"
            self.now = when
            self.events += 1
            action()
        self.now = max(self.now, until)
        return done is not None and done()
