"""Options of jobs: timeout, retries, priority, and how a cancelled job ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dispy import DispyJob

from .at_broker import embedded_only
from .conftest import NewCluster, StartNode
from .processes import STOP_S, NodeProcess
from .waiting import PATIENCE_S, all_ended, ended, finished, is_there, until

MAX_TASKS = pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])


def call(function: Callable[..., Any], *arguments: object, **more: object) -> Any:
    """Be the computation of most clusters here."""
    return function(*arguments, **more)


# -- timeout -------------------------------------------------------------------------------------


def sleep(seconds: float) -> str:
    print("begun", flush=True)
    time.sleep(seconds)
    return "slept"


@MAX_TASKS
def test_a_job_that_runs_too_long_is_ended_and_says_so(
    node: NodeProcess, new_cluster: NewCluster, max_tasks: int | None
) -> None:
    cluster = new_cluster(sleep, node, max_tasks_per_child=max_tasks)
    begin = time.monotonic()
    jobs = [cluster.submit(600, dispy_job_timeout=0.3) for _ in range(2)]
    for job in all_ended(jobs):
        assert job.status == DispyJob.Terminated and job.result is None
        assert "ran longer than its limit of 0.3 s" in str(job.exception)
        assert job.stdout == "begun\n"
    assert time.monotonic() - begin < STOP_S
    plain = [cluster.submit(0.5) for _ in range(2)]  # also in a process that was interrupted
    assert [finished(job).result for job in plain] == ["slept", "slept"]


@MAX_TASKS
def test_the_time_in_which_a_job_waits_does_not_count(
    node: NodeProcess, new_cluster: NewCluster, max_tasks: int | None
) -> None:
    cluster = new_cluster(sleep, node, timeout=0.8, max_tasks_per_child=max_tasks)
    jobs = [cluster.submit(0.1) for _ in range(24)]  # on two CPUs the last one waits 1.1 s
    assert [finished(job).result for job in jobs] == ["slept"] * 24


def stubborn(limit: float) -> str:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(limit)
    return "slept"


def catch(seconds: float) -> str:
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return "the best so far"
    return "slept"


def test_a_job_out_of_time_may_return_what_it_has_or_is_killed(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(call, node, timeout=0.2, cancel_grace=0.3)
    assert finished(cluster.submit(catch, 600)).result == "the best so far"
    job = ended(cluster.submit(stubborn, 600))
    assert job.status == DispyJob.Terminated
    assert "ran longer than its limit of 0.2 s" in str(job.exception)
    unlimited = cluster.submit(catch, 0.6, dispy_job_timeout=0)
    assert finished(unlimited).result == "slept"


# -- retries -------------------------------------------------------------------------------------


def succeed_at(path: str, attempt: int, how: str) -> int:
    """Fail, in some way, until it's the attempt of this number."""
    with open(path, "a") as file:
        file.write("x")
    count = os.path.getsize(path)
    if count < attempt:
        if how == "exit":
            os._exit(1)
        if how == "hang":
            time.sleep(600)
        raise ValueError(f"attempt {count}")
    return count


@MAX_TASKS
@pytest.mark.parametrize("how", ["raise", "exit", "hang"])
def test_a_job_that_fails_is_tried_again(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, how: str, max_tasks: int | None
) -> None:
    cluster = new_cluster(succeed_at, node, max_tasks_per_child=max_tasks)
    path = str(tmp_path / "count")
    job = cluster.submit(path, 3, how, dispy_job_retries=2, dispy_job_timeout=0.5)
    assert finished(job).result == 3
    assert job.exception is None


def test_a_job_that_goes_on_failing_says_how_often_it_was_tried(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    told: list[DispyJob] = []
    cluster = new_cluster(succeed_at, node, retries=2, job_status=told.append)
    job = ended(cluster.submit(str(tmp_path / "count"), 9, "raise"))
    assert job.status == DispyJob.Terminated
    assert "ValueError: attempt 3" in str(job.exception) and "3 attempts" in str(job.exception)
    assert isinstance(job.exc, ValueError)
    once = ended(cluster.submit(str(tmp_path / "other"), 9, "raise", dispy_job_retries=0))
    assert "attempt 1" in str(once.exception)
    until(lambda: len(told) == 2, "one call for each job")


def test_a_cancelled_job_is_not_tried_again(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(succeed_at, node, retries=5)
    path = tmp_path / "count"
    job = cluster.submit(str(path), 9, "hang")
    until(lambda: path.exists() and path.stat().st_size == 1, "the first attempt")
    cluster.cancel(job)
    assert ended(job).status == DispyJob.Terminated
    assert path.read_text() == "x"


def test_a_job_with_retries_survives_the_loss_of_its_node(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    nodes = [start_node("--name", name, cpus=1) for name in ("one", "two")]
    cluster = new_cluster(survive, *nodes, pulse_interval=0.2)
    job = cluster.submit(str(tmp_path / "begun"), dispy_job_retries=1)
    first = is_there(tmp_path / "begun").strip()
    next(node for node in nodes if first in node.options).kill()
    assert finished(job).result == ("two" if first == "one" else "one")


def survive(path: str) -> str:
    name = str(dispy_node_name)  # type: ignore[name-defined]  # noqa: F821
    if not os.path.exists(path):
        Path(path).write_text(name + "\n")
        time.sleep(600)
    return name


# -- priority ------------------------------------------------------------------------------------


def note(path: str, number: int, gate: str = "") -> None:
    with open(path, "a") as file:
        file.write(f"{number}\n")
    while gate and not os.path.exists(gate):
        time.sleep(0.005)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that jobs wait for; it's there at the latest when the test ends."""
    path = tmp_path / "gate"
    yield path
    path.touch()


@MAX_TASKS
def test_jobs_of_higher_priority_go_first_and_equals_in_order(
    start_node: StartNode,
    new_cluster: NewCluster,
    tmp_path: Path,
    gate: Path,
    max_tasks: int | None,
) -> None:
    cluster = new_cluster(note, start_node(cpus=1), priority=1, max_tasks_per_child=max_tasks)
    noted = str(tmp_path / "noted")
    jobs = [cluster.submit(noted, 0, str(gate))]
    is_there(Path(noted))
    priorities = [0, 5, 1, -3, 5, 1, 0, 7]
    jobs += [cluster.submit(noted, p, dispy_job_priority=p) for p in priorities]
    jobs.append(cluster.submit(noted, 1))
    gate.touch()
    all_ended(jobs)
    order = [int(line) for line in Path(noted).read_text().split()]
    assert order == [0, *sorted([*priorities, 1], reverse=True)]


def take_a_millisecond() -> None:
    time.sleep(0.001)


@embedded_only("a shared broker takes jobs at once, so the urgent one gets to it behind the others")
def test_priority_also_holds_for_a_long_line_of_jobs(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(take_a_millisecond, node, max_tasks_per_child=None)
    jobs = [cluster.submit() for _ in range(20_000)]
    urgent = cluster.submit(dispy_job_priority=1)
    finished(urgent)
    waiting = sum(job.status == DispyJob.Created for job in jobs)
    assert waiting > len(jobs) // 2
    assert cluster.close(timeout=0, terminate=True)


# -- cancel --------------------------------------------------------------------------------------


def search(started: str) -> int:
    """Look for something better until there is no more time."""
    best = 0
    try:
        while True:
            best += 1
            if best == 3:
                Path(started).write_text("running\n")
            time.sleep(0.005)
    except KeyboardInterrupt:
        print("interrupted")
        return best


@MAX_TASKS
def test_a_cancelled_job_may_return_its_best_result(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    cluster = new_cluster(search, node, max_tasks_per_child=max_tasks)
    job = cluster.submit(str(tmp_path / "started"))
    is_there(tmp_path / "started")
    assert cluster.cancel(job) == 0
    assert finished(job).result >= 3
    assert job.stdout == "interrupted\n"


def raise_a_family(path: str) -> None:
    """Start a child, a grandchild in a session of its own, and refuse to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(os.getppid(), os.getpid(), child.pid, file=open(sys.argv[1], 'w'))\n"
        "time.sleep(600)\n"
    )
    subprocess.Popen([sys.executable, "-c", code, path])
    while True:
        time.sleep(1)


@MAX_TASKS
def test_a_job_that_refuses_to_end_is_killed_with_its_whole_process_tree(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    cluster = new_cluster(call, node, cancel_grace=0.2, max_tasks_per_child=max_tasks)
    job = cluster.submit(raise_a_family, str(tmp_path / "pids"))
    pids = [int(pid) for pid in is_there(tmp_path / "pids").split()]
    assert cluster.cancel(job) == 0
    ended(job)
    assert job.status == DispyJob.Terminated
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the end of all", STOP_S)
    assert finished(cluster.submit(len, "abc")).result == 3


# -- names ---------------------------------------------------------------------------------------


def own_names(timeout: int, retries: int, priority: int = 0, **more: int) -> dict[str, int]:
    return {"timeout": timeout, "retries": retries, "priority": priority, **more}


def test_the_computations_own_keyword_arguments_are_not_taken(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(own_names, node, timeout=PATIENCE_S)
    own: dict[str, Any] = {
        "timeout": 1,
        "retries": 2,
        "priority": 3,
        "depends": 4,
        "setup_timeout": 5,
        "node": 6,
    }
    assert finished(cluster.submit(**own, dispy_job_priority=2)).result == own
    until(lambda: cluster.status().nodes, "a node")
    job = cluster.submit_node(node.address, timeout=1, retries=2, dispy_job_retries=1)
    assert finished(job).result == {"timeout": 1, "retries": 2, "priority": 0}
    assert job.kwargs == {"timeout": 1, "retries": 2}
