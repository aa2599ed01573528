"""Very many jobs, while job processes and nodes are killed at random.

Each of the two variants has 50,000 jobs; DISPY_TEST_SOAK says otherwise.
"""

from __future__ import annotations

import os
import random
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dispy import DispyJob

from .conftest import NewCluster
from .records import noted
from .test_faults import KilledNodes, repeatedly, square, statuses, submit_all
from .waiting import all_ended

JOBS = int(os.environ.get("DISPY_TEST_SOAK", "50000"))
JOB_KILL_S = 0.1


@pytest.mark.timeout(60 + JOBS / 200)
@pytest.mark.parametrize("reentrant", [False, True], ids=["once", "reentrant"])
def test_every_job_ends_once_and_nothing_is_left(
    new_cluster: NewCluster, tmp_path: Path, reentrant: bool
) -> None:
    nodes = KilledNodes(tmp_path, count=2, cpus=2)
    dice = random.Random(4)
    threads = threading.active_count()

    def kill_a_job_process() -> None:
        with suppress(psutil.Error, IndexError):
            dice.choice(dice.choice(nodes.nodes).job_processes()).kill()

    try:
        cluster = new_cluster(square, *nodes.nodes, max_tasks_per_child=None, reentrant=reentrant)
        record = tmp_path / "record"
        jobs: list[DispyJob] = []
        with repeatedly(kill_a_job_process, JOB_KILL_S):
            jobs = submit_all(cluster, record, JOBS, lambda: 0.001)
            with repeatedly(nodes.kill_one, 0.7):
                all_ended(jobs, 60 + JOBS / 200)
        assert cluster.close()
        counts = statuses(jobs)
        lost = {DispyJob.Terminated, *([] if reentrant else [DispyJob.Abandoned])}
        assert set(counts) <= {DispyJob.Finished, *lost}
        assert counts[DispyJob.Terminated]  # those whose processes were killed
        if not reentrant:
            assert max(noted(record).values()) == 1
        print(counts, "nodes killed:", len(nodes.dead))
        assert nodes.dead
        nodes.stop()
    finally:
        nodes.clear_away()
    assert threading.active_count() <= threads + 3  # session, callbacks, broker
