"""The jobs of a cluster that have not been sent yet: higher priorities first. Pure.

Almost all jobs have priority 0: they wait in a plain queue and cost nothing more.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator

from .job import DispyJob


class Line:
    """Jobs in the order in which they go; those that have ended meanwhile are still in it."""

    def __init__(self, jobs: Iterable[DispyJob] = ()) -> None:
        self._plain: deque[DispyJob] = deque()
        self._others: list[tuple[int, int, DispyJob]] = []  # a heap of (-priority, seq, job)
        for job in jobs:
            self.append(job)

    def append(self, job: DispyJob) -> None:
        """Add a job; its number is higher than that of all others."""
        priority = priority_of(job)
        if priority == 0:
            self._plain.append(job)
        else:
            heapq.heappush(self._others, (-priority, job._seq, job))

    def put_back(self, job: DispyJob) -> None:
        """Add a job that was taken off before: it goes where it was."""
        heapq.heappush(self._others, (-priority_of(job), job._seq, job))

    def pop(self) -> DispyJob:
        """Take the job off that goes next."""
        if not self._others:
            return self._plain.popleft()
        if self._plain and (0, self._plain[0]._seq) < self._others[0][:2]:
            return self._plain.popleft()
        return heapq.heappop(self._others)[2]

    def before(self, job: DispyJob) -> Iterator[DispyJob]:
        """Go through the jobs that go before this one, in no order."""
        own = (-priority_of(job), job._seq)
        return (other for other in self if (-priority_of(other), other._seq) < own)

    def __iter__(self) -> Iterator[DispyJob]:
        """Go through all jobs, in no order."""
        yield from self._plain
        for _, _, job in self._others:
            yield job

    def __len__(self) -> int:
        return len(self._plain) + len(self._others)


def priority_of(job: DispyJob) -> int:
    """The priority of a job that has not ended."""
    spec = job._spec
    return 0 if spec is None or spec.options is None else spec.options.priority
