"""Jobs that tell what they have found so far, until one of them has something good enough.

Each job looks for fractions that are close to pi, and tells each that is better than those
before. When one is good enough, the program cancels all jobs: none of them would end soon.
"""

from __future__ import annotations

import itertools
import math
import threading
import time

from node_option import command_line

import dispy

JOBS = 4
GOOD_ENOUGH = 1e-6
PATIENCE_S = 60.0


def look_for_fractions(first: int, step: int) -> None:
    """Run as a job: try every ``step``-th denominator from ``first`` on, for ever."""
    tell = dispy_provisional_result  # type: ignore[name-defined]  # noqa: F821  # jobs have it
    best = 1.0
    for denominator in itertools.count(first, step):
        numerator = round(math.pi * denominator)
        error = abs(numerator / denominator - math.pi)
        if error < best:
            best = error
            tell((numerator, denominator, error))
        time.sleep(0.01)


class Search:
    """The best fraction so far."""

    def __init__(self) -> None:
        self.best = (3, 1, 1.0)
        self.found = threading.Event()

    def job_told(self, job: dispy.DispyJob) -> None:
        """Called for each provisional result, and for each job that has ended."""
        if job.status == dispy.DispyJob.ProvisionalResult and job.result[2] < self.best[2]:
            self.best = job.result
            numerator, denominator, error = self.best
            print(f"job {job.id}: pi is about {numerator}/{denominator}, within {error:.1e}")
            if error < GOOD_ENOUGH:
                self.found.set()


def main() -> int:
    options = command_line(__doc__).parse_args()
    search = Search()
    with dispy.JobCluster(
        look_for_fractions, nodes=options.nodes, job_status=search.job_told
    ) as cluster:
        jobs = [cluster.submit(first, JOBS) for first in range(1, JOBS + 1)]
        found = search.found.wait(PATIENCE_S)
        for job in jobs:
            cluster.cancel(job)
        cluster.wait()
    ends = (dispy.DispyJob.Terminated, dispy.DispyJob.Cancelled)
    cancelled = sum(job.status in ends for job in jobs)
    print(f"{'Good enough.' if found else 'Given up.'} {cancelled} of {JOBS} jobs were cancelled.")
    return 0 if found and cancelled == JOBS else 1


if __name__ == "__main__":
    raise SystemExit(main())
