"""Processes that are killed and connections that break, while jobs run.

The sizes are those of a quick run; DISPY_TEST_SCALE=10 makes them ten times as large.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import dispy
from dispy import DispyJob

from .conftest import NewCluster, RunProgram, StartNode
from .fault_proxy import FaultProxy
from .processes import NodeProcess
from .records import note, noted
from .waiting import all_ended, ended, finished, is_there, until

SCALE = float(os.environ.get("DISPY_TEST_SCALE", "1"))
SILENCE_S = 5.0  # of the network: longer than either side takes it for alive
EXIT_S = 5.0  # how long whatever is told to end may take
NOBODY = 65534


def square(record: str, number: int, seconds: float, data: bytes = b"") -> object:
    """Note that it runs, take some time, return the right result."""
    note(record, number)
    if seconds:
        time.sleep(seconds)
    return data or number * number


def submit_all(
    cluster: dispy.JobCluster, record: Path, count: int, seconds: Callable[[], float]
) -> list[DispyJob]:
    return [cluster.submit(str(record), number, seconds()) for number in range(count)]


def statuses(jobs: list[DispyJob]) -> Counter[int]:
    """Check every result, and that there is exactly one end each; return how often which."""
    for number, job in enumerate(jobs):
        assert job.status >= DispyJob.Cancelled
        if job.status == DispyJob.Finished:
            assert job.result == number * number and job.exception is None
        else:
            assert job.result is None and job.exception
    return Counter(job.status for job in jobs)


@contextmanager
def repeatedly(action: Callable[[], object], pause_s: float) -> Iterator[None]:
    """Do something again and again in the meantime."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(pause_s):
            action()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# -- job processes are killed --------------------------------------------------------------------


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_killed_job_processes_cost_their_own_job_only(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    node = start_node()
    cluster = new_cluster(square, node, max_tasks_per_child=max_tasks)
    dice = random.Random(1)
    kills = 0

    def kill_one() -> None:
        nonlocal kills
        with suppress(psutil.Error, IndexError):
            dice.choice(node.job_processes()).kill()
            kills += 1

    record = tmp_path / "record"
    jobs = submit_all(cluster, record, int(300 * SCALE), lambda: dice.uniform(0.005, 0.02))
    with repeatedly(kill_one, 0.05):
        all_ended(jobs, 120)
    counts = statuses(jobs)
    assert set(counts) <= {DispyJob.Finished, DispyJob.Terminated}
    assert 0 < counts[DispyJob.Terminated] <= kills
    assert all("SIGKILL" in str(j.exception) for j in jobs if j.status == DispyJob.Terminated)
    assert max(noted(record).values()) == 1


# -- nodes are killed ----------------------------------------------------------------------------


class KilledNodes:
    """Some nodes, of which one at a time is killed and started again in its place."""

    def __init__(self, folder: Path, count: int, cpus: int) -> None:
        self.nodes = [NodeProcess(folder, cpus=cpus) for _ in range(count)]
        self.dead: list[NodeProcess] = []
        self._dice = random.Random(2)

    def kill_one(self) -> None:
        at = self._dice.randrange(len(self.nodes))
        node = self.nodes[at]
        node.kill()
        self.dead.append(node)
        until(lambda: not node.relatives(), "the end of its job processes", 2.0)
        self.nodes[at] = node.again()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        for node in self.dead:
            node.assert_nothing_left()

    def clear_away(self) -> None:
        for node in (*self.nodes, *self.dead):
            node.clear_away()


@pytest.fixture
def killed_nodes(tmp_path: Path) -> Iterator[KilledNodes]:
    nodes = KilledNodes(tmp_path, count=5, cpus=1)
    try:
        yield nodes
        nodes.stop()
    finally:
        nodes.clear_away()


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_jobs_that_may_run_again_all_finish_though_nodes_are_killed(
    killed_nodes: KilledNodes, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    cluster = new_cluster(
        square, *killed_nodes.nodes, reentrant=True, max_tasks_per_child=max_tasks
    )
    jobs = submit_all(cluster, tmp_path / "record", int(800 * SCALE), lambda: 0.015)
    with repeatedly(killed_nodes.kill_one, 0.5):
        all_ended(jobs, 120)
    assert killed_nodes.dead
    assert statuses(jobs) == {DispyJob.Finished: len(jobs)}
    cluster.close()


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_other_jobs_are_abandoned_and_never_run_twice(
    killed_nodes: KilledNodes, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    told: Counter[int] = Counter()
    cluster = new_cluster(
        square,
        *killed_nodes.nodes,
        max_tasks_per_child=max_tasks,
        job_status=lambda job: told.update([job.id]),
    )
    record = tmp_path / "record"
    jobs = submit_all(cluster, record, int(800 * SCALE), lambda: 0.015)
    with repeatedly(killed_nodes.kill_one, 0.5):
        all_ended(jobs, 120)
    assert killed_nodes.dead
    cluster.close()
    counts = statuses(jobs)
    assert set(counts) <= {DispyJob.Finished, DispyJob.Abandoned}
    begun = noted(record)
    assert max(begun.values()) == 1
    assert all(begun[n] for n, job in enumerate(jobs) if job.status == DispyJob.Finished)
    assert all(told[job.id] == 1 for job in jobs if job.status == DispyJob.Abandoned)
    assert counts[DispyJob.Finished] > len(jobs) / 2


def test_a_node_killed_at_any_moment_leaves_nothing(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    dice = random.Random(6)
    nodes = [start_node()]
    cluster = new_cluster(square, nodes[0], reentrant=True)
    jobs = submit_all(cluster, tmp_path / "record", 100, lambda: 0.02)
    for _ in range(int(12 * SCALE)):
        time.sleep(dice.choice([0.0, 0.02, 0.1]))  # the moment
        nodes[-1].kill()
        nodes.append(start_node(port=nodes[0].port))
    all_ended(jobs)
    for node in nodes[:-1]:
        node.assert_nothing_left()


# -- connections break ---------------------------------------------------------------------------


@pytest.fixture
def proxy(node: NodeProcess) -> Iterator[FaultProxy]:
    proxy = FaultProxy(node.address, node.for_proxy)
    yield proxy
    proxy.close()


@pytest.fixture
def proxied(proxy: FaultProxy) -> Iterator[dispy.JobCluster]:
    """A cluster whose node is behind the proxy."""
    cluster = dispy.JobCluster(
        square, nodes=[proxy.address], max_tasks_per_child=None, pulse_interval=2
    )
    yield cluster
    proxy.heal()
    assert cluster.close(timeout=0, terminate=True)


def assert_all_ran_once(jobs: list[DispyJob], record: Path) -> None:
    assert statuses(jobs) == {DispyJob.Finished: len(jobs)}
    assert noted(record) == Counter(range(len(jobs)))


def test_connection_resets_lose_and_repeat_nothing(
    proxy: FaultProxy, proxied: dispy.JobCluster, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    with repeatedly(proxy.reset, 0.05):
        jobs = submit_all(proxied, record, int(10_000 * SCALE), lambda: 0.0)
        all_ended(jobs, 60 * SCALE)
    assert proxy.resets > 3
    assert_all_ran_once(jobs, record)


def test_connections_that_break_in_the_middle_of_messages_lose_nothing(
    proxy: FaultProxy, proxied: dispy.JobCluster, tmp_path: Path
) -> None:
    record = str(tmp_path / "record")
    dice = random.Random(5)
    data = [dice.randbytes(400_000) for _ in range(int(30 * SCALE))]
    proxy.cut_after(3_000_017)  # more than any single message
    jobs = [proxied.submit(record, number, 0.0, each) for number, each in enumerate(data)]
    all_ended(jobs, 60 * SCALE)
    assert proxy.resets > 3
    assert [job.result for job in jobs] == data
    assert noted(tmp_path / "record") == Counter(range(len(jobs)))


def test_a_slow_connection_is_only_slow(
    proxy: FaultProxy, proxied: dispy.JobCluster, tmp_path: Path
) -> None:
    proxy.delay_s = 0.05
    record = tmp_path / "record"
    jobs = submit_all(proxied, record, int(1_000 * SCALE), lambda: 0.0)
    all_ended(jobs, 60 * SCALE)
    assert_all_ran_once(jobs, record)


def test_a_network_that_is_silent_for_a_while_loses_and_repeats_nothing(
    proxy: FaultProxy, proxied: dispy.JobCluster, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    jobs = submit_all(proxied, record, 400, lambda: 0.01)
    until(lambda: any(job.finish.is_set() for job in jobs), "the first result")
    proxy.blackhole()
    time.sleep(SILENCE_S)
    proxy.heal()
    all_ended(jobs, 30)
    assert_all_ran_once(jobs, record)


# -- means run out -------------------------------------------------------------------------------


def test_a_node_without_descriptors_goes_on_when_it_has_some_again(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    node = start_node()
    cluster = new_cluster(square, node)
    finished(cluster.submit(str(tmp_path / "first"), 2, 0.0))
    process = psutil.Process(node.pid)
    soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() - 2, hard))
    jobs = submit_all(cluster, tmp_path / "record", 50, lambda: 0.0)
    until(lambda: all(job.finish.is_set() for job in jobs[:2]), "the use of all spares")
    process.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
    again = submit_all(cluster, tmp_path / "again", 50, lambda: 0.0)
    all_ended(jobs + again)
    assert statuses(again) == {DispyJob.Finished: 50}
    assert process.is_running()


def not_as_root() -> list[str]:
    """Return what runs a command as a user for whom the limit of processes is kept."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("the limit of processes isn't kept for root, and there is no setpriv")
    kept = "-all,+dac_override,+dac_read_search"  # what it takes to read root's Python
    sets = [f"--{name}={kept}" for name in ("inh-caps", "ambient-caps", "bounding-set")]
    return ["setpriv", f"--reuid={NOBODY}", "--clear-groups", *sets]


class Starving:
    """A computation that leaves its template no room for processes, until SIGUSR1."""

    def __getstate__(self) -> dict[str, bool]:
        return {"starving": True}

    def __setstate__(self, state: dict[str, bool]) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_NPROC)
        signal.signal(signal.SIGUSR1, self.relent)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, self.limits[1]))

    def relent(self, signum: int, frame: object) -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, self.limits)

    def __call__(self, record: str, number: int) -> int:
        note(record, number)
        return number * number


def test_a_node_that_cannot_fork_says_so_and_goes_on_when_it_can_again(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    node = start_node(through=not_as_root())
    cluster = new_cluster(Starving(), node)
    job = ended(cluster.submit(str(tmp_path / "record"), 1))
    assert job.status == DispyJob.Terminated
    assert "Resource temporarily unavailable" in str(job.exception)
    zygote = next(process for process in node.relatives() if process.ppid() == node.pid)
    [template] = zygote.children()
    template.send_signal(signal.SIGUSR1)
    jobs = [cluster.submit(str(tmp_path / "record"), number) for number in range(20)]
    all_ended(jobs)
    assert statuses(jobs) == {DispyJob.Finished: 20}


# -- the end, under load -------------------------------------------------------------------------


@pytest.mark.parametrize("max_tasks", [1, None])
def test_a_node_stopped_under_load_loses_no_result_and_runs_nothing_twice(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    first, second = start_node(), start_node()
    cluster = new_cluster(square, first, second, max_tasks_per_child=max_tasks)
    record = tmp_path / "record"
    jobs = submit_all(cluster, record, int(400 * SCALE), lambda: 0.01)
    until(lambda: sum(job.finish.is_set() for job in jobs) > 20, "some results")
    first.stop()
    all_ended(jobs)
    counts = statuses(jobs)
    lost = len(jobs) - counts[DispyJob.Finished]
    assert lost <= first.cpus  # what it was running
    assert len(noted(record)) == len(jobs)  # so each of these had begun
    assert max(noted(record).values()) == 1


def test_results_that_wait_for_company_when_a_node_stops_count(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    node = start_node(cpus=1)
    cluster = new_cluster(square, node, max_tasks_per_child=None)
    record = tmp_path / "record"
    all_ended([cluster.submit(str(record), 0, 0.0) for _ in range(20)])  # so they are short
    jobs = [cluster.submit(str(record), number, 60.0 * (number == 5)) for number in range(1, 6)]
    until(lambda: 5 in noted(record), "the long one to begin")
    node.stop()
    all_ended(jobs)
    assert [job.status for job in jobs[:4]] == [DispyJob.Finished] * 4
    assert jobs[4].status == DispyJob.Abandoned


PROGRAM = """
import sys, time, dispy

def work(seconds):
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        time.sleep(seconds)  # takes no hints

if __name__ == "__main__":
    with dispy.JobCluster(work, nodes=[sys.argv[1]], cancel_grace=0.5) as cluster:
        for _ in range(1000):
            cluster.submit(60)
        while cluster.status().nodes == []:
            time.sleep(0.01)
        print("running", flush=True)
        cluster.wait()
"""


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_ctrl_c_ends_a_program_and_frees_its_node(
    start_node: StartNode, start_program: RunProgram, new_cluster: NewCluster, signals: list[int]
) -> None:
    node = start_node()
    program = start_program(PROGRAM, node.address)
    is_there(program.out)
    for number in signals:
        program.process.send_signal(number)
        time.sleep(0.3)  # until the next key is pressed
    assert program.wait(EXIT_S) != 0
    assert "KeyboardInterrupt" in program.log()
    job = new_cluster(pow, node).submit(2, 3)
    assert ended(job, 8.0).result == 8
    assert len(node.relatives()) < 10


@pytest.mark.skipif(SCALE < 2, reason="takes as long as the lease of a client: 25 s")
def test_a_killed_program_frees_its_node(
    start_node: StartNode, start_program: RunProgram, new_cluster: NewCluster
) -> None:
    node = start_node()
    program = start_program(PROGRAM, node.address)
    is_there(program.out)
    program.kill()
    assert ended(new_cluster(pow, node).submit(2, 3), 40.0).result == 8


def test_strangers_at_the_nodes_door_disturb_nobody(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    dice = random.Random(3)
    cluster = new_cluster(abs, node)
    greeting = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(48)
    for _ in range(100):
        with socket.create_connection((node.host, node.port)) as stranger, suppress(OSError):
            begin: Any = dice.choice([b"", b"GET / HTTP/1.1\r\n\r\n", greeting])
            stranger.sendall(begin + dice.randbytes(dice.randrange(2000)))
    assert finished(cluster.submit(-5)).result == 5
