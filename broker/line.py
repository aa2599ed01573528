"""Jobs that wait for a node: those of a higher priority first, else in the order they came.

A job that ends while it waits stays where it is until its turn, marked as ended. Only this file
changes a line. Everything takes constant time, but for the number of different priorities.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .state import Batch, Job

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

    def count_from(self, priority: int) -> int:
        """Say how many entries there are of this priority and higher ones."""
        count = 0
        for each in reversed(self._priorities):
            if each < priority:
                break
            count += len(self._queues[each])
        return count

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


class Backlog:
    """Batches of jobs that wait on disk, each of one priority; ``waiting`` jobs in all.

    Jobs in memory of the same priority that came later may overtake them.
    """

    __slots__ = ("_batches", "_firsts", "_queues", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self._queues: dict[int, deque[Batch]] = {}  # by priority, in the order in which they came
        self._firsts: list[int] = []  # lowest seqs of all batches, sorted; no two overlap
        self._batches: dict[int, Batch] = {}  # by these

    def append(self, batch: Batch) -> None:
        """Put a batch behind all others of its priority."""
        self._queues.setdefault(batch.priority, deque()).append(batch)
        insort(self._firsts, batch.first)
        self._batches[batch.first] = batch
        self.waiting += batch.left

    def remove(self, batch: Batch) -> None:
        """Take a batch out, with what has not ended of it."""
        queue = self._queues[batch.priority]
        queue.remove(batch)
        if not queue:
            del self._queues[batch.priority]
        del self._firsts[bisect_left(self._firsts, batch.first)]
        del self._batches[batch.first]
        self.waiting -= batch.left

    def find(self, seq: int) -> Batch | None:
        """Return the batch that a job is in; the job may have ended."""
        at = bisect_right(self._firsts, seq) - 1
        batch = self._batches[self._firsts[at]] if at >= 0 else None
        return batch if batch is not None and seq <= batch.last else None

    def __contains__(self, batch: Batch) -> bool:
        return self._batches.get(batch.first) is batch

    def strike(self, batch: Batch) -> None:
        """Note that a job of a batch that waits here is about to end."""
        assert batch.left > 0
        self.waiting -= 1

    def has(self, priority: int) -> bool:
        """Whether jobs of this priority wait here."""
        return priority in self._queues

    def __iter__(self) -> Iterator[Batch]:
        """Go over the batches in the order in which they will be loaded."""
        for priority in sorted(self._queues, reverse=True):
            yield from self._queues[priority]

    def __len__(self) -> int:
        """Say how many batches there are."""
        return len(self._firsts)
