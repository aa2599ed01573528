"""Waiting for conditions. Rule: nothing here sleeps for a result, every wait has a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from dispy import DispyJob

PATIENCE_S = 30.0  # far more than anything takes, also on a busy machine
LOOK_S = 0.01


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> float:
    """Return after how many seconds the condition held; fail if it takes too long."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < patience_s, f"after {patience_s} s not yet: {what}"
        time.sleep(LOOK_S)
    return time.monotonic() - begin


def ended(job: DispyJob, patience_s: float = PATIENCE_S) -> DispyJob:
    """Wait for the end of a job; return it."""
    assert job.finish.wait(patience_s), f"{job} hasn't ended after {patience_s} s"
    return job


def all_ended(jobs: Iterable[DispyJob], patience_s: float = PATIENCE_S) -> list[DispyJob]:
    """Wait for the end of all these jobs; return them."""
    deadline = time.monotonic() + patience_s
    return [ended(job, max(0.0, deadline - time.monotonic())) for job in jobs]


def finished(job: DispyJob) -> DispyJob:
    """Wait for the end of a job that must return; return it."""
    ended(job)
    assert job.status == DispyJob.Finished, f"{job}: {job.exception}"
    return job


def is_there(path: Path, patience_s: float = PATIENCE_S) -> str:
    """Wait until a file has a whole line; return its text."""
    until(lambda: path.exists() and path.read_text().endswith("\n"), f"{path.name}", patience_s)
    return path.read_text()
