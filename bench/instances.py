"""What an instance of a class of the program costs as an argument, beside an int.

``python -m bench.instances COUNT`` is the program: its class belongs to ``__main__``, which no
node has. It prints three rates: with ints, with instances, and with instances and the class in
``depends``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from .throughput import jobs_per_s
from .work import Runner

REPEATS = 3  # of all three in turn, since a machine's speed changes from second to second


class Point:
    """An object as programs have them."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y


def take(point: Any) -> int:
    """The smallest job with an object."""
    return point if isinstance(point, int) else int(point.x)


def rates(count: int) -> dict[str, float]:
    """Measure in a program of its own; jobs/s by kind of argument."""
    command = [sys.executable, "-m", "bench.instances", str(count)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def _rate(count: int, depends: Sequence[object], is_int: bool) -> float:
    import dispy

    with dispy.JobCluster(take, depends=depends, max_tasks_per_child=None) as cluster:

        def submit(n: Any) -> Any:
            return cluster.submit(n if is_int else Point(n, 0))

        return jobs_per_s(Runner(submit), count)


def main(count: int) -> None:
    """Print the rates as JSON."""
    kinds = {"int": ((), True), "instance": ((), False), "depends": ((Point,), False)}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(REPEATS):
        for kind, (depends, is_int) in kinds.items():
            found[kind].append(_rate(count, depends, is_int))
    print(json.dumps({kind: median(values) for kind, values in found.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
