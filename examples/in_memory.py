"""Data that each node reads from a file once, and that all jobs there find in memory.

``set_up`` runs once at each node, before its first job; what it makes global is seen by all
jobs, without being copied. ``clean_up`` runs when the cluster is closed.
"""

from __future__ import annotations

import bisect
import random
from pathlib import Path

from node_option import command_line
from scratch_folder import scratch_folder

import dispy

STATIONS = 50_000
JOBS = 40

# Made by set_up, at the node.
names: list[str]
heights: list[int]


def set_up(file: str) -> int:
    """Read the table into memory; 0 means that the node is ready for jobs."""
    global names, heights
    rows = [line.split(";") for line in Path(file).read_text().splitlines()]
    heights = [int(height) for height, _ in rows]
    names = [name for _, name in rows]
    return 0


def clean_up(file: str) -> None:
    """Say good-bye: gets the same arguments as ``set_up``."""
    global names, heights
    del names, heights


def next_above(height: int) -> str:
    """Run as a job: find the lowest station above this height."""
    return names[bisect.bisect_right(heights, height)]


def write_table(path: Path) -> list[tuple[int, str]]:
    """Invent stations, write them to a file in the order of their heights, return them."""
    dice = random.Random(0)
    stations = sorted((dice.randrange(4_000_000), f"S{n:05}") for n in range(STATIONS))
    path.write_text("".join(f"{height};{name}\n" for height, name in stations))
    return stations


def is_right(job: dispy.DispyJob, height: int, stations: list[tuple[int, str]]) -> bool:
    """Wait for the job; compare its result with what is found in a different way."""
    name = job()
    if job.status != dispy.DispyJob.Finished:
        print(f"job {job.id} failed:\n{job.exception}")
        return False
    return bool(name == min(station for station in stations if station[0] > height)[1])


def main() -> int:
    options = command_line(__doc__).parse_args()
    with scratch_folder():
        table = Path("stations.txt")
        stations = write_table(table)
        hosts = options.nodes or ["*"]
        cluster = dispy.JobCluster(
            next_above,
            nodes=[{"host": host, "setup_args": (table.name,)} for host in hosts],
            depends=[str(table)],
            setup=set_up,
            cleanup=clean_up,
        )
        with cluster:
            jobs = {height: cluster.submit(height) for height in range(0, 1000 * JOBS, 1000)}
            right = sum(is_right(job, height, stations) for height, job in jobs.items())
            cluster.print_status()
    print(f"{STATIONS:,} stations were read once at each node, and not by any job")
    print(f"{right} of {JOBS} jobs found the right station")
    return 0 if right == JOBS else 1


if __name__ == "__main__":
    raise SystemExit(main())
