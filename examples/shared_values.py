"""Counters that all jobs of a node share, and that any of them may change.

``set_up`` makes them in memory that job processes share; each job adds what it has found under
the lock. A last job at each node reads them, and the sums must be those of all jobs together.
"""

from __future__ import annotations

import random
from multiprocessing import sharedctypes
from typing import Any

from node_option import command_line

import dispy

JOBS = 30
THROWS = 20_000

totals: Any  # made by set_up: how often two dice showed 2, 3, ... 12


def set_up() -> int:
    """Make the counters, all 0, in shared memory."""
    global totals
    totals = sharedctypes.Array("q", 13)
    return 0


def throw_dice(seed: int) -> list[int]:
    """Run as a job: count throws, add them to the counters; with no seed, read those."""
    if seed < 0:
        return list(totals)
    dice = random.Random(seed)
    counts = [0] * 13
    for _ in range(THROWS):
        counts[dice.randint(1, 6) + dice.randint(1, 6)] += 1
    with totals.get_lock():
        for points, count in enumerate(counts):
            totals[points] += count
    return counts


def added(lists: list[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*lists, strict=True)]


def main() -> int:
    options = command_line(__doc__).parse_args()
    with dispy.JobCluster(throw_dice, nodes=options.nodes, setup=set_up) as cluster:
        jobs = [cluster.submit(seed) for seed in range(JOBS)]
        counts = [job() for job in jobs]
        nodes = [node for node in cluster.status().nodes if node.jobs_done]
        readers = [cluster.submit_node(node, -1) for node in nodes]
        shared = [reader() for reader in readers]
    for job in jobs + readers:
        if job.status != dispy.DispyJob.Finished:
            print(f"job {job.id} failed:\n{job.exception}")
            return 1
    for node, values in zip(nodes, shared, strict=True):
        print(f"{node.name} has counted {sum(values):,} throws of its {node.jobs_done} jobs")
    together = added(shared)
    for points in range(2, 13):
        print(f"{points:3} {together[points]:8,} {'#' * (together[points] * 300 // sum(together))}")
    print("Nothing was lost or counted twice:", together == added(counts))
    return 0 if together == added(counts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
