"""The public face at work: submit, cancel, wait, close, callbacks, and what is told of it all."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import ClusterClosedError, DispyJob, DispyNode

from .conftest import NewCluster, StartNode
from .processes import NodeProcess
from .waiting import all_ended, ended, finished, is_there, until

SOON_S = 5.0


def double(number: int) -> int:
    return number * 2


def hold(started: Path, seconds: float = 60.0) -> str:
    """Say that it runs, then go on for a while."""
    started.write_text("running\n")
    time.sleep(seconds)
    return "held"


def wait_for(path: Path) -> None:
    """Go on until a file appears."""
    while not path.exists():
        time.sleep(0.005)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that jobs wait for; it's there at the latest when the test ends."""
    path = tmp_path / "gate"
    yield path
    path.touch()


# -- submit --------------------------------------------------------------------------------------


def test_jobs_are_numbered_and_ordered_as_submitted(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(double, node)
    jobs = [cluster.submit(number) for number in range(10)]
    assert [job() for job in jobs] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [job.id for job in jobs] == list(range(1, 11))
    assert sorted(reversed(jobs)) == jobs


def test_a_job_can_have_any_id(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster(double, node)
    job = cluster.submit_job_id(("my", 1), number=4)
    assert job.id == ("my", 1)
    assert job() == 8
    job.id = "another"
    assert "another" in repr(job)


def test_many_threads_submit_and_wait(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster(double, node, max_tasks_per_child=None)

    def use(first: int) -> list[Any]:
        return [cluster.submit(number)() for number in range(first, first + 50)]

    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(use, range(0, 800, 50)))
    assert [result for part in results for result in part] == [2 * n for n in range(800)]


def test_many_threads_wait_for_one_job(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    job = new_cluster(wait_for, node).submit(gate)
    with ThreadPoolExecutor(20) as threads:
        waiting = [threads.submit(job.finish.wait, 30) for _ in range(20)]
        gate.touch()
        assert all(each.result() for each in waiting)


def test_jobs_run_while_a_thread_goes_on_submitting(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(double, node, max_tasks_per_child=None)
    finished(cluster.submit(0))  # all is set up
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(5)  # no thread is soon made to let go of the GIL
    try:
        first = cluster.submit(1)
        for number in range(20_000):
            cluster.submit(number)
            if first.status == DispyJob.Finished:
                break
        assert first.status == DispyJob.Finished
    finally:
        sys.setswitchinterval(interval_s)


def test_nothing_can_be_submitted_after_close(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster(double, node)
    assert cluster.close()
    with pytest.raises(ClusterClosedError, match="double"):
        cluster.submit(1)


# -- cancel --------------------------------------------------------------------------------------


def test_a_waiting_job_is_cancelled_and_never_runs(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, gate: Path
) -> None:
    cluster = new_cluster(wait_for, node)
    running = [cluster.submit(gate) for _ in range(2)]
    mark = tmp_path / "mark"
    waiting = [cluster.submit(mark) for _ in range(20)]
    assert [cluster.cancel(job) for job in waiting] == [0] * 20
    assert {ended(job).status for job in waiting} == {DispyJob.Cancelled}
    assert waiting[0]() is None
    gate.touch()
    assert {ended(job).status for job in running} == {DispyJob.Finished}
    assert [cluster.cancel(job) for job in waiting] == [-1] * 20


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_a_running_job_gets_a_keyboard_interrupt(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    cluster = new_cluster(hold, node, max_tasks_per_child=max_tasks)
    job = cluster.submit(tmp_path / "started")
    is_there(tmp_path / "started")
    begin = time.monotonic()
    assert cluster.cancel(job) == 0
    assert ended(job).status in (DispyJob.Cancelled, DispyJob.Terminated)
    assert "KeyboardInterrupt" in str(job.exception)
    assert time.monotonic() - begin < SOON_S


def hold_and_tidy_up(started: Path) -> str:
    try:
        return hold(started)
    except KeyboardInterrupt:
        return "tidied up"


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_a_job_may_catch_its_interrupt_and_return(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    cluster = new_cluster(hold_and_tidy_up, node, max_tasks_per_child=max_tasks)
    job = cluster.submit(tmp_path / "started")
    is_there(tmp_path / "started")
    cluster.cancel(job)
    assert ended(job).status == DispyJob.Finished
    assert job.result == "tidied up"


def hold_fast(started: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hold(started)


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_a_job_that_ignores_all_signals_is_killed_after_its_grace(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    cluster = new_cluster(hold_fast, node, max_tasks_per_child=max_tasks, cancel_grace=0.3)
    job = cluster.submit(tmp_path / "started")
    is_there(tmp_path / "started")
    begin = time.monotonic()
    cluster.cancel(job)
    assert ended(job).status in (DispyJob.Cancelled, DispyJob.Terminated)
    assert "SIGKILL" in str(job.exception)
    assert 0.3 <= time.monotonic() - begin < SOON_S


def test_cancel_of_a_strange_job_does_nothing(node: NodeProcess, new_cluster: NewCluster) -> None:
    ours, theirs = new_cluster(double, node), new_cluster(double, node)
    job = theirs.submit(1)
    assert ours.cancel(job) == -1
    assert finished(job).result == 2
    assert theirs.cancel(job) == -1


# -- wait and close ------------------------------------------------------------------------------


def test_wait_gives_up_in_time(node: NodeProcess, new_cluster: NewCluster, gate: Path) -> None:
    cluster = new_cluster(wait_for, node)
    assert cluster.wait(0)
    job = cluster.submit(gate)
    begin = time.monotonic()
    assert not cluster.wait(0.1)
    assert 0.1 <= time.monotonic() - begin < SOON_S
    gate.touch()
    assert cluster.wait(30)
    assert job.status == DispyJob.Finished


def test_close_that_gives_up_leaves_the_cluster_open(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    cluster = new_cluster(wait_for, node)
    jobs = [cluster.submit(gate)]
    assert not cluster.close(timeout=0.1)
    jobs.append(cluster.submit(gate))
    gate.touch()
    assert cluster.close()
    assert [job.status for job in jobs] == [DispyJob.Finished] * 2


def test_close_with_terminate_ends_all_jobs(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(hold_fast, node, cancel_grace=0.2)
    jobs = [cluster.submit(tmp_path / f"started-{number % 2}") for number in range(10)]
    is_there(tmp_path / "started-0")
    assert cluster.close(timeout=0.1, terminate=True)
    assert {job.status for job in jobs} <= {DispyJob.Cancelled, DispyJob.Terminated}
    assert all(job.finish.is_set() for job in jobs)
    assert not node.job_processes()


def test_close_says_that_terminate_needs_a_timeout(
    node: NodeProcess,
    new_cluster: NewCluster,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("dispy.cluster.HINT_S", 0.05)
    cluster = new_cluster(wait_for, node)
    jobs = [cluster.submit(gate) for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        closing = threading.Thread(target=cluster.close, kwargs={"terminate": True})
        closing.start()
        until(lambda: "timeout=0" in caplog.text, "a hint")
    assert "3 jobs" in caplog.text
    gate.touch()
    closing.join(30)
    assert {job.status for job in jobs} == {DispyJob.Finished}


def test_a_context_manager_waits_for_all_jobs(node: NodeProcess) -> None:
    with dispy.JobCluster(double, nodes=[node.address]) as cluster:
        jobs = [cluster.submit(number) for number in range(20)]
    assert [job.result for job in jobs] == [2 * number for number in range(20)]
    assert cluster.close()


def test_a_closed_cluster_leaves_no_process(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster(double, node, max_tasks_per_child=None)
    assert cluster.submit(1)() == 2
    assert node.job_processes()
    cluster.close()
    assert not node.job_processes()


# -- status and callbacks ------------------------------------------------------------------------


def test_status_and_print_status(
    node: NodeProcess,
    new_cluster: NewCluster,
    gate: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = new_cluster(wait_for, node)
    jobs = [cluster.submit(gate) for _ in range(5)]
    assert cluster.status().jobs_pending == 5
    gate.touch()
    all_ended(jobs)
    assert cluster.wait(30)
    [used] = cluster.status().nodes
    assert (used.ip_addr, used.cpus, used.jobs_done, used.busy) == (node.host, 2, 5, 0)
    assert cluster.status().jobs_pending == 0
    cluster.print_status()
    printed = capsys.readouterr().out
    assert node.host in printed and "speedup" in printed


def test_callbacks_tell_each_change_once_and_none_after_close(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    ends: list[int] = []
    changes: list[tuple[int, bool, Any]] = []
    threads = set()

    def on_end(job: DispyJob) -> None:
        threads.add(threading.current_thread().name)
        ends.append(job.id)

    def on_change(status: int, used: DispyNode | None, job: DispyJob | None) -> None:
        threads.add(threading.current_thread().name)
        changes.append((status, used is not None, job and job.id))

    cluster = new_cluster(double, node, job_status=on_end, cluster_status=on_change)
    for number in range(20):
        cluster.submit(number)
    cluster.close()
    told = len(changes)
    assert sorted(ends) == list(range(1, 21))
    assert changes[0][0] in (DispyJob.Created, DispyNode.Initialized)
    assert (DispyNode.Initialized, True, None) in changes
    assert (DispyNode.Closed, True, None) in changes
    for number in range(1, 21):
        ours = [status for status, _, job in changes if job == number]
        assert ours == [DispyJob.Created, DispyJob.Running, DispyJob.Finished]
    assert len(threads) == 1 and threads != {threading.current_thread().name}
    until(lambda: len(changes) == told, "silence")


def test_what_a_callback_raises_is_logged_and_survived(
    node: NodeProcess, new_cluster: NewCluster, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(job: DispyJob) -> None:
        raise RuntimeError(f"no use for job {job.id}")

    cluster = new_cluster(double, node, job_status=fail)
    with caplog.at_level(logging.ERROR):
        jobs = [cluster.submit(number) for number in range(3)]
        cluster.close()
    assert [job.result for job in jobs] == [0, 2, 4]
    assert "no use for job 3" in caplog.text


def test_a_callback_may_submit_and_close(node: NodeProcess, new_cluster: NewCluster) -> None:
    more: list[DispyJob] = []

    def on_end(job: DispyJob) -> None:
        if job.id < 5:
            more.append(cluster.submit(job.result))
        else:
            done.set()

    done = threading.Event()
    cluster = new_cluster(double, node, job_status=on_end)
    cluster.submit(1)
    assert done.wait(30)
    assert [job.result for job in more] == [4, 8, 16, 32]


def test_a_job_that_is_long_is_told_to_be_running(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    job = new_cluster(wait_for, node).submit(gate)
    until(lambda: job.status == DispyJob.Running, "Running")
    assert job.start_time is not None and job.host == node.host


# -- several clusters ----------------------------------------------------------------------------


def triple(number: int) -> int:
    return number * 3


def test_clusters_of_one_process_share_a_node(node: NodeProcess, new_cluster: NewCluster) -> None:
    clusters = [new_cluster(function, node) for function in (double, triple, double, triple)]
    jobs = [cluster.submit(number) for number in range(25) for cluster in clusters]
    assert Counter(job() for job in jobs) == Counter(
        factor * number for number in range(25) for factor in (2, 3, 2, 3)
    )


def test_a_short_cluster_is_served_beside_one_with_many_jobs(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    long = new_cluster(time.sleep, node)
    for _ in range(2000):
        long.submit(0.02)
    short = new_cluster(double, node)
    begin = time.monotonic()
    assert [job() for job in [short.submit(number) for number in range(4)]] == [0, 2, 4, 6]
    assert time.monotonic() - begin < SOON_S  # all of the others take 20 s


def test_no_process_and_no_thread_remains_of_many_clusters(
    start_node: StartNode, new_cluster: NewCluster
) -> None:
    own = start_node()
    threads = 0
    for _ in range(8):
        with dispy.JobCluster(double, nodes=[own.address]) as cluster:
            assert cluster.submit(1)() == 2
        threads = threads or threading.active_count()
    assert threading.active_count() == threads
    assert len(own.relatives()) == 1  # the zygote
