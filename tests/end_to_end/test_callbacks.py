"""What job_status and cluster_status are told: all of it, in order, and nothing after close."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import DispyJob, DispyNode

from .changes import Change, Changes, ready
from .conftest import NewCluster, RunProgram, StartNode
from .processes import NodeProcess
from .waiting import all_ended, ended, until

Created, Running, Provisional = DispyJob.Created, DispyJob.Running, DispyJob.ProvisionalResult
Cancelled, Terminated, Abandoned, Finished = (
    DispyJob.Cancelled,
    DispyJob.Terminated,
    DispyJob.Abandoned,
    DispyJob.Finished,
)
PATIENCE_S = 30.0


def double(number: int) -> int:
    return number * 2


def improve(count: int) -> str:
    for number in range(count):
        dispy_provisional_result(number)  # type: ignore[name-defined]  # noqa: F821
    return "best"


def wait_for(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.005)


def fail(*args: object) -> None:
    raise ValueError("as it should")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that jobs wait for; it's there at the latest when the test ends."""
    path = tmp_path / "gate"
    yield path
    path.touch()


class Ends:
    """To be given as ``job_status``."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, int, Any]] = []
        self.jobs: list[DispyJob] = []

    def __call__(self, job: DispyJob) -> None:
        self.all.append((job.id, job.status, job.result))
        self.jobs.append(job)


# -- what is told ----------------------------------------------------------------------------------


def test_a_job_with_provisional_results(node: NodeProcess, new_cluster: NewCluster) -> None:
    ends, changes = Ends(), Changes()
    cluster = new_cluster(improve, node, job_status=ends, cluster_status=changes)
    job = cluster.submit(3)
    assert job() == "best"
    cluster.close()
    provisional = [(1, Provisional, 0), (1, Provisional, 1), (1, Provisional, 2)]
    assert ends.all == [*provisional, (1, Finished, "best")]
    assert changes.of_job(job) == [Created, Running, *[Provisional] * 3, Finished]
    name = cluster.status().nodes[0].name
    assert changes.of_node(name) == [DispyNode.Initialized, DispyNode.Closed]
    results = [change.result for change in changes.all if change.status == Provisional]
    assert results == [0, 1, 2]
    assert [change.node for change in changes.all if change.job and change.status != Created] == [
        name
    ] * 5
    assert ends.jobs[-1] is job
    assert [each.result for each in ends.jobs[:3]] == [0, 1, 2]  # copies, which don't change


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_a_job_that_fails(
    node: NodeProcess, new_cluster: NewCluster, max_tasks: int | None
) -> None:
    ends, changes = Ends(), Changes()
    cluster = new_cluster(
        fail, node, job_status=ends, cluster_status=changes, max_tasks_per_child=max_tasks
    )
    job = cluster.submit()
    cluster.close()
    assert ends.all == [(1, Terminated, None)]
    assert changes.of_job(job) == [Created, Running, Terminated]


def test_jobs_that_are_cancelled(node: NodeProcess, new_cluster: NewCluster, gate: Path) -> None:
    ends, changes = Ends(), Changes()
    cluster = new_cluster(wait_for, node, job_status=ends, cluster_status=changes)
    jobs = [cluster.submit(gate) for _ in range(4)]
    until(lambda: all(job.status == Running for job in jobs[:2]), "two jobs that run")
    for job in reversed(jobs):
        assert cluster.cancel(job) == 0
    all_ended(jobs)
    cluster.close()
    for job in jobs[2:]:
        assert changes.of_job(job) == [Created, Cancelled]
    for job in jobs[:2]:
        assert changes.of_job(job)[:-1] == [Created, Running]
        assert changes.of_job(job)[-1] in (Cancelled, Terminated)
    assert Counter(job for job, _, _ in ends.all) == {1: 1, 2: 1, 3: 1, 4: 1}


def test_jobs_of_a_node_that_is_lost(
    start_node: StartNode, new_cluster: NewCluster, gate: Path
) -> None:
    ends, changes = Ends(), Changes()
    node = start_node("--name", "lost")
    cluster = new_cluster(wait_for, node, job_status=ends, cluster_status=changes)
    job = cluster.submit(gate)
    until(lambda: job.status == Running, "Running")
    node.kill()
    ended(job)
    cluster.close()
    assert ends.all == [(1, Abandoned, None)]
    assert changes.of_job(job) == [Created, Running, Abandoned]
    assert changes.of_node("lost") == [DispyNode.Initialized, DispyNode.Closed]


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_a_job_that_is_run_again_is_created_again(
    start_node: StartNode, new_cluster: NewCluster, gate: Path, max_tasks: int | None
) -> None:
    ends, changes = Ends(), Changes()
    first = start_node("--name", "first")
    cluster = new_cluster(
        wait_for,
        first,
        reentrant=True,
        job_status=ends,
        cluster_status=changes,
        max_tasks_per_child=max_tasks,
    )
    job = cluster.submit(gate)
    until(lambda: job.status == Running, "Running")
    first.kill()
    until(lambda: job.status == Created, "Created")
    assert (job.start_time, job.host, cluster.status().jobs_pending) == (None, None, 1)
    start_node("--name", "second", port=first.port)
    until(lambda: job.status == Running, "Running")
    gate.touch()
    ended(job)
    cluster.close()
    assert changes.of_job(job) == [Created, Running, Created, Running, Finished]
    assert ends.all == [(1, Finished, None)]


def fail_at_first(marks: Path) -> int:
    number = len(list(marks.glob("attempt-*")))
    (marks / f"attempt-{number}").touch()
    dispy_provisional_result(number)  # type: ignore[name-defined]  # noqa: F821
    if number < 2:
        raise ValueError("as it should")
    return number


def test_a_job_that_is_tried_again_is_created_again(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    ends, changes = Ends(), Changes()
    cluster = new_cluster(fail_at_first, node, retries=5, job_status=ends, cluster_status=changes)
    job = cluster.submit(tmp_path)
    assert job() == 2
    cluster.close()
    attempt = [Created, Running, Provisional]
    assert changes.of_job(job) == [*attempt, *attempt, *attempt, Finished]
    assert [status for _, status, _ in ends.all] == [Provisional] * 3 + [Finished]


def test_callback_is_the_old_name_of_job_status(node: NodeProcess, new_cluster: NewCluster) -> None:
    ends = Ends()
    with pytest.warns(DeprecationWarning, match="job_status"):
        cluster = new_cluster(double, node, callback=ends)
    assert cluster.submit(4)() == 8
    cluster.close()
    assert ends.all == [(1, Finished, 8)]


# -- nothing is lost -------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_no_call_is_lost_and_none_comes_after_close(
    node: NodeProcess, new_cluster: NewCluster, max_tasks: int | None
) -> None:
    count = 2000
    ends, changes = Ends(), Changes()
    cluster = new_cluster(
        double, node, job_status=ends, cluster_status=changes, max_tasks_per_child=max_tasks
    )
    jobs = [cluster.submit(number) for number in range(count)]
    assert cluster.close()
    told = len(ends.all), len(changes.all)
    assert sorted(ends.all) == [(n + 1, Finished, 2 * n) for n in range(count)]
    by_job: dict[object, list[Change]] = {}
    for change in changes.all:
        by_job.setdefault(change.job, []).append(change)
    for job in jobs:
        assert [each.status for each in by_job[job.id]] == [Created, Running, Finished]
    assert not threading.Event().wait(0.2)  # in which more would come
    assert (len(ends.all), len(changes.all)) == told


def test_none_comes_after_a_close_that_does_not_wait(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    ends, changes = Ends(), Changes()
    cluster = new_cluster(wait_for, node, job_status=ends, cluster_status=changes)
    jobs = [cluster.submit(gate) for _ in range(50)]
    until(lambda: jobs[0].status == Running, "Running")
    assert cluster.close(timeout=0, terminate=True)
    told = len(ends.all), len(changes.all)
    assert sorted(job for job, _, _ in ends.all) == list(range(1, 51))
    assert all(changes.of_job(job)[-1] in (Cancelled, Terminated) for job in jobs)
    assert not threading.Event().wait(0.2)
    assert (len(ends.all), len(changes.all)) == told


# -- what callbacks do -----------------------------------------------------------------------------


def test_an_exception_in_a_callback_is_logged_with_its_traceback_and_survived(
    node: NodeProcess, new_cluster: NewCluster, caplog: pytest.LogCaptureFixture
) -> None:
    class Angry:
        def __init__(self, name: str) -> None:
            self.name, self.calls = name, 0

        def __call__(self, *args: object) -> None:
            self.calls += args[0] != DispyNode.AvailInfo
            raise RuntimeError(f"{self.name} has no use for it")

    by_job, by_cluster = Angry("job_status"), Angry("cluster_status")
    cluster = new_cluster(improve, node, job_status=by_job, cluster_status=by_cluster)
    with caplog.at_level(logging.ERROR):
        assert [cluster.submit(2)() for _ in range(3)] == ["best"] * 3
        assert cluster.close()
    assert by_job.calls == 3 * (2 + 1)
    assert by_cluster.calls == 3 * (3 + 2) + 2
    assert "job_status has no use" in caplog.text and "cluster_status has no use" in caplog.text
    assert "Traceback" in caplog.text


def test_a_callback_cancels_the_other_jobs_when_a_result_is_good_enough(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    def search(number: int, gate: Path) -> str:
        dispy_provisional_result(number)  # type: ignore[name-defined]  # noqa: F821
        wait_for(gate)
        return "too late"

    def on_result(job: DispyJob) -> None:
        if job.status == Provisional and job.result == 1:
            until(lambda: len(jobs) == 6, "all jobs")
            for other in jobs:
                if other.status in (Created, Running, Provisional):
                    cluster.cancel(other)

    jobs: list[DispyJob] = []
    cluster = new_cluster(search, node, job_status=on_result)
    jobs += [cluster.submit(number, gate) for number in range(6)]
    all_ended(jobs)
    assert {job.status for job in jobs} <= {Cancelled, Terminated}
    assert not gate.exists()


def test_a_job_shows_its_latest_provisional_result(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    def search(gate: Path) -> str:
        dispy_provisional_result("so far")  # type: ignore[name-defined]  # noqa: F821
        wait_for(gate)
        return "at last"

    job = new_cluster(search, node).submit(gate)  # also without any callback
    until(lambda: job.status == Provisional, "a provisional result")
    assert job.result == "so far" and not job.finish.is_set()
    gate.touch()
    assert job() == "at last" and job.status == Finished


def test_few_jobs_exist_at_a_time_though_many_are_submitted(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    """The pattern of the documentation: callback and submitting thread share a condition."""
    lower, upper = 10, 30
    condition = threading.Condition()
    pending: dict[object, DispyJob] = {}
    most, total = 0, 0

    def on_end(job: DispyJob) -> None:
        nonlocal total
        if job.status in (Finished, Terminated, Cancelled, Abandoned):
            with condition:
                total += job.result
                if job.id in pending:
                    del pending[job.id]
                    if len(pending) <= lower:
                        condition.notify()

    cluster = new_cluster(double, node, job_status=on_end, max_tasks_per_child=None)
    for number in range(500):
        with condition:
            job = cluster.submit_job_id(number, number)
            pending[job.id] = job
            most = max(most, len(pending), cluster.status().jobs_pending)
            if len(pending) >= upper:
                assert condition.wait_for(lambda: len(pending) <= lower, PATIENCE_S)
    cluster.close()
    assert not pending
    assert most == upper
    assert total == sum(2 * number for number in range(500))


def test_a_slow_callback_delays_only_callbacks(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    ends = Ends()

    def on_end(job: DispyJob) -> None:
        wait_for(gate)
        ends(job)

    cluster = new_cluster(double, node, job_status=on_end)
    jobs = [cluster.submit(number) for number in range(20)]
    assert [job() for job in jobs] == [2 * number for number in range(20)]
    assert cluster.wait(PATIENCE_S)
    assert ends.all == []
    gate.touch()
    cluster.close()
    assert sorted(ends.all) == [(n + 1, Finished, 2 * n) for n in range(20)]


def test_callbacks_of_several_clusters_dont_mix(node: NodeProcess, new_cluster: NewCluster) -> None:
    told = [Ends(), Ends()]
    clusters = [new_cluster(double, node, job_status=each) for each in told]
    for number in range(50):
        for factor, cluster in enumerate(clusters):
            cluster.submit(number + 1000 * factor)
    assert clusters[0].close()
    assert sorted(result for _, _, result in told[0].all) == [2 * n for n in range(50)]
    assert clusters[1].submit(7)() == 14
    assert clusters[1].close()
    assert len(told[1].all) == 51


def test_a_callback_may_make_another_cluster(node: NodeProcess, new_cluster: NewCluster) -> None:
    results: list[object] = []

    def on_end(job: DispyJob) -> None:
        with dispy.JobCluster(double, nodes=[node.address]) as inner:
            results.append(inner.submit(job.result)())

    cluster = new_cluster(double, node, job_status=on_end)
    cluster.submit(5)
    assert cluster.close()
    assert results == [20]


def test_statuses_of_nodes_that_come_and_go(start_node: StartNode, new_cluster: NewCluster) -> None:
    changes = Changes()
    one, two = start_node("--name", "one"), start_node("--name", "two")
    cluster = new_cluster(double, one, two, cluster_status=changes)
    ready(cluster, "one", "two")
    one.stop()
    until(lambda: DispyNode.Closed in changes.of_node("one"), "Closed")
    start_node("--name", "one", port=one.port)
    until(lambda: len(changes.of_node("one")) == 3, "Initialized")
    cluster.close()
    assert changes.of_node("one") == [DispyNode.Initialized, DispyNode.Closed] * 2
    assert changes.of_node("two") == [DispyNode.Initialized, DispyNode.Closed]


ENDS_WITHOUT_CLOSE = """
import sys, threading
import dispy

def double(number):
    return number * 2

def on_end(job):
    threading.main_thread().join()
    print(job.result, flush=True)
    if job.result < 8:
        cluster.submit(job.result)

cluster = dispy.JobCluster(double, nodes=sys.argv[1], job_status=on_end)
cluster.submit(1)()
"""


def test_a_program_that_just_ends_has_its_callbacks_called(
    node: NodeProcess, start_program: RunProgram
) -> None:
    program = start_program(ENDS_WITHOUT_CLOSE, node.address)
    assert program.wait(PATIENCE_S) == 0
    assert program.output().split() == ["2", "4", "8"]
    assert program.log().count("the program ends") <= 1
