"""What a running job has said so far, and how much of it has been dealt with. Pure.

Records are dealt with in different threads and so out of order; but `Heard` means all records
up to a number. There is a report only for a job that has records, and as long as it runs.
"""

from __future__ import annotations

from dispy.protocol.messages import RECORDS_AHEAD

AHEAD_MAX = 4 * RECORDS_AHEAD  # that may wait here; a node that sends more has lost count


class Report:
    """The records of one attempt, by their numbers."""

    __slots__ = ("_done", "arrived", "attempt", "heard")

    def __init__(self, attempt: int, before: int) -> None:
        self.attempt = attempt
        self.arrived = before  # the last number that has come
        self.heard = before  # all up to this number have been dealt with
        self._done: dict[int, str] = {}  # dealt with before an earlier one: number to error

    def arrive(self, number: int) -> bool:
        """Whether a record is new."""
        if number <= self.arrived or number > self.heard + AHEAD_MAX:
            return False
        self.arrived = number
        return True

    def deal(self, number: int, error: str) -> list[tuple[int, str]]:
        """One record has been dealt with; return what can be said to have been heard.

        That is the last number, and before it each number with an error.
        """
        if not self.heard < number <= self.arrived:
            return []
        self._done[number] = error
        said: list[tuple[int, str]] = []
        while self.heard + 1 in self._done:
            self.heard += 1
            error = self._done.pop(self.heard)
            if said and not said[-1][1]:
                said.pop()  # the new one says so, too
            said.append((self.heard, error))
        return said
