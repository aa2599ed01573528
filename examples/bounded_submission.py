"""Many jobs, of which only a few exist at any time.

A program that submits a billion jobs at once keeps the arguments and results of a billion jobs.
This one keeps a few: it waits before each ``submit`` until there is room, and ``job_status``
makes room when a job has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from node_option import command_line

import dispy

LIMIT = 400_000
STEP = 1_000
PRIMES = 33_860  # below LIMIT, as tables have it
AT_ONCE = 20


def count_primes(first: int, last: int) -> int:
    """Run as a job: count the primes from ``first`` up to, but without, ``last``."""
    odd = (n for n in range(max(first, 2), last) if n % 2 or n == 2)
    return sum(all(n % d for d in range(3, int(n**0.5) + 1, 2)) for n in odd)


class Tally:
    """Results so far, and room for jobs."""

    def __init__(self) -> None:
        self.room = threading.Semaphore(AT_ONCE)
        self.jobs = 0
        self.failed = 0
        self.primes = 0

    def job_ended(self, job: dispy.DispyJob) -> None:
        """Called for each job, in another thread than the one that submits."""
        self.jobs += 1
        if job.status == dispy.DispyJob.Finished:
            self.primes += job.result
        else:
            self.failed += 1
            print(f"job {job.id} failed:\n{job.exception}", flush=True)
        self.room.release()


def ranges() -> Iterator[tuple[int, int]]:
    for first in range(0, LIMIT, STEP):
        yield first, min(first + STEP, LIMIT)


def main() -> int:
    options = command_line(__doc__).parse_args()
    tally = Tally()
    most = 0
    with dispy.JobCluster(
        count_primes, nodes=options.nodes, job_status=tally.job_ended, max_tasks_per_child=None
    ) as cluster:
        for number, (first, last) in enumerate(ranges()):
            tally.room.acquire()
            cluster.submit(first, last)
            most = max(most, cluster.status().jobs_pending)
            if number % 50 == 0:
                print(f"submitted {number:3} jobs, {tally.jobs:3} have ended", flush=True)
    print(f"{tally.jobs} jobs, at most {most} of them at a time")
    print(f"there are {tally.primes:,} primes below {LIMIT:,}")
    well = tally.primes == PRIMES and not tally.failed and most <= AT_ONCE
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
