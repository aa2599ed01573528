"""Connections between client, shared broker and node that are silent, break, or are slow.

The sizes are those of a quick run; DISPY_TEST_SCALE=10 makes them ten times as large.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from dispy import DispyJob

from .apart import OWN
from .conftest import NewProxy, NewSharedCluster, StartBroker, StartNode
from .records import noted
from .test_broker_restart import end_more, wait_for
from .test_faults import SCALE, assert_all_ran_once, repeatedly, square, submit_all
from .waiting import all_ended, finished, until

SILENCE_S = 4.5  # longer than either side takes the other for alive
NOTICED_S = 6.0  # until the other side has noticed: 3.5 and a round, on a busy machine
BACK_S = 5.0  # from the end of a silence until jobs end again, likewise
WAYS = {"both": (True, True), "there": (True, False), "back": (False, True)}


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
        until(lambda: broker.node_state("alpha") == "away", "that it is away", NOTICED_S)
        print(f"noticed after {time.monotonic() - begin:.2f} s")
    time.sleep(max(0.0, begin + SILENCE_S - time.monotonic()))
    proxies[where].heal()
    begin = time.monotonic()
    end_more(jobs, 1)
    back_s = time.monotonic() - begin
    print(f"back after {back_s:.2f} s")
    assert back_s < BACK_S
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
    assert {finished(each).host for each in again} == {OWN}
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
