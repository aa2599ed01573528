"""Numbers as ranges: which jobs of a cluster are on the broker's disk. Pure.

Jobs are accepted nearly in the order of their numbers, so that a million of them are a few
ranges, and asking about one is a search among these.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Ranges:
    """A set of numbers that only grows. Both ends of a range belong to it."""

    __slots__ = ("_firsts", "_lasts", "count")

    def __init__(self) -> None:
        self._firsts: list[int] = []  # sorted; ranges neither overlap nor touch
        self._lasts: list[int] = []
        self.count = 0  # how many numbers there are

    def add(self, first: int, last: int) -> None:
        """Add the numbers from ``first`` to ``last``; some may be there. An empty range is none."""
        if first > last:
            return
        begin = bisect_left(self._lasts, first - 1)  # the first range that it meets or touches
        end = bisect_right(self._firsts, last + 1)  # the one after the last of these
        if begin < end:
            first = min(first, self._firsts[begin])
            last = max(last, self._lasts[end - 1])
        known = zip(self._firsts[begin:end], self._lasts[begin:end], strict=True)
        self.count += last - first + 1 - sum(high - low + 1 for low, high in known)
        self._firsts[begin:end] = [first]
        self._lasts[begin:end] = [last]

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._firsts)
