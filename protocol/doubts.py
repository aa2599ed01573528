"""When to try all connections that peers have made, after one was closed: which, nobody says.

The transport notices who is gone when something is sent, but maybe not at once; so all are tried
a few times. Pure.
"""

from __future__ import annotations

TRIES = 3
TRY_S = 0.25  # from one to the next


class Doubts:
    """Those of one process. ``next_at``: when to try next; never while there are none."""

    def __init__(self) -> None:
        self.next_at = float("inf")
        self._left = 0

    def begin(self, now: float) -> None:
        """A connection was closed."""
        if not self._left:  # else whoever comes and goes would have us try each time
            self.next_at = now
        self._left = TRIES

    def are_due(self, now: float) -> bool:
        """Whether to try them now; that counts as done."""
        if now < self.next_at:
            return False
        self._left -= 1
        self.next_at = now + TRY_S if self._left else float("inf")
        return True
