"""Each way in which a job can end: what its user is told, and that its CPU is free again."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import dispy
from dispy import DispyJob

from .apart import NODES
from .conftest import NewCluster
from .processes import NodeProcess
from .waiting import ended, finished, is_there, until

MEBIBYTE = 1 << 20


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Be the computation of all clusters here: do whatever a test wants."""
    return function(*arguments)


@pytest.fixture(scope="module", params=[1, None], ids=["fresh", "reused"])
def cluster(node: NodeProcess, request: pytest.FixtureRequest) -> Iterator[dispy.JobCluster]:
    """A cluster with fresh processes, then one with reused ones."""
    cluster = dispy.JobCluster(call, nodes=[node.address], max_tasks_per_child=request.param)
    yield cluster
    assert cluster.close(timeout=0, terminate=True)


@pytest.fixture(autouse=True)
def all_cpus_are_free_afterwards(cluster: dispy.JobCluster, tmp_path: Path) -> Iterator[None]:
    """After each test as many jobs as there are CPUs can run at the same time."""
    yield
    for job in [cluster.submit(meet, tmp_path, name, 2) for name in range(2)]:
        finished(job)
    assert cluster.wait(30)


def meet(folder: Path, name: int, count: int) -> None:
    """Wait until so many jobs like this one are running."""
    (folder / f"here-{name}").touch()
    deadline = time.monotonic() + 20
    while len(list(folder.glob("here-*"))) < count:
        if time.monotonic() > deadline:
            raise TimeoutError("the other job hasn't begun: no CPU was free")
        time.sleep(0.005)


def failed(cluster: dispy.JobCluster, function: Callable[..., Any], *arguments: object) -> DispyJob:
    """Run a job that has to fail; return it."""
    job = ended(cluster.submit(function, *arguments))
    assert job.status == DispyJob.Terminated
    assert job.result is None
    assert job() is None
    assert job.exception
    assert job.end_time is not None
    return job


# -- what Python code can do ---------------------------------------------------------------------


def test_a_job_that_returns_is_finished(cluster: dispy.JobCluster) -> None:
    job = finished(cluster.submit(lambda number: number * 2, 21))
    assert (job.result, job(), job.exception, job.exc) == (42, 42, None, None)
    assert job.start_time is not None and job.end_time is not None
    assert job.start_time <= job.end_time
    assert job.host == NODES


class OrderError(Exception):
    """An exception of the user's program."""


def divide(number: int) -> float:
    print("before")
    return number / 0


def test_a_job_that_raises_shows_its_traceback(cluster: dispy.JobCluster) -> None:
    job = failed(cluster, divide, 1)
    assert "ZeroDivisionError: division by zero" in str(job.exception)
    assert "in divide" in str(job.exception)
    assert "runner.py" not in str(job.exception)
    assert isinstance(job.exc, ZeroDivisionError)
    assert job.stdout == "before\n"


def refuse() -> None:
    raise OrderError("no such order", 17)


def test_an_exception_of_the_users_own_comes_back_as_it_is(cluster: dispy.JobCluster) -> None:
    job = failed(cluster, refuse)
    assert isinstance(job.exc, OrderError)
    assert job.exc.args == ("no such order", 17)


class StubbornError(Exception):
    """An exception that can be pickled, but not be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raise_stubborn() -> None:
    raise StubbornError(1, 2)


def test_an_exception_that_cannot_be_unpickled_is_still_told(cluster: dispy.JobCluster) -> None:
    job = failed(cluster, raise_stubborn)
    assert "StubbornError: 1 and 2" in str(job.exception)
    assert job.exc is None


@pytest.mark.parametrize("code, shown", [(3, "3"), ("too late", "too late"), (None, "sys.exit()")])
def test_sys_exit_ends_the_job_only(cluster: dispy.JobCluster, code: Any, shown: str) -> None:
    job = failed(cluster, sys.exit, code)
    assert "sys.exit" in str(job.exception) and shown in str(job.exception)


def recurse(depth: int) -> int:
    return recurse(depth + 1) + 1


def test_endless_recursion_raises(cluster: dispy.JobCluster) -> None:
    assert "RecursionError" in str(failed(cluster, recurse, 0).exception)


def recurse_without_limit() -> None:
    sys.setrecursionlimit(1 << 30)
    nested: list[Any] = []
    for _ in range(1_000_000):
        nested = [nested]
    repr(nested)


def test_an_overflow_of_the_c_stack_ends_the_job(cluster: dispy.JobCluster) -> None:
    text = str(failed(cluster, recurse_without_limit).exception)
    assert "SIGSEGV" in text or "RecursionError" in text  # newer Pythons look after their stack


# -- what a process can do -----------------------------------------------------------------------


def test_os_exit_ends_the_job_and_names_the_code(cluster: dispy.JobCluster) -> None:
    assert "exit code 7" in str(failed(cluster, os._exit, 7).exception)
    assert "exit code 0" in str(failed(cluster, os._exit, 0).exception)


def test_a_crash_in_c_code_names_the_signal(cluster: dispy.JobCluster) -> None:
    assert "SIGSEGV" in str(failed(cluster, ctypes.string_at, 0).exception)
    assert "SIGABRT" in str(failed(cluster, os.abort).exception)


def kill_myself(number: int) -> None:
    print("last words", flush=True)
    os.kill(os.getpid(), number)
    time.sleep(30)


def test_a_killed_job_shows_the_signal_and_what_it_printed(cluster: dispy.JobCluster) -> None:
    job = failed(cluster, kill_myself, signal.SIGKILL)
    assert "SIGKILL" in str(job.exception) and "out of memory" in str(job.exception)
    assert job.stdout == "last words\n"
    assert "SIGTERM" in str(failed(cluster, kill_myself, signal.SIGTERM).exception)


def exceed_memory() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (512 << 20, limits[1]))
    try:
        bytearray(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_job_out_of_memory_raises_memory_error(cluster: dispy.JobCluster) -> None:
    assert "MemoryError" in str(failed(cluster, exceed_memory).exception)


def close_everything() -> str:
    os.closerange(0, 1000)
    return "never seen"


def test_a_job_that_closes_all_descriptors_ends(cluster: dispy.JobCluster) -> None:
    assert "closed the connection" in str(failed(cluster, close_everything).exception)


# -- what remains of a job -----------------------------------------------------------------------


def leave_a_process(path: Path, own_session: bool) -> int:
    """Start a process that lives on, which in its turn says its number."""
    code = f"import os, time; print(os.getpid(), file=open({str(path)!r}, 'w')); time.sleep(600)"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, start_new_session=own_session)
    while not path.exists() or not path.read_text():
        time.sleep(0.005)
    return process.pid


@pytest.mark.parametrize("own_session", [False, True], ids=["child", "daemon"])
def test_a_process_that_a_job_leaves_behind_is_ended(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, own_session: bool
) -> None:
    cluster = new_cluster(call, node)
    job = finished(cluster.submit(leave_a_process, tmp_path / "pid", own_session))
    until(lambda: not psutil.pid_exists(job.result), "the end of the child")


def test_a_process_that_a_reused_one_has_started_is_ended_with_the_cluster(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(call, node, max_tasks_per_child=None)
    job = finished(cluster.submit(leave_a_process, tmp_path / "pid", True))
    assert psutil.pid_exists(job.result)
    cluster.close()
    assert not psutil.pid_exists(job.result)


def leave_a_process_and_die(path: Path) -> None:
    leave_a_process(path, own_session=True)
    os._exit(1)


def test_a_process_that_a_dead_job_leaves_behind_is_ended(
    cluster: dispy.JobCluster, tmp_path: Path
) -> None:
    failed(cluster, leave_a_process_and_die, tmp_path / "pid")
    pid = int(is_there(tmp_path / "pid"))
    until(lambda: not psutil.pid_exists(pid), "the end of the grandchild")


def fork_and_return() -> int:
    return os.fork()


def test_a_forked_copy_of_the_job_does_not_answer_for_it(cluster: dispy.JobCluster) -> None:
    assert finished(cluster.submit(fork_and_return)).result > 0


def fork_twice_and_sleep() -> str:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()
    return "done"


def test_a_daemon_that_holds_all_descriptors_open_holds_nothing_up(
    cluster: dispy.JobCluster,
) -> None:
    assert finished(cluster.submit(fork_twice_and_sleep)).result == "done"


def disturb_its_process() -> str:
    os.chdir("/")
    os.umask(0o777)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    threading.Thread(target=time.sleep, args=(600,)).start()
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return "done"


def test_threads_handlers_and_folders_of_a_job_hold_nothing_up(cluster: dispy.JobCluster) -> None:
    assert finished(cluster.submit(disturb_its_process)).result == "done"


# -- what a job takes and returns ----------------------------------------------------------------


def test_a_result_that_cannot_be_pickled_names_its_type(cluster: dispy.JobCluster) -> None:
    job = failed(cluster, threading.Lock)
    assert "lock" in str(job.exception) and "pickle" in str(job.exception)


class Explosive:
    """Can be pickled, but not be unpickled in the process that doesn't want it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid  # of the process that can unpickle it; 0: none

    def __reduce__(self) -> tuple[Any, ...]:
        return defuse, (self.pid,)


def defuse(pid: int) -> Explosive:
    if pid != os.getpid():
        raise RuntimeError("it exploded")
    return Explosive(pid)


def test_an_argument_that_cannot_be_unpickled_is_told(cluster: dispy.JobCluster) -> None:
    job = ended(cluster.submit(len, Explosive(os.getpid())))
    assert job.status == DispyJob.Terminated
    assert "it exploded" in str(job.exception) and "argument" in str(job.exception)


def test_a_result_that_cannot_be_unpickled_is_told(cluster: dispy.JobCluster) -> None:
    job = ended(cluster.submit(Explosive, 0))
    assert job.status == DispyJob.Terminated
    assert "it exploded" in str(job.exception) and "result" in str(job.exception)


# -- what a job prints ---------------------------------------------------------------------------


def print_everywhere() -> None:
    print("from Python")
    print("error from Python", file=sys.stderr)
    sys.stdout.flush()
    os.write(1, b"from C\n")
    os.write(2, b"error from C\n")
    subprocess.run(["/bin/sh", "-c", "echo from a program; echo its error >&2"], check=True)


def test_all_that_a_job_and_its_programs_print_is_kept(cluster: dispy.JobCluster) -> None:
    job = finished(cluster.submit(print_everywhere))
    assert job.stdout == "from Python\nfrom C\nfrom a program\n"
    assert job.stderr == "error from Python\nerror from C\nits error\n"
    assert finished(cluster.submit(int)).stdout == ""


def print_bytes() -> None:
    os.write(1, b"\xff\xfe caf\xc3\xa9\n")
    print("\N{SNOWMAN} \udc80")


def test_output_that_is_no_text_is_kept_readable(cluster: dispy.JobCluster) -> None:
    assert "café" in str(finished(cluster.submit(print_bytes)).stdout)


def close_outputs() -> str:
    os.close(1)
    os.close(2)
    return "done"


def test_a_job_may_close_its_outputs(cluster: dispy.JobCluster) -> None:
    assert finished(cluster.submit(close_outputs)).result == "done"
    for job in [cluster.submit(print, "next") for _ in range(4)]:
        assert finished(job).stdout == "next\n"


def redirect_output(path: Path) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.dup2(fd, 1)
    os.write(1, b"mine\n")


def test_a_file_that_a_job_redirects_its_output_to_is_the_jobs_own(
    cluster: dispy.JobCluster, tmp_path: Path
) -> None:
    job = finished(cluster.submit(redirect_output, tmp_path / "mine"))
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert job.stdout == ""
    for job in [cluster.submit(print, "next") for _ in range(4)]:
        assert finished(job).stdout == "next\n"
    assert (tmp_path / "mine").read_text() == "mine\n"


def flood() -> str:
    for _ in range(1024):
        os.write(1, b"x" * MEBIBYTE)
    return "done"


def test_a_gibibyte_of_output_is_cut_and_said_to_be(
    cluster: dispy.JobCluster, node: NodeProcess
) -> None:
    before = psutil.Process(node.pid).memory_info().rss
    job = finished(cluster.submit(flood))
    text = str(job.stdout)
    assert "cut" in text[-100:]
    assert len(text) < 2 * MEBIBYTE
    assert psutil.Process(node.pid).memory_info().rss - before < 64 * MEBIBYTE
