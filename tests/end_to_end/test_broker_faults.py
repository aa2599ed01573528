"""Processes that hang and means that run out, at a shared broker."""

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
from dispy.protocol import exitcodes

from . import behind_relays
from .conftest import NewSharedCluster, StartBroker, StartNode
from .processes import BrokerProcess
from .records import noted
from .test_broker_restart import end_more, wait_for
from .test_faults import assert_all_ran_once, square, statuses, submit_all
from .waiting import all_ended, finished, until

SLOW_S = 6.5 if behind_relays.COUNT else 0.0  # so much longer silence is put up with there
SILENCE_S = 5.5 + SLOW_S  # longer than either side takes the other for alive
NOTICED_S = 5.0  # until the other side has noticed: 3.5 and a round, on a busy machine
BACK_S = 5.0  # from the end of a silence until jobs end again, likewise
ANSWER_S = 2.0  # of others meanwhile


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
    assert longest_s < ANSWER_S


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


def test_a_journal_that_is_long_enough_takes_no_more_jobs_until_others_have_ended(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = start_broker("--max-journal-size", "4m")
    cluster = new_shared_cluster(square, broker)
    data = bytes(1 << 20)
    jobs = [cluster.submit(str(record), number, 0.0, data) for number in range(8)]
    until(lambda: "has reached its limit of 4 MiB" in broker.status().trouble, "trouble")
    late = cluster.submit(str(record), len(jobs), 0.0)
    until(lambda: "has reached its limit of 4 MiB" in caplog.text, "a warning")
    assert "has reached its limit of 4 MiB" in late.explain()
    start_node("--broker", broker.for_nodes)
    assert finished(late).result == len(jobs) ** 2
    assert all(finished(job).result == data for job in jobs)
    assert noted(record) == Counter(range(len(jobs) + 1))


def test_a_broker_whose_disk_fails_stops_and_nothing_is_lost(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    """It must not go on as if what it has written were there."""
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(square, broker, max_tasks_per_child=None)
    jobs = submit_all(cluster, record, 2000, lambda: 0.001)
    end_more(jobs, 20)
    written = sum(path.stat().st_size for path in broker.state.glob("journal.sqlite-wal"))
    psutil.Process(broker.pid).rlimit(psutil.RLIMIT_FSIZE, (written, written))
    assert broker.wait(30) == exitcodes.BROKEN_DISK
    assert "journal can't be written any more" in broker.log()
    assert "Traceback" not in broker.log()
    start_broker(instead_of=broker)
    all_ended(jobs)
    assert_all_ran_once(jobs, record)


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
