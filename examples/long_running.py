"""Jobs without end, which return the best they have when they are cancelled.

Each job shortens a round trip through cities, for as long as it may. ``cancel`` raises
KeyboardInterrupt in it; it catches that and has some seconds to return its result.
"""

from __future__ import annotations

import math
import random
import threading
import time

from node_option import command_line

import dispy

JOBS = 2
CITIES = 60
RUN_S = 2.0
START_S = 30.0

started = threading.Event()


def cities() -> list[tuple[float, float]]:
    """Return the same cities each time, in no good order."""
    dice = random.Random(0)
    return [(dice.random(), dice.random()) for _ in range(CITIES)]


def length(tour: list[tuple[float, float]]) -> float:
    return sum(math.dist(one, other) for one, other in zip(tour, tour[1:] + tour[:1], strict=True))


def shorten(tour: list[tuple[float, float]], seed: int) -> tuple[int, list[tuple[float, float]]]:
    """Run as a job: turn pieces of the tour round for as long as that helps, for ever."""
    dice = random.Random(seed)
    tries = 0
    try:
        while True:
            tries += 1
            first, last = sorted(dice.sample(range(len(tour) + 1), 2))
            other = tour[:first] + tour[first:last][::-1] + tour[last:]
            if length(other) < length(tour):
                tour = other
    except KeyboardInterrupt:
        return tries, tour


def heard(status: int, node: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
    """Called for each change of a node or a job."""
    if status == dispy.DispyJob.Running:
        started.set()


def main() -> int:
    options = command_line(__doc__).parse_args()
    before = length(cities())
    with dispy.JobCluster(shorten, nodes=options.nodes, cluster_status=heard) as cluster:
        jobs = [cluster.submit(cities(), seed) for seed in range(JOBS)]
        started.wait(START_S)
        print(f"The tour is {before:.2f} long. Jobs run, for {RUN_S:.0f} s...", flush=True)
        time.sleep(RUN_S)
        for job in jobs:
            cluster.cancel(job)
        cluster.wait()
    lengths = [report(job) for job in jobs if job.status != dispy.DispyJob.Cancelled]
    print(f"The best tour is {min(lengths, default=before):.2f} long.")
    return 0 if lengths and max(lengths) < 0.7 * before else 1


def report(job: dispy.DispyJob) -> float:
    """Print what a job has reached; return the length of its tour."""
    if job.status != dispy.DispyJob.Finished:
        print(f"job {job.id} failed:\n{job.exception}")
        return math.inf
    tries, tour = job.result
    print(f"job {job.id} made {tries:,} tries; its tour is {length(tour):.2f} long")
    return length(tour) if sorted(tour) == sorted(cities()) else math.inf


if __name__ == "__main__":
    raise SystemExit(main())
