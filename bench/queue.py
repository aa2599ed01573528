"""What it costs to have a million jobs waiting: memory, and whether submitting stays linear."""

from __future__ import annotations

import gc
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from .usage import resident_bytes
from .work import no_op

if TYPE_CHECKING:
    import dispy

NOBODY = "127.0.0.1:1"  # a node that isn't there holds all jobs back
PARTS = 10  # the first and the last tenth are compared
SETTLE_S = 2.0  # the broker takes its share of the jobs meanwhile


class Queue(NamedTuple):
    """Figures of a queue; memory is the client's and the broker's together."""

    bytes_per_job: float
    first_per_s: float
    last_per_s: float


def queue(count: int) -> Queue:
    """Submit jobs that nobody runs. The cluster is left as it is: end the process."""
    import dispy

    logging.disable()  # the absence of the node is no news
    cluster = dispy.JobCluster(no_op, nodes=[NOBODY], max_tasks_per_child=None)
    jobs = [cluster.submit(0)]
    gc.collect()
    before = resident_bytes()
    rates = [_submit(cluster, jobs, count // PARTS) for _ in range(PARTS)]
    time.sleep(SETTLE_S)
    return Queue((resident_bytes() - before) / count, rates[0], rates[-1])


def _submit(cluster: dispy.JobCluster, jobs: list[dispy.DispyJob], count: int) -> float:
    submit = cluster.submit
    began = time.perf_counter()
    jobs.extend(submit(0) for _ in range(count))
    return count / (time.perf_counter() - began)
