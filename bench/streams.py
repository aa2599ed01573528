"""What a job that says much costs: provisional results and small files, and their memory."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .files import Peak
from .nodes import started
from .work import check

if TYPE_CHECKING:
    import dispy


class Stream(NamedTuple):
    """Rate of what one job sends, and how far client and node grow at the peak."""

    per_s: float
    client_growth_bytes: float
    node_growth_bytes: float


def results(count: int) -> int:
    """A job with many provisional results."""
    for n in range(count):
        dispy_provisional_result(n)  # type: ignore[name-defined]  # noqa: F821
    return count


def files(count: int) -> int:
    """A job that sends many small files; returns how many arrived."""
    sent = 0
    for n in range(count):
        with open("small", "wb") as file:
            file.write(b"%d" % n)
        os.replace("small", f"{n}.txt")
        sent += dispy_send_file(f"{n}.txt") == 0  # type: ignore[name-defined]  # noqa: F821
        os.unlink(f"{n}.txt")
    return sent


def provisional(count: int) -> Stream:
    """Measure provisional results."""
    seen = [0]

    def on_job(job: dispy.DispyJob) -> None:
        seen[0] += job.status == 7

    stream = _run(results, count, on_job)
    check(seen[0] == count + 10, "provisional results")
    return stream


def small_files(count: int) -> Stream:
    """Measure files."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            stream = _run(files, count, None)
            check(len(os.listdir(folder)) == count, "files")
        finally:
            os.chdir(here)
    return stream


def _run(function: object, count: int, on_job: object) -> Stream:
    import dispy

    with (
        started() as node,
        dispy.JobCluster(function, nodes=[node.address], job_status=on_job) as cluster,  # type: ignore[arg-type]
    ):
        cluster.submit(10)()
        peak = Peak([os.getpid(), node.pid])
        began = time.perf_counter()
        job = cluster.submit(count)
        check(job() == count, f"a job that says much: {job.exception}")
        seconds = time.perf_counter() - began
        client, there = peak.growth()
    return Stream(count / seconds, client, there)
