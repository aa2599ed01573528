"""A broker that is killed or stopped while jobs run, and started anew in its place.

Nothing is lost and nothing runs twice, whatever the moment. The sizes are those of a quick run;
DISPY_TEST_SCALE=10 makes them ten times as large.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import dispy
from dispy import DispyJob, recoverfile
from dispy.protocol import exitcodes

from .conftest import NewProxy, NewSharedCluster, RunProgram, StartBroker, StartNode
from .fault_proxy import FaultProxy
from .processes import BrokerProcess, Marked, Program, broker_command, free_port
from .records import note, noted
from .test_faults import SCALE, assert_all_ran_once, square, statuses, submit_all
from .waiting import PATIENCE_S, all_ended, finished, until

RECONNECT_S = 5.0  # from the start of a broker until jobs end again
STOP_S = 5.0
POINTS = (
    "before-write",
    "after-write",
    "before-commit",
    "after-commit",
    "before-send",
    "after-send",
)
FULL = 20  # times as much is the full measure of what is done again and again


def wait_for(record: str, gate: str, number: int) -> int:
    """Note that it runs, run until there is a file."""
    note(record, number)
    while not os.path.exists(gate):
        time.sleep(0.01)
    return number * number


def ended_count(jobs: list[DispyJob]) -> int:
    return sum(job.finish.is_set() for job in jobs)


def end_more(jobs: list[DispyJob], count: int) -> None:
    """Wait until so many more have ended, or all."""
    goal = min(ended_count(jobs) + count, len(jobs))
    until(lambda: ended_count(jobs) >= goal, f"{goal} ends")


def carry(proxy: FaultProxy, count: int) -> None:
    """Wait until a connection has carried so many more bytes."""
    goal = proxy.carried + count
    until(lambda: proxy.carried >= goal, f"{count} bytes")


def refusal(port: int, state: Path, *options: str) -> tuple[int, str]:
    """Start a broker that can't work; return its exit code and what it says."""
    command = broker_command(port, state, *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr
    return done.returncode, done.stderr


# -- kill -9 ---------------------------------------------------------------------------------------


def test_a_broker_killed_at_random_moments_loses_and_repeats_nothing(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(square, broker, max_tasks_per_child=None)
    dice = random.Random(11)
    jobs = submit_all(cluster, record, int(2000 * SCALE), lambda: dice.uniform(0, 0.004))
    recoveries = []
    for _ in range(min(int(5 * SCALE), FULL)):
        end_more(jobs, 1)
        time.sleep(dice.uniform(0, 0.3))  # the moment
        broker.kill()
        broker = start_broker(instead_of=broker)
        begin = time.monotonic()
        end_more(jobs, 1)
        recoveries.append(time.monotonic() - begin)
    all_ended(jobs, 60 * SCALE)
    print("jobs end again after", [round(each, 2) for each in sorted(recoveries)])
    assert_all_ran_once(jobs, record)
    assert max(recoveries) < RECONNECT_S
    until(lambda: broker.status().clusters[0].unheard == 0, "all results heard")


@pytest.mark.parametrize("point", POINTS)
def test_a_broker_killed_at_a_point_of_its_round_loses_and_repeats_nothing(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    point: str,
) -> None:
    """Also the moments between writing and committing, and between that and saying so."""
    dice = random.Random(point)
    broker = start_broker(crash_at=f"{point}:{dice.randint(2, 8)}")
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(square, broker, max_tasks_per_child=None)
    jobs: list[DispyJob] = []
    for _ in range(min(int(3 * SCALE), FULL)):
        _see_it_die(broker, cluster, jobs, record)
        broker = start_broker(instead_of=broker, crash_at=f"{point}:{dice.randint(20, 60)}")
    _see_it_die(broker, cluster, jobs, record)
    start_broker(instead_of=broker)
    all_ended(jobs)
    assert_all_ran_once(jobs, record)


def _see_it_die(
    broker: BrokerProcess, cluster: dispy.SharedJobCluster, jobs: list[DispyJob], record: Path
) -> None:
    """Give a broker something to do until it is dead."""

    def is_dead() -> bool:
        if len(jobs) - ended_count(jobs) < 50:
            more = range(len(jobs), len(jobs) + 30)
            jobs.extend(cluster.submit(str(record), number, 0.002) for number in more)
        return broker.process.poll() is not None

    until(is_dead, "its death")
    assert broker.wait(1) == -signal.SIGKILL


@pytest.mark.parametrize("point", ["before-commit:1", "after-commit:1", "before-send:1"])
def test_a_broker_killed_as_it_starts_loses_nothing(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
    point: str,
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(wait_for, broker)
    jobs = [cluster.submit(str(record), str(gate), number) for number in range(6)]
    until(lambda: len(noted(record)) == 2, "jobs that run")
    broker.kill()
    command = broker_command(broker.port, broker.state)
    dying = Marked(command, broker.folder.parent, environment={"DISPY_CRASH_AT": point})
    assert dying.wait(20) == -signal.SIGKILL
    gate.touch()
    start_broker(instead_of=broker)
    all_ended(jobs)
    assert_all_ran_once(jobs, record)


def digest(name: str) -> str:
    """Return the hash of a file that the computation has."""
    with open(name, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def test_files_that_are_on_their_way_arrive_all_the_same(
    start_broker: StartBroker,
    new_proxy: NewProxy,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    tmp_path: Path,
) -> None:
    data = os.urandom(20 << 20)
    (tmp_path / "data").write_bytes(data)
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    proxy = new_proxy(broker.address)
    proxy.bytes_per_s = 32e6
    cluster = new_shared_cluster(digest, proxy, depends=["data"])
    job = cluster.submit("data")
    for _ in range(2):
        carry(proxy, 4 << 20)
        broker.kill()
        broker = start_broker(instead_of=broker)
    proxy.heal()
    assert finished(job).result == hashlib.sha256(data).hexdigest()


def test_jobs_run_on_while_the_broker_is_away(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
) -> None:
    """Those that run are adopted; those that have ended meanwhile aren't lost."""
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(wait_for, broker)
    other = gate.with_name("other")
    jobs = [cluster.submit(str(record), str(path), n) for n, path in enumerate([gate, other])]
    until(lambda: len(noted(record)) == 2, "jobs that run")
    broker.kill()
    gate.touch()  # the first one ends while there is nobody to tell
    broker = start_broker(instead_of=broker)
    finished(jobs[0])
    until(lambda: broker.status().clusters[0].running == 1, "the job that runs on")
    other.touch()
    all_ended(jobs)
    assert_all_ran_once(jobs, record)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "once"])
def test_a_node_that_dies_while_the_broker_is_away_is_not_waited_for_when_it_is_started_anew(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
    reentrant: bool,
) -> None:
    broker = start_broker()
    node = start_node("--name", "alpha", "--broker", broker.for_nodes)
    cluster = new_shared_cluster(wait_for, broker, reentrant=reentrant)
    jobs = [cluster.submit(str(record), str(gate), number) for number in range(5)]
    until(lambda: len(noted(record)) == 2, "jobs that run")
    broker.kill()
    node.kill()
    gate.touch()
    start_broker(instead_of=broker)
    start_node("--name", "alpha", "--broker", broker.for_nodes, port=node.port)
    begin = time.monotonic()
    all_ended(jobs)
    print(f"all ended after {time.monotonic() - begin:.1f} s")
    lost = [job for job in jobs if job.status == DispyJob.Abandoned]
    assert len(lost) == (0 if reentrant else 2)
    assert all("alpha was lost: it was started anew" in str(job.exception) for job in lost)
    assert sorted(noted(record).values()) == [1, 1, 1, *([2, 2] if reentrant else [1, 1])]


def test_jobs_that_are_cancelled_while_the_broker_is_away_do_not_run(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes, cpus=1)
    cluster = new_shared_cluster(wait_for, broker)
    jobs = [cluster.submit(str(record), str(gate), number) for number in range(4)]
    until(lambda: noted(record)[0], "the job that runs")
    broker.kill()
    jobs.append(cluster.submit(str(record), str(gate), 4))
    cancelled = [jobs[0], jobs[2], jobs[4]]
    for job in cancelled:
        assert cluster.cancel(job) == 0
    start_broker(instead_of=broker)
    all_ended(cancelled)
    gate.touch()
    all_ended(jobs)
    assert [job.status for job in jobs] == [
        DispyJob.Terminated,
        DispyJob.Finished,
        DispyJob.Cancelled,
        DispyJob.Finished,
        DispyJob.Cancelled,
    ]
    assert noted(record) == {0: 1, 1: 1, 3: 1}


def test_a_cluster_is_closed_though_the_broker_is_killed_meanwhile(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
) -> None:
    broker = start_broker()
    node = start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(wait_for, broker)
    jobs = [cluster.submit(str(record), str(gate), number) for number in range(50)]
    until(lambda: len(noted(record)) == 2, "jobs that run")
    closing = threading.Thread(target=cluster.close, args=(0, True))
    closing.start()
    until(lambda: jobs[49].finish.wait(0.005), "an end")
    broker.kill()
    broker = start_broker(instead_of=broker)
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert all(job.status == DispyJob.Cancelled for job in jobs)
    until(lambda: not broker.status().clusters, "the end of the cluster")
    until(lambda: not node.job_processes(), "the end of its processes")


# -- SIGTERM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_broker_stopped_under_load_ends_soon_and_goes_on_later(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    signum: int,
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(square, broker, max_tasks_per_child=None)
    jobs = submit_all(cluster, record, int(1500 * SCALE), lambda: 0.002)
    end_more(jobs, 50)
    broker.stop(signum)  # asserts that it ends well within 5 s
    assert "jobs that run go on" in broker.log()
    jobs.append(cluster.submit(str(record), len(jobs), 0.0))
    start_broker(instead_of=broker)
    all_ended(jobs, 60 * SCALE)
    assert_all_ran_once(jobs, record)


# -- without a journal -----------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "once"])
def test_a_broker_without_a_journal_starts_from_nothing(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    reentrant: bool,
) -> None:
    """Jobs that may run again do, the others are given up, and say why."""
    broker = start_broker("--no-journal")
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(square, broker, max_tasks_per_child=None, reentrant=reentrant)
    jobs = submit_all(cluster, record, int(600 * SCALE), lambda: 0.002)
    end_more(jobs, 50)
    broker.kill()
    start_broker(instead_of=broker)
    all_ended(jobs)
    counts, begun = statuses(jobs), noted(record)
    if reentrant:
        assert counts == {DispyJob.Finished: len(jobs)}
        return
    assert set(counts) == {DispyJob.Finished, DispyJob.Abandoned}
    assert max(begun.values()) == 1
    lost = [job for job in jobs if job.status == DispyJob.Abandoned]
    assert all("without its journal" in str(job.exception) for job in lost)
    assert finished(cluster.submit(str(record), 7, 0.0)).result == 49


# -- programs are killed ---------------------------------------------------------------------------

SOURCE = """
import sys, time
import dispy


def work(record, number):
    import os, time
    fd = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, number.to_bytes(8, "little"))
    os.close(fd)
    time.sleep(0.002)
    return number * number


def ended(job):
    print(job.id, job.result, flush=True)


broker, record, count = sys.argv[1:4]
cluster = dispy.SharedJobCluster(
    work, scheduler_node=broker, name="mine", job_status=ended, max_tasks_per_child=None
)
for n in range(int(count)):
    cluster.submit_job_id(n, record, n)
print("submitted", flush=True)
cluster.close()
"""


def submitted(program: Program) -> bool:
    return "submitted" in program.output()


def got(program: Program) -> dict[int, int]:
    """Return the results that a program had before it was killed."""
    lines = [line.split() for line in program.output().splitlines(keepends=True) if "\n" in line]
    return {int(words[0]): int(words[1]) for words in lines if len(words) == 2}


@pytest.mark.parametrize("by_file", [True, False], ids=["by file", "by name"])
def test_results_of_a_killed_program_are_got_once(
    start_broker: StartBroker,
    start_node: StartNode,
    start_program: RunProgram,
    record: Path,
    by_file: bool,
) -> None:
    """What it had got itself isn't given again; all else is there."""
    count = int(800 * SCALE)
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    program = start_program(SOURCE, broker.address, str(record), str(count))
    until(lambda: submitted(program), "its last job")
    until(lambda: len(got(program)) > 20, "some results")
    program.kill()
    if by_file:
        (path,) = program.folder.glob("_dispy_*")
        jobs = dispy.recover_jobs(path)
        again = {job.id: job.result for job in jobs}
    else:
        jobs = dispy.recover_jobs(cluster="mine", scheduler_node=broker.address)
        again = {job.id - 1: job.result for job in jobs}
    before = got(program)
    assert len(again) == len(jobs)
    assert {**before, **again} == {number: number * number for number in range(count)}
    # The last ones may have been printed without the broker's having heard so.
    assert len(before.keys() & again.keys()) < 200
    assert noted(record) == Counter(range(count))
    print(len(before), "results before,", len(again), "recovered")
    until(lambda: not broker.status().clusters, "the end of the cluster")


def test_a_killed_program_is_recovered_from_a_broker_that_was_killed_too(
    start_broker: StartBroker,
    start_node: StartNode,
    start_program: RunProgram,
    record: Path,
) -> None:
    count = int(400 * SCALE)
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    program = start_program(SOURCE, broker.address, str(record), str(count))
    until(lambda: submitted(program), "its last job")
    until(lambda: len(got(program)) > 20, "some results")
    program.kill()
    broker.kill()
    broker = start_broker(instead_of=broker)
    (path,) = program.folder.glob("_dispy_*")
    again = {job.id: job.result for job in dispy.recover_jobs(path)}
    assert {**got(program), **again} == {number: number * number for number in range(count)}
    assert noted(record) == Counter(range(count))


ALL_ENDED = """
import sys, time
import dispy

cluster = dispy.SharedJobCluster(abs, scheduler_node=sys.argv[1])
jobs = [cluster.submit(-n) for n in range(5)]
cluster.wait()
print("submitted", flush=True)
time.sleep(1000)
"""


def test_a_program_that_was_killed_while_it_closed_its_cluster_has_nothing_to_recover(
    start_broker: StartBroker, start_node: StartNode, start_program: RunProgram, tmp_path: Path
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    program = start_program(ALL_ENDED, broker.address)
    until(lambda: submitted(program), "the end of all jobs")
    (path,) = program.folder.glob("_dispy_*")
    until(lambda: not unended(path), "the file says so")
    program.kill()
    copy = tmp_path / "copy"
    shutil.copy(path, copy)
    assert dispy.recover_jobs(copy) == []  # closes the cluster at the broker
    assert dispy.recover_jobs(path) == [] and not path.exists()


def unended(path: Path) -> int:
    """How many jobs have no end, as far as a recover file says."""
    return sum(len(each.jobs) for each in recoverfile.look_into(path).clusters.values())


ONE_AFTER_THE_OTHER = """
import sys
import dispy

address, count, path = sys.argv[1], int(sys.argv[2]), "both"
for name, exclusive in (("first", True), ("second", False)):
    cluster = dispy.SharedJobCluster(
        abs, scheduler_node=address, name=name, exclusive=exclusive, recover_file=path
    )
    for n in range(count):
        cluster.submit_job_id((name, n), n)
print("submitted", flush=True)
cluster.wait()
"""


def test_clusters_of_one_program_that_wait_for_each_other_are_recovered(
    start_broker: StartBroker, start_node: StartNode, start_program: RunProgram
) -> None:
    broker = start_broker()
    program = start_program(ONE_AFTER_THE_OTHER, broker.address, "3")
    until(lambda: submitted(program), "its last job")
    until(lambda: [each.waiting for each in broker.status().clusters] == [3, 3], "all jobs")
    program.kill()
    start_node("--broker", broker.for_nodes)
    jobs = dispy.recover_jobs(program.folder / "both")
    assert {job.id: job.result for job in jobs} == {
        (name, n): n for name in ("first", "second") for n in range(3)
    }
    until(lambda: not broker.status().clusters, "the end of both")


LONG_RESULTS = """
import sys
import dispy


def work(number):
    return number.to_bytes(4, "big") * 10_000


cluster = dispy.SharedJobCluster(
    work, scheduler_node=sys.argv[1], name="long", max_tasks_per_child=None
)
for n in range(int(sys.argv[2])):
    cluster.submit(n)
print("submitted", flush=True)
cluster.close()
"""


@pytest.mark.parametrize("killed_too", [False, True], ids=["broker lives", "broker killed"])
def test_long_results_are_kept_for_a_killed_program(
    start_broker: StartBroker,
    start_node: StartNode,
    start_program: RunProgram,
    killed_too: bool,
) -> None:
    """More of them than the broker has in memory, in messages of as many as there are at once."""
    count = 2000  # of 40 kB
    broker = start_broker()
    program = start_program(LONG_RESULTS, broker.address, str(count))
    until(lambda: submitted(program), "its last job")
    until(lambda: [each.waiting for each in broker.status().clusters] == [count], "all jobs")
    program.kill()
    start_node("--broker", broker.for_nodes)
    until(lambda: [each.unheard for each in broker.status().clusters] == [count], "all results")
    if killed_too:
        broker.kill()
        broker = start_broker(instead_of=broker)
    jobs = dispy.recover_jobs(cluster="long", scheduler_node=broker.address)
    assert [job.result[:4] for job in jobs] == [n.to_bytes(4, "big") for n in range(count)]
    assert {len(job.result) for job in jobs} == {40_000}


# -- brokers that refuse to start ------------------------------------------------------------------


def test_a_second_broker_with_the_same_state_is_refused(start_broker: StartBroker) -> None:
    broker = start_broker()
    code, text = refusal(free_port(), broker.state)
    assert code == exitcodes.LOCKED and str(broker.pid) in text
    broker.kill()
    start_broker(instead_of=broker)  # a lock doesn't outlive its process


def test_a_port_that_is_taken_is_refused(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = start_broker()
    code, text = refusal(broker.port, tmp_path / "other")
    assert code == exitcodes.UNAVAILABLE and str(broker.port) in text


def test_a_damaged_journal_is_refused_and_left_alone(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    cluster = new_shared_cluster(square, broker)
    all_ended(submit_all(cluster, record, 20, lambda: 0.0))
    broker.stop()
    path = broker.state / "journal.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
    damaged = path.read_bytes()
    code, text = refusal(broker.port, broker.state)
    assert code == exitcodes.CORRUPT and str(broker.state) in text and "dispy journal" in text
    assert path.read_bytes()[4096:] == damaged[4096:]  # its first page counts who opens it
    path.write_bytes(whole)  # from the back-up
    start_broker(instead_of=broker)
    assert finished(cluster.submit(str(record), 3, 0.0)).result == 9


def test_a_journal_of_a_newer_version_is_refused(start_broker: StartBroker) -> None:
    broker = start_broker()
    broker.stop()
    with sqlite3.connect(broker.state / "journal.sqlite") as database:
        database.execute("PRAGMA user_version = 1000")
    database.close()
    code, text = refusal(broker.port, broker.state)
    assert code == exitcodes.CORRUPT and "newer" in text


def test_clean_forgets_what_an_earlier_broker_has_kept(
    start_broker: StartBroker, new_shared_cluster: NewSharedCluster, record: Path
) -> None:
    broker = start_broker()
    cluster = new_shared_cluster(square, broker)
    jobs = submit_all(cluster, record, 5, lambda: 0.0)
    until(lambda: any(each.waiting == 5 for each in broker.status().clusters), "five jobs")
    broker.kill()
    code, text = refusal(broker.port, Path(os.devnull) / "state", "--clean")
    assert code == exitcodes.CANNOT_CREATE and "--state-dir" in text
    again = start_broker("--clean", instead_of=broker)
    all_ended(jobs)
    assert statuses(jobs) == {DispyJob.Abandoned: 5}
    assert "go on" not in again.log()
