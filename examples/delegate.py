"""One cluster for many functions: each job brings its own.

The computation only calls what it is told to; the function itself comes with the job, in
``dispy_job_depends``, and is gone from the node when the job has ended.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from node_option import command_line

import dispy


def delegate(function: str, *args: Any) -> Any:
    """Run as a job: call the function that came with it, by its name."""
    return globals()[function](*args)


def divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def spread(values: list[float]) -> float:
    return round(statistics.pstdev(values), 3)


def is_palindrome(text: str) -> bool:
    letters = [letter for letter in text.casefold() if letter.isalpha()]
    return letters == letters[::-1]


TASKS: list[tuple[Callable[..., Any], Any]] = [
    (divisors, 360),
    (spread, [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]),
    (is_palindrome, "A man, a plan, a canal: Panama"),
    (divisors, 8128),
    (is_palindrome, "A program, a bus"),
]


def is_right(function: Callable[..., Any], argument: Any, job: dispy.DispyJob) -> bool:
    """Wait for the job and show what it returned; return whether it is what a call returns."""
    result = job()
    if job.status != dispy.DispyJob.Finished:
        print(f"{function.__name__} failed:\n{job.exception}")
        return False
    print(f"{function.__name__}({argument!r}) = {result!r}")
    return bool(result == function(argument))


def main() -> int:
    options = command_line(__doc__).parse_args()
    with dispy.JobCluster(delegate, nodes=options.nodes) as cluster:
        jobs = [
            cluster.submit(function.__name__, argument, dispy_job_depends=[function])
            for function, argument in TASKS
        ]
        right = [is_right(*task, job) for task, job in zip(TASKS, jobs, strict=True)]
        alone = cluster.submit("divisors", 6)
        alone()
    gone = alone.status == dispy.DispyJob.Terminated and "divisors" in (alone.exception or "")
    print("A job without its function fails, as it should:", gone)
    return 0 if all(right) and gone else 1


if __name__ == "__main__":
    raise SystemExit(main())
