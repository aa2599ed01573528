"""Connections that break, processes that hang and means that run out, at a shared broker.

The sizes are those of a quick run; DISPY_TEST_SCALE=10 makes them ten times as large.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from dispy import DispyJob

from .conftest import NewProxy, NewSharedCluster, StartBroker, StartNode
from .processes import BrokerProcess
from .records import noted
from .test_broker_restart import end_more, wait_for
from .test_faults import SCALE, assert_all_ran_once, repeatedly, square, statuses, submit_all
from .waiting import all_ended, finished, until

SILENCE_S = 4.5  # longer than either side takes the other for alive
NOTICED_S = 4.4  # from the last sign of life until the other side has noticed; 3.5 and a round
BACK_S = 2.5  # from the end of a silence until jobs end again
WAYS = {"both": (True, True), "there": (True, False), "back": (False, True)}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Where jobs note that they run."""
    return tmp_path / "record"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file that jobs wait for."""
    return tmp_path / "gate"


# -- partitions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "ways"),
    [("node", "both"), ("node", "there"), ("node", "back"), ("client", "both")],
    ids=["node", "to broker", "from broker", "client"],
)
def test_a_partition_shorter_than_the_lease_loses_and_repeats_nothing(
    start_broker: StartBroker,
    new_proxy: NewProxy,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    where: str,
    ways: str,
) -> None:
    broker = start_broker("--pulse-interval", "2")
    proxies = {"node": new_proxy(broker.for_nodes), "client": new_proxy(broker.address)}
    start_node("--name", "alpha", "--broker", proxies["node"].address)
    cluster = new_shared_cluster(square, proxies["client"], max_tasks_per_child=None)
    jobs = submit_all(cluster, record, 1000, lambda: 0.004)
    end_more(jobs, 20)
    begin = time.monotonic()
    proxies[where].blackhole(*WAYS[ways])
    if where == "node":
        until(lambda: broker.node_state("alpha") == "away", "that it is away", 10)
        noticed_s = time.monotonic() - begin
        assert noticed_s < NOTICED_S
    time.sleep(max(0.0, begin + SILENCE_S - time.monotonic()))
    proxies[where].heal()
    begin = time.monotonic()
    end_more(jobs, 1)
    assert time.monotonic() - begin < BACK_S
    all_ended(jobs, 60)
    assert_all_ran_once(jobs, record)


def test_a_partition_longer_than_the_lease_has_jobs_run_again_that_may(
    start_broker: StartBroker,
    new_proxy: NewProxy,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
) -> None:
    """The late result of the first attempt is no second end."""
    told: list[int] = []
    broker = start_broker("--pulse-interval", "0.1")
    proxy = new_proxy(broker.for_nodes)
    start_node("--name", "alpha", "--broker", proxy.address, cpus=1)
    cluster = new_shared_cluster(
        wait_for, broker, reentrant=True, job_status=lambda job: told.append(job.status)
    )
    job = cluster.submit(str(record), str(gate), 5)
    until(lambda: noted(record)[5] == 1, "its first attempt")
    proxy.blackhole()
    start_node("--name", "beta", "--broker", broker.for_nodes, cpus=1)
    until(lambda: noted(record)[5] == 2, "its second attempt", 15)
    proxy.heal()
    until(lambda: broker.node_state("alpha") == "up", "that it is back", 10)
    gate.touch()
    assert finished(job).result == 25
    again = [cluster.submit(str(record), str(gate), number) for number in range(6, 16)]
    assert {finished(each).host for each in again} == {"127.0.0.1"}
    until(lambda: not any(node.held for node in broker.status().nodes), "free CPUs")
    assert noted(record)[5] == 2
    cluster.wait()
    assert told.count(DispyJob.Finished) == 11


def test_a_partition_longer_than_the_lease_abandons_other_jobs_until_they_are_back(
    start_broker: StartBroker,
    new_proxy: NewProxy,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
) -> None:
    broker = start_broker("--pulse-interval", "0.1")
    proxy = new_proxy(broker.for_nodes)
    node = start_node("--name", "alpha", "--broker", proxy.address, cpus=1)
    cluster = new_shared_cluster(wait_for, broker)
    jobs = [cluster.submit(str(record), str(gate), number) for number in range(3)]
    until(lambda: noted(record)[0] == 1, "the job that runs")
    proxy.blackhole()
    until(lambda: jobs[0].status == DispyJob.Abandoned, "the end of the lease", 15)
    assert "alpha was lost" in str(jobs[0].exception)
    gate.touch()
    proxy.heal()
    until(lambda: jobs[0].status == DispyJob.Finished, "its result after all")
    assert [finished(job).result for job in jobs] == [0, 1, 4]
    assert noted(record) == Counter(range(3))
    assert node.process.poll() is None


# -- connections that break, or are slow -----------------------------------------------------------


def test_connections_that_are_reset_again_and_again_lose_and_repeat_nothing(
    start_broker: StartBroker,
    new_proxy: NewProxy,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    """All of both sides, ten times a second."""
    broker = start_broker()
    proxies = [new_proxy(broker.for_nodes), new_proxy(broker.address)]
    start_node("--broker", proxies[0].address)
    cluster = new_shared_cluster(square, proxies[1], max_tasks_per_child=None)
    count = int(2000 * SCALE)
    begin = time.monotonic()
    all_ended(submit_all(cluster, record, count, lambda: 0.001), 60 * SCALE)
    undisturbed_s = time.monotonic() - begin
    record.unlink()

    def reset() -> None:
        for proxy in proxies:
            proxy.reset()

    begin = time.monotonic()
    with repeatedly(reset, 0.1):
        jobs = submit_all(cluster, record, count, lambda: 0.001)
        all_ended(jobs, 60 * SCALE)
    disturbed_s = time.monotonic() - begin
    print(f"{count} jobs in {undisturbed_s:.1f} s, with resets in {disturbed_s:.1f} s")
    assert_all_ran_once(jobs, record)
    assert all(proxy.resets > 3 for proxy in proxies)
    assert disturbed_s < 3 * undisturbed_s + 5


def test_slow_connections_are_only_slow(
    start_broker: StartBroker,
    new_proxy: NewProxy,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    broker = start_broker()
    proxies = [new_proxy(broker.for_nodes), new_proxy(broker.address)]
    start_node("--broker", proxies[0].address)
    cluster = new_shared_cluster(square, proxies[1], max_tasks_per_child=None)
    for proxy in proxies:
        proxy.delay_s = 0.05
    jobs = submit_all(cluster, record, int(1000 * SCALE), lambda: 0.0)
    all_ended(jobs, 60 * SCALE)
    assert_all_ran_once(jobs, record)


# -- processes that hang ---------------------------------------------------------------------------

# Loaded by the node's Python as it starts. A call of PyDLL keeps the interpreter's lock, so that
# nothing of Python's runs in the node meanwhile, while the threads of ZeroMQ do.
HANGS = f"""
import ctypes, signal, sys
if "dispy.node.cli" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, lambda *_: ctypes.PyDLL(None).usleep(int({SILENCE_S} * 1e6)))
"""


@pytest.mark.parametrize("how", ["SIGSTOP", "loop"])
def test_a_node_that_hangs_is_noticed_and_nobody_else_waits(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    tmp_path: Path,
    how: str,
) -> None:
    """Also when only its main loop does: then ZeroMQ's own signs of life go on."""
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    broker = start_broker()
    hangs = start_node(
        *("--name", "alpha", "--broker", broker.for_nodes),
        cpus=1,
        environment={"PYTHONPATH": str(tmp_path)},
    )
    works = start_node(cpus=1)
    cluster = new_shared_cluster(square, broker, nodes=["alpha"], max_tasks_per_child=None)
    jobs = submit_all(cluster, record, 1000, lambda: 0.002)
    end_more(jobs, 20)
    others = new_shared_cluster(square, broker, nodes=[works.address], max_tasks_per_child=None)
    finished(others.submit(str(tmp_path / "others"), 0, 0.0))
    with hung(hangs.process, how):
        begin = time.monotonic()
        longest_s, count = 0.0, 0
        while broker.node_state("alpha") == "up":
            asked = time.monotonic()
            finished(others.submit(str(tmp_path / "others"), 1, 0.0))
            longest_s, count = max(longest_s, time.monotonic() - asked), count + 1
            assert time.monotonic() < begin + NOTICED_S, "it isn't noticed"
        noticed_s = time.monotonic() - begin
        assert broker.node_state("alpha") == "away"
        until(lambda: time.monotonic() > begin + SILENCE_S, "the end of the hanging")
    end_more(jobs, 1)
    print(f"noticed after {noticed_s:.2f} s; {count} others, each within {longest_s:.2f} s")
    all_ended(jobs)
    assert_all_ran_once(jobs, record)
    assert longest_s < 1.0


@contextmanager
def hung(process: subprocess.Popen[bytes], how: str) -> Iterator[None]:
    if how == "loop":
        process.send_signal(signal.SIGUSR1)
        yield
        return
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_broker_that_hangs_holds_jobs_up_only_for_so_long(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(square, broker, max_tasks_per_child=None)
    jobs = submit_all(cluster, record, 600, lambda: 0.004)
    end_more(jobs, 20)
    with hung(broker.process, "SIGSTOP"):
        time.sleep(SILENCE_S)
    begin = time.monotonic()
    end_more(jobs, 1)
    assert time.monotonic() - begin < BACK_S
    all_ended(jobs)
    assert_all_ran_once(jobs, record)


# -- means run out ---------------------------------------------------------------------------------


class SmallDisk:
    """The disk of a broker's state, of 64 MB, that nobody else sees."""

    def __init__(self, broker: BrokerProcess) -> None:
        self._folder = Path(f"/proc/{broker.pid}/root{broker.state}")
        self._files = 0

    def fill(self) -> None:
        """Leave no byte of it."""
        self._files += 1
        with suppress(OSError), (self._folder / f"filler-{self._files}").open("wb", 0) as file:
            while True:
                file.write(bytes(4096))

    def clear(self) -> None:
        """Remove what filled it."""
        for path in self._folder.glob("filler-*"):
            path.unlink()


@pytest.fixture
def broker_on_a_small_disk(start_broker: StartBroker, tmp_path: Path) -> BrokerProcess:
    apart = ("unshare", "--mount")
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("there can't be a file system for one process only")
    state = tmp_path / "state"
    state.mkdir()
    mounted = (*apart, "sh", "-c", 'mount -t tmpfs -o size=64m none "$0" && exec "$@"', str(state))
    return start_broker(through=mounted, state=state)


def test_a_full_disk_stops_new_jobs_only(
    broker_on_a_small_disk: BrokerProcess,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker, disk = broker_on_a_small_disk, SmallDisk(broker_on_a_small_disk)
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(wait_for, broker)
    jobs = [cluster.submit(str(record), str(gate), number) for number in range(4)]
    until(lambda: len(noted(record)) == 2, "jobs that run")
    disk.fill()
    until(lambda: "disk of the broker's journal is full" in broker.status().trouble, "trouble")
    late = cluster.submit(str(record), str(gate), 4)
    until(lambda: "disk of the broker's journal is full" in caplog.text, "a warning")
    assert "disk of the broker's journal is full" in late.explain()
    gate.touch()
    assert [finished(job).result for job in jobs] == [0, 1, 4, 9]
    assert late.status == DispyJob.Created
    disk.clear()
    assert finished(late).result == 16
    assert broker.status().trouble == ""
    assert noted(record) == Counter(range(5))


def test_a_disk_without_a_byte_left_holds_all_up_and_loses_nothing(
    broker_on_a_small_disk: BrokerProcess,
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    """Not even for the ends of the jobs that run: what gave way to them is full, too."""
    broker, disk = broker_on_a_small_disk, SmallDisk(broker_on_a_small_disk)
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(square, broker, max_tasks_per_child=None)
    jobs = submit_all(cluster, record, 2000, lambda: 0.001)
    end_more(jobs, 20)

    def is_deaf() -> bool:
        disk.fill()
        return "deaf until then" in broker.log()

    until(is_deaf, "a full disk")
    disk.clear()
    all_ended(jobs)
    assert_all_ran_once(jobs, record)
    assert finished(cluster.submit(str(record), 3, 0.0)).result == 9


STRANGERS = 150
DESCRIPTORS = 64


def test_a_broker_without_descriptors_serves_those_that_it_has(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    limited = ("sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$0" "$@"')
    broker = start_broker(through=limited)
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(square, broker, max_tasks_per_child=None)
    finished(cluster.submit(str(record), 0, 0.0))
    process = psutil.Process(broker.pid)
    host, _, port = broker.address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(STRANGERS):
            stranger = stack.enter_context(socket.socket())
            stranger.setblocking(False)
            stranger.connect_ex((host, int(port)))
        until(lambda: "no more connections can be accepted" in broker.log(), "a full broker")
        begin, before = time.monotonic(), process.cpu_times()
        jobs = submit_all(cluster, record, 100, lambda: 0.01)
        all_ended(jobs)
        until(lambda: time.monotonic() > begin + 2.0, "two seconds")
        after, seconds = process.cpu_times(), time.monotonic() - begin
    used = (after.user + after.system - before.user - before.system) / seconds
    print(f"{used:.1%} of a CPU")
    assert statuses(jobs) == {DispyJob.Finished: 100}
    assert used < 0.2
    begin = time.monotonic()
    start_node("--name", "late", "--broker", broker.for_nodes)
    until(lambda: broker.node_state("late") == "up", "that others are let in again", 10)
    print(f"let in after {time.monotonic() - begin:.1f} s")
