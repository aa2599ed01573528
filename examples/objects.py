"""Objects of the program's own classes go to jobs as arguments and come back as results.

Each job gets a walker, lets it take random steps, and returns it. The class travels to a node
once, not with every job, and what comes back is of the same class again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from node_option import command_line

import dispy

WALKERS = 10
STEPS = 20_000


@dataclass
class Walker:
    """Somebody who wanders about on squared paper, each time with new dice."""

    name: str
    dice: random.Random
    place: complex = 0j
    farthest: float = 0.0
    turns: list[complex] = field(default_factory=lambda: [1, 1j, -1, -1j])

    def walk(self, steps: int) -> None:
        for _ in range(steps):
            self.place += self.dice.choice(self.turns)
            self.farthest = max(self.farthest, abs(self.place))

    def __str__(self) -> str:
        east, north = int(self.place.real), int(self.place.imag)
        return f"{self.name} is at ({east:4}, {north:4}), and was up to {self.farthest:5.1f} away"


def send_away(walker: Walker) -> Walker:
    """Run as a job, on a node; what it prints is the job's ``stdout``."""
    walker.walk(STEPS)
    print(walker)
    return walker


def new_walkers() -> list[Walker]:
    return [Walker(f"walker {n}", random.Random(n)) for n in range(WALKERS)]


def is_right(job: dispy.DispyJob, expected: Walker) -> bool:
    """Show what the job printed; return whether its result is what it must be."""
    result = job()
    if job.status != dispy.DispyJob.Finished:
        print(f"job {job.id} failed:\n{job.exception}")
        return False
    print(job.stdout, end="")
    return isinstance(result, Walker) and str(result) == str(expected)


def main() -> int:
    options = command_line(__doc__).parse_args()
    with dispy.JobCluster(send_away, nodes=options.nodes, depends=[Walker]) as cluster:
        jobs = [cluster.submit(walker) for walker in new_walkers()]
        expected = new_walkers()
        for walker in expected:
            walker.walk(STEPS)
        right = [is_right(*pair) for pair in zip(jobs, expected, strict=True)]
    print("All came back as they would have from a walk at home:", all(right))
    return 0 if all(right) else 1


if __name__ == "__main__":
    raise SystemExit(main())
