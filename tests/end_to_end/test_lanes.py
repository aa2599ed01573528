"""Many jobs in fresh processes that follow each other: what one does never becomes another's."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter

import psutil

from dispy import DispyJob

from .conftest import NewCluster
from .processes import NodeProcess
from .waiting import all_ended, finished

Finished, Terminated = DispyJob.Finished, DispyJob.Terminated


def tell_now_and_then(number: int) -> int:
    if number % 7 == 0:
        for value in range(12):
            dispy_provisional_result(value)  # type: ignore[name-defined] # noqa: F821
    return number


def test_some_jobs_that_tell_something_among_many_that_do_not(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    # Who waits to be heard reads what was handed over for later jobs.
    cluster = new_cluster(tell_now_and_then, node)
    jobs = [cluster.submit(number) for number in range(300)]
    assert [finished(job).result for job in jobs] == list(range(300))


def importance() -> tuple[int, int]:
    time.sleep(0.006)  # long enough for the next process to warm up
    return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)


def test_only_who_has_ended_makes_way(node: NodeProcess, new_cluster: NewCluster) -> None:
    here = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    cluster = new_cluster(importance, node)
    jobs = all_ended([cluster.submit() for _ in range(60)])
    assert {job.result for job in jobs} == {here}


def end_some_time(number: int) -> int:
    after = random.Random(number).uniform(0.0, 0.004)
    threading.Timer(after, os._exit, (0,)).start()
    time.sleep(0.002)
    return number


def test_processes_that_end_at_any_moment_hold_nobody_up(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(end_some_time, node)
    jobs = all_ended([cluster.submit(number) for number in range(400)])
    assert Counter(job.status for job in jobs).keys() <= {Finished, Terminated}
    assert all(job.result == job.id - 1 for job in jobs if job.status == Finished)
    assert {job.exception for job in jobs if job.status == Terminated} == {
        "the job's process ended before the job did, with exit code 0 (os._exit?)"
    }


def who(number: int) -> tuple[int, int]:
    time.sleep(0.002)
    return number, os.getpid()


def test_processes_that_are_killed_take_only_their_own_jobs_with_them(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(who, node)
    jobs = [cluster.submit(number) for number in range(1500)]
    chance = random.Random(1)
    tree = psutil.Process(node.process.pid)
    killed = 0
    while not cluster.wait(0.02):
        lowest = [each for each in tree.children(recursive=True) if depth_of(each, tree) == 4]
        if lowest:
            killed += 1
            kill(chance.choice(lowest))
    assert killed > 5
    for number, job in enumerate(jobs):
        if job.status == Finished:
            assert job.result[0] == number
        else:
            assert job.status == Terminated and "SIGKILL" in str(job.exception)
    # One may have begun while the result of the one before was being sent.
    assert sum(job.status == Terminated for job in jobs) <= 2 * killed


def depth_of(process: psutil.Process, top: psutil.Process) -> int:
    try:
        return [above.pid for above in process.parents()].index(top.pid) + 1
    except (psutil.NoSuchProcess, ValueError):
        return 0


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def chatter(kind: str) -> int:
    def write() -> None:
        while True:
            os.write(1, b"noise\n")

    if kind == "thread":
        threading.Thread(target=write, daemon=True).start()
    elif kind == "process":
        subprocess.Popen(["yes", "noise"])
    while kind and not os.fstat(1).st_size:  # until it has begun
        time.sleep(0.001)
    return 0


def test_what_a_job_leaves_writes_nothing_into_the_output_of_the_next(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(chatter, node)
    kinds = ["thread", "", "process", "", ""] * 10
    jobs = [cluster.submit(kind) for kind in kinds]
    for kind, job in zip(kinds, jobs, strict=True):
        assert bool(finished(job).stdout) == bool(kind)


opened: list[int] = []


def open_many() -> int:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(1100))
    return 0


def test_a_setup_that_opens_many_files(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster(who, node, setup=open_many)
    assert finished(cluster.submit(1)).result[0] == 1


def grow_or_die(mebibytes: int) -> None:
    data = bytearray(mebibytes << 20)
    data[::4096] = b"x" * len(data[::4096])
    if not mebibytes:
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_memory_that_is_told_of_a_killed_process_is_its_own(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(grow_or_die, node)
    jobs = all_ended([cluster.submit(size) for size in (200, 200, 200, 200, 0)])
    assert int(str(jobs[-1].exception).partition("used ")[2].split()[0]) < 100


def hook() -> int:
    os.register_at_fork(after_in_child=lambda: os.write(2, b"hook\n"))
    return 0


def test_what_waits_writes_nothing_into_the_output_of_who_runs(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(who, node, setup=hook)
    jobs = [finished(cluster.submit(number)) for number in range(20)]
    assert {job.stderr for job in jobs} == {""}
