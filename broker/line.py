"""Jobs that wait for a node: those of a higher priority first, else in the order they came.

A job that ends while it waits stays where it is until its turn, marked as ended. Only this file
changes a line. Everything takes constant time, but for the number of different priorities.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .state import Job

ENDED_MAX = 256  # entries of ended jobs that may lie in a line, or as many as wait in it


class Line:
    """A queue of jobs; ``waiting`` of them have not ended."""

    __slots__ = ("_ended", "_priorities", "_queues", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self._ended = 0
        self._queues: dict[int, deque[Job]] = {}
        self._priorities: list[int] = []  # of these queues, the highest last

    def append(self, job: Job) -> None:
        """Put a new job behind all others of its priority."""
        options = job.spec.options
        self._queue(options.priority if options else 0).append(job)
        self.waiting += 1

    def put_back(self, job: Job) -> None:
        """Put a job that had been taken before all others of its priority."""
        options = job.spec.options
        self._queue(options.priority if options else 0).appendleft(job)
        self.waiting += 1

    def _queue(self, priority: int) -> deque[Job]:
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._queues[priority] = deque()
            insort(self._priorities, priority)
        return queue

    def take(self) -> Job:
        """Take out the first job; there must be one."""
        while True:
            queue = self._queues[self._priorities[-1]]
            while queue:
                job = queue.popleft()
                if not job.ended:
                    self.waiting -= 1
                    return job
                self._ended -= 1
            del self._queues[self._priorities.pop()]  # nothing of that priority is left

    def top(self) -> int:
        """Return the priority of the first job; there must be one."""
        self.put_back(self.take())
        return self._priorities[-1]

    def strike(self, job: Job) -> None:
        """Note that a job has ended while it waited here."""
        assert not job.ended
        job.ended = True
        self.waiting -= 1
        self._ended += 1
        if not self.waiting or (self._ended > ENDED_MAX and self._ended > self.waiting):
            self._sweep()

    def _sweep(self) -> None:
        """Leave out what has ended."""
        jobs = list(self)
        self._queues.clear()
        self._priorities.clear()
        self.waiting = self._ended = 0
        for job in jobs:
            self.append(job)

    def __iter__(self) -> Iterator[Job]:
        """Go over the jobs that wait, in the order in which they will be taken."""
        for priority in reversed(self._priorities):
            for job in self._queues[priority]:
                if not job.ended:
                    yield job

    def __len__(self) -> int:
        """Say how many entries are kept, with those of jobs that have ended."""
        return self.waiting + self._ended
