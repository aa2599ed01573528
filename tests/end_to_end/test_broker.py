"""A shared broker under many jobs, many nodes and several programs, and as operators see it.

The sizes are those of a quick run; DISPY_TEST_SCALE=10 makes them ten times as large.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest

import dispy
from dispy import DispyJob
from dispy.operator import Operator
from dispy.protocol.messages import CANCEL, DRAIN, RESUME

from . import fake_nodes
from .behind_relays import BOTH_WAYS, direct_only
from .conftest import NewProxy, NewSharedCluster, RunProgram, StartBroker, StartNode
from .processes import BrokerProcess, Marked
from .records import noted
from .secured import KEYS
from .test_broker_restart import wait_for
from .test_faults import SCALE, square, submit_all
from .waiting import all_ended, finished, is_there, until

MB = 1 << 20
BROKER_MB = 150.0  # and what jobs it has in memory
LOADED_MB = 64.0  # of one cluster
CANCEL_S = 2.0
FIRST_S = 5.0  # on a busy machine


def wait_with(record: str, gate: str, number: int, data: bytes) -> int:
    return wait_for(record, gate, number)


def rss_mb(broker: BrokerProcess) -> float:
    return float(psutil.Process(broker.pid).memory_info().rss) / MB


def waiting(broker: BrokerProcess) -> int:
    return sum(cluster.waiting for cluster in broker.status().clusters)


# -- very many -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count"), [(300, min(20_000 * SCALE, 100_000)), (MB, min(100 * SCALE, 1000))]
)
def test_queued_jobs_need_little_memory_and_end_at_once_when_cancelled(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
    size: int,
    count: float,
) -> None:
    count = int(count)
    broker = start_broker()
    start_node("--broker", broker.for_nodes, cpus=1)
    begin_mb = rss_mb(broker)
    cluster = new_shared_cluster(wait_with, broker, name="many")
    begin, begin_at = time.monotonic(), time.time()
    jobs = [
        cluster.submit(str(record), str(gate), number, number.to_bytes(4, "big") * (size // 4))
        for number in range(count)
    ]
    until(lambda: waiting(broker) >= count - 1, "all jobs at the broker", 60 * SCALE)
    seconds = time.monotonic() - begin
    used_mb = rss_mb(broker)
    until(lambda: noted(record) == {0: 1}, "the first job")
    first_s = record.stat().st_mtime - begin_at  # though others are still being submitted
    with Operator(broker.address, keys=KEYS) as operator:
        begin = time.monotonic()
        operator.ask(CANCEL, "many")
        asked_s = time.monotonic() - begin
    until(lambda: all(job.finish.is_set() for job in jobs[1:]), "all ends", 60 * SCALE)
    ended_s = time.monotonic() - begin
    print(f"{count} of {size} B, {count / seconds:.0f}/s; the first began after {first_s:.2f} s;")
    print(f"RSS {begin_mb:.0f}, then {used_mb:.0f} MB; cancelled in {asked_s:.2f} s,")
    print(f"which the program knows of all after {ended_s:.2f} s")
    assert used_mb < BROKER_MB + LOADED_MB
    assert first_s < FIRST_S
    assert asked_s < CANCEL_S
    assert Counter(job.status for job in jobs[1:]) == {DispyJob.Cancelled: count - 1}


def test_very_many_nodes_cost_little(start_broker: StartBroker, tmp_path: Path) -> None:
    count = min(int(200 * SCALE), 1000)
    broker = start_broker()
    begin_mb = rss_mb(broker)
    command = [sys.executable, fake_nodes.__file__, broker.for_nodes, str(count)]
    fakes = Marked(command, tmp_path)
    try:
        registered_s = float(is_there(fakes.out).split()[1])
        until(lambda: len(broker.status().nodes) == count, "all nodes")
        each_kb = (rss_mb(broker) - begin_mb) * 1024 / count
        process = psutil.Process(broker.pid)
        begin, before = time.monotonic(), process.cpu_times()
        until(lambda: time.monotonic() > begin + 2.0, "two seconds")
        after, seconds = process.cpu_times(), time.monotonic() - begin
        used = (after.user + after.system - before.user - before.system) / seconds
        states = Counter(node.state for node in broker.status().nodes)
    finally:
        fakes.clear_away()
    print(f"{count} in {registered_s} s, {each_kb:.0f} kB each, idle {used:.1%} of a CPU")
    assert states == {"up": count}
    assert registered_s < 10
    assert each_kb < 100
    assert used < 0.2 + 0.3 * count / 1000


# -- several brokers -------------------------------------------------------------------------------


def test_brokers_side_by_side_know_nothing_of_each_other(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    brokers = [start_broker(), start_broker("--no-journal")]
    for number, broker in enumerate(brokers):
        start_node("--name", f"node-{number}", "--broker", broker.for_nodes)
    clusters = [new_shared_cluster(square, broker) for broker in brokers]
    jobs = [
        submit_all(cluster, record.with_name(f"record-{number}"), 50, lambda: 0.001)
        for number, cluster in enumerate(clusters)
    ]
    for number, (broker, some) in enumerate(zip(brokers, jobs, strict=True)):
        all_ended(some)
        assert [node.name for node in broker.status().nodes] == [f"node-{number}"]
        assert noted(record.with_name(f"record-{number}")) == Counter(range(50))
    brokers[0].kill()
    assert finished(clusters[1].submit(str(record), 3, 0.0)).result == 9
    start_broker(instead_of=brokers[0])
    assert finished(clusters[0].submit(str(record), 4, 0.0)).result == 16


@direct_only(BOTH_WAYS)
def test_a_node_works_for_one_broker_at_a_time(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    has_it = start_broker("--no-journal", "--name", "the first")
    node = start_node("--broker", has_it.for_nodes)
    until(lambda: has_it.status().nodes, "its node")
    wants_it = start_broker("--node", node.address)
    job = new_shared_cluster(square, wants_it).submit(str(record), 3, 0.0)
    until(lambda: "works for the first" in job.explain(), "the reason", 15)
    assert not wants_it.status().nodes
    has_it.stop()
    assert finished(job).result == 9


# -- who gets what ---------------------------------------------------------------------------------


def test_clusters_get_their_shares_of_the_time(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    tmp_path: Path,
) -> None:
    """By weight, whatever the length of their jobs."""
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    for name, weight, seconds in (("short", 3.0, 0.004), ("long", 1.0, 0.06)):
        cluster = new_shared_cluster(
            square, broker, name=name, weight=weight, max_tasks_per_child=None
        )
        submit_all(cluster, tmp_path / name, 4000, partial(float, seconds))
    used: dict[str, float] = {}

    def is_enough() -> bool:
        used.update({cluster.label: cluster.used_s for cluster in broker.status().clusters})
        return sum(used.values()) > 6

    until(is_enough, "six seconds of CPU time")
    print(used)
    assert 2 < used["short"] / used["long"] < 4.5


def test_an_exclusive_cluster_waits_and_then_has_all(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    first = new_shared_cluster(wait_for, broker)
    running = first.submit(str(record), str(gate), 0)
    until(lambda: noted(record)[0], "the job that runs")
    alone = new_shared_cluster(wait_for, broker, name="alone", exclusive=True)
    next_job = alone.submit(str(record), str(gate), 1)
    until(lambda: "the cluster is exclusive" in next_job.explain(), "the reason")
    later = new_shared_cluster(wait_for, broker)
    last_job = later.submit(str(record), str(gate), 2)
    until(lambda: "exclusive cluster 'alone'" in last_job.explain(), "the reason")
    gate.touch()
    assert finished(running).result == 0
    assert not noted(record)[1]
    assert first.close(timeout=10)
    assert finished(next_job).result == 1
    assert not noted(record)[2]
    assert alone.close(timeout=10)
    assert finished(last_job).result == 4


def test_a_drained_node_gets_no_jobs_also_after_a_restart(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
) -> None:
    broker = start_broker()
    start_node("--name", "alpha", "--broker", broker.for_nodes, cpus=1)
    cluster = new_shared_cluster(wait_for, broker)
    jobs = [cluster.submit(str(record), str(gate), number) for number in range(2)]
    until(lambda: noted(record)[0], "the job that runs")
    with Operator(broker.address, keys=KEYS) as operator:
        operator.ask(DRAIN, "alpha", reason="a new disk")
    gate.touch()
    assert finished(jobs[0]).result == 0  # it wasn't interrupted
    until(lambda: "a new disk" in jobs[1].explain(), "the reason")
    broker.kill()
    broker = start_broker(instead_of=broker)
    until(lambda: broker.node_state("alpha") == "drained", "the node")
    assert not noted(record)[1]
    with Operator(broker.address, keys=KEYS) as operator:
        operator.ask(RESUME, "alpha")
    assert finished(jobs[1]).result == 1


# -- programs that never come back -----------------------------------------------------------------

SOURCE = """
import sys
import dispy


def wait_for(begun, gate):
    import os, time
    open(begun, "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)


broker, begun, gate, needs = sys.argv[1:5]
cluster = dispy.SharedJobCluster(wait_for, scheduler_node=broker, name="dead", depends=[needs])
for _ in range(4):
    cluster.submit(begun, gate)
cluster.close()
"""
ZOMBIE_MIN = 0.02


def test_a_killed_program_that_nobody_recovers_frees_its_nodes(
    start_broker: StartBroker,
    start_node: StartNode,
    start_program: RunProgram,
    gate: Path,
    tmp_path: Path,
) -> None:
    """What had ended is kept; also over a restart."""
    (tmp_path / "needed.txt").write_text("a file\n")
    broker = start_broker("--zombie-interval", str(ZOMBIE_MIN))
    node = start_node("--broker", broker.for_nodes, cpus=1)
    needs = str(tmp_path / "needed.txt")
    begun = tmp_path / "begun"
    program = start_program(SOURCE, broker.address, str(begun), str(gate), needs)
    until(begun.exists, "the job that runs")
    assert list(node.temporary.rglob("needed.txt"))
    program.kill()
    until(lambda: not any(each.held for each in broker.status().nodes), "free CPUs")
    until(lambda: not list(node.temporary.rglob("needed.txt")), "the end of its files")
    until(lambda: not node.job_processes(), "the end of its processes")
    broker.kill()
    broker = start_broker(instead_of=broker)
    jobs = dispy.recover_jobs(cluster="dead", scheduler_node=broker.address)
    assert Counter(job.status for job in jobs) == {DispyJob.Cancelled: 4}
    assert all("could not be reached for 1.2 s" in str(job.exception) for job in jobs)
    until(lambda: not broker.status().clusters, "the end of the cluster")


def test_a_program_that_comes_back_too_late_is_told_so(
    start_broker: StartBroker,
    new_proxy: NewProxy,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    gate: Path,
) -> None:
    broker = start_broker("--zombie-interval", str(ZOMBIE_MIN))
    start_node("--broker", broker.for_nodes, cpus=1)
    proxy = new_proxy(broker.address)
    cluster = new_shared_cluster(wait_for, proxy)
    jobs = [cluster.submit(str(record), str(gate), number) for number in range(3)]
    until(lambda: noted(record)[0], "the job that runs")
    proxy.blackhole()
    until(lambda: not any(each.held for each in broker.status().nodes), "free CPUs", 15)
    proxy.heal()
    all_ended(jobs)
    assert {job.status for job in jobs} == {DispyJob.Cancelled}
    assert all("could not be reached for 1.2 s" in str(job.exception) for job in jobs)
    gate.touch()
    assert finished(cluster.submit(str(record), str(gate), 5)).result == 25
