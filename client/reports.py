"""What a running job has said so far, and how much of it has been dealt with. Pure.

Records are dealt with in different threads and so out of order; but `Heard` means all records
up to a number. There is a report only for a job that has records, and as long as it runs.
"""

from __future__ import annotations

from collections import deque

from dispy.protocol.messages import RECORDS_AHEAD

AHEAD_MAX = 4 * RECORDS_AHEAD  # that may wait here; a node that sends more has lost count


class Report:
    """The records of one attempt, by their numbers.

    They come in order. A number that is left out never comes: a broker that was restarted has
    taken the record with it.
    """

    __slots__ = ("_done", "_undone", "arrived", "attempt", "heard")

    def __init__(self, attempt: int, before: int) -> None:
        self.attempt = attempt
        self.arrived = before  # the last number that has come
        self.heard = before  # all up to this number have been dealt with, or will never come
        self._undone: deque[int] = deque()  # have come, and wait for themselves or earlier ones
        self._done: dict[int, str] = {}  # dealt with before an earlier one: number to error

    def arrive(self, number: int) -> bool:
        """Whether a record is new."""
        if number <= self.arrived or len(self._undone) >= AHEAD_MAX:
            return False
        self.arrived = number
        self._undone.append(number)
        return True

    def deal(self, number: int, error: str) -> list[tuple[int, str]]:
        """One record has been dealt with; return what can be said to have been heard.

        That is the last number, and before it each number with an error.
        """
        if number not in self._undone:
            return []
        self._done[number] = error
        said: list[tuple[int, str]] = []
        while self._undone and self._undone[0] in self._done:
            self.heard = self._undone.popleft()
            error = self._done.pop(self.heard)
            if said and not said[-1][1]:
                said.pop()  # the new one says so, too
            said.append((self.heard, error))
        return said
