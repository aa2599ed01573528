"""A short-lived client with some of everything, at a shared broker.

    program.py BROKER ROUND

It runs all kinds of jobs, checks what comes of them, closes its clusters and ends.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import dispy
from dispy import DispyJob

TINY = 400
FILES = 4  # different contents over all rounds, since the broker keeps what it was sent
FILE_BYTES = 300_000
PATIENCE_S = 60.0


def square(number: int) -> int:
    """Return the square."""
    return number * number


def digest(name: str) -> str:
    """Return the digest of a file, and send it back."""
    import hashlib

    dispy_send_file(name)  # type: ignore[name-defined]  # noqa: F821
    with open(name, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def tell(count: int) -> int:
    """Say provisional results."""
    for number in range(count):
        dispy_provisional_result(number)  # type: ignore[name-defined]  # noqa: F821
    return count


def wait_long() -> None:
    """Be cancelled."""
    import time

    time.sleep(600)


def ended(jobs: Sequence[DispyJob], status: int = DispyJob.Finished) -> list[Any]:
    """Wait for all of them; return their results."""
    for job in jobs:
        assert job.finish.wait(PATIENCE_S), job
        assert job.status == status, (job, job.exception)
    return [job.result for job in jobs]


def tiny_jobs(broker: str, dice: random.Random) -> None:
    """Many jobs that take no time, and some in fresh processes."""
    fresh = dispy.SharedJobCluster(square, scheduler_node=broker)
    reused = dispy.SharedJobCluster(square, scheduler_node=broker, max_tasks_per_child=None)
    jobs = [reused.submit(n) for n in range(TINY)] + [fresh.submit(n) for n in range(10)]
    assert ended(jobs) == [n * n for n in [*range(TINY), *range(10)]]
    assert fresh.close() and reused.close()


def programs(broker: str, dice: random.Random) -> None:
    """Programs, with output."""
    with dispy.SharedJobCluster("echo", scheduler_node=broker) as cluster:
        jobs = [cluster.submit(f"hello-{n}") for n in range(10)]
        assert ended(jobs) == [0] * 10, [job.stderr for job in jobs]
        assert [job.stdout for job in jobs] == [b"hello-%d\n" % n for n in range(10)]


def files(broker: str, dice: random.Random) -> None:
    """Files of clusters and of jobs, there and back."""
    names = [f"data-{dice.randrange(FILES)}" for _ in range(2)]
    for name in names:
        with open(name, "wb") as file:
            file.write(random.Random(name).randbytes(FILE_BYTES))
    right = [hashlib.sha256(random.Random(name).randbytes(FILE_BYTES)) for name in names]
    with dispy.SharedJobCluster(digest, scheduler_node=broker, depends=names[:1]) as cluster:
        jobs = [cluster.submit(names[0]), cluster.submit(names[1], dispy_job_depends=names[1:])]
        assert ended(jobs) == [each.hexdigest() for each in right]


def provisional(broker: str, dice: random.Random) -> None:
    """Provisional results."""
    told: list[int] = []

    def status(job: DispyJob) -> None:
        if job.status == DispyJob.ProvisionalResult:
            told.append(job.result)

    with dispy.SharedJobCluster(tell, scheduler_node=broker, job_status=status) as cluster:
        assert ended([cluster.submit(20) for _ in range(4)]) == [20] * 4
    assert sorted(told) == sorted([*range(20)] * 4), told


def cancels(broker: str, dice: random.Random) -> None:
    """Jobs that wait or run, and don't get far."""
    with dispy.SharedJobCluster(wait_long, scheduler_node=broker, cancel_grace=0.2) as cluster:
        jobs = [cluster.submit() for _ in range(30)]
        while not any(job.status == DispyJob.Running for job in jobs):
            time.sleep(0.01)
        for job in jobs:
            cluster.cancel(job)
        for job in jobs:
            assert job.finish.wait(PATIENCE_S), job
            assert job.status in (DispyJob.Cancelled, DispyJob.Terminated), job


def main(broker: str, seed: int) -> None:
    """Do some of it, in any order."""
    dice = random.Random(seed)
    kinds = [tiny_jobs, programs, files, provisional, cancels]
    dice.shuffle(kinds)
    for kind in kinds:
        kind(broker, dice)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
