"""Files on their way, and all that can happen to them meanwhile.

The sizes are those of a quick run; DISPY_TEST_SCALE=10 makes files ten times as large.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import DispyJob
from dispy.protocol.link import WINDOW_BYTES

from .changes import ready
from .conftest import NewCluster, StartNode
from .fault_proxy import FaultProxy
from .processes import NodeProcess
from .test_faults import repeatedly
from .waiting import all_ended, ended, finished, until

SCALE = float(os.environ.get("DISPY_TEST_SCALE", "1"))
MIB = 1 << 20
LARGE_BYTES = int(20 * MIB * SCALE) + 12_345
PATIENCE_S = 60 * max(1.0, SCALE)
RESET_S = 0.05
SOON_S = 5.0
SLOW_BYTES_PER_S = 12e6  # so that a file takes seconds
LONGEST_S = 0.6 + WINDOW_BYTES / SLOW_BYTES_PER_S  # of a job behind what was sent of the file


def digest_of(path: str) -> tuple[int, str]:
    content = Path(path).read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


def double(number: int) -> int:
    return 2 * number


def make(path: Path, size: int = LARGE_BYTES) -> tuple[int, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return digest_of(str(path))


ThroughProxy = Callable[[NodeProcess], FaultProxy]


@pytest.fixture
def through_proxy() -> Iterator[ThroughProxy]:
    """Make proxies that stand before nodes; at the end they do no harm any more."""
    proxies: list[FaultProxy] = []

    def make_proxy(node: NodeProcess) -> FaultProxy:
        proxies.append(FaultProxy(node.address, node.for_proxy))
        return proxies[-1]

    yield make_proxy
    for proxy in proxies:
        proxy.heal()
        proxy.close()


@pytest.fixture
def proxy(node: NodeProcess) -> Iterator[FaultProxy]:
    proxy = FaultProxy(node.address, node.for_proxy)
    yield proxy
    proxy.close()


@pytest.fixture
def proxied(proxy: FaultProxy) -> Iterator[Callable[..., dispy.JobCluster]]:
    """Make clusters whose node is behind the proxy."""
    clusters: list[dispy.JobCluster] = []

    def make_cluster(computation: Callable[..., Any], **more: Any) -> dispy.JobCluster:
        clusters.append(dispy.JobCluster(computation, nodes=[proxy.address], **more))
        return clusters[-1]

    yield make_cluster
    proxy.heal()
    for cluster in clusters:
        assert cluster.close(timeout=0, terminate=True)


NewProxied = Callable[..., dispy.JobCluster]


# -- to the node -----------------------------------------------------------------------------------


def test_a_file_arrives_whole_over_connections_that_are_reset(
    proxy: FaultProxy, proxied: NewProxied, tmp_path: Path
) -> None:
    expected = make(tmp_path / "large")
    with repeatedly(proxy.reset, RESET_S):
        job = ended(proxied(digest_of, depends=["large"]).submit("large"), PATIENCE_S)
    assert job.result == expected, job.exception
    assert proxy.resets > 3


def test_a_file_arrives_whole_over_connections_that_break_in_the_middle(
    proxy: FaultProxy, proxied: NewProxied, tmp_path: Path
) -> None:
    expected = make(tmp_path / "large")
    proxy.cut_after(3_000_017)
    job = ended(proxied(digest_of, depends=["large"]).submit("large"), PATIENCE_S)
    assert job.result == expected, job.exception
    assert proxy.resets > 3


def test_a_file_arrives_whole_though_the_network_is_silent_for_a_while(
    proxy: FaultProxy, proxied: NewProxied, tmp_path: Path
) -> None:
    expected = make(tmp_path / "large")
    proxy.bytes_per_s = 32e6
    job = proxied(digest_of, depends=["large"], pulse_interval=2).submit("large")
    until(lambda: proxy.carried > LARGE_BYTES / 4, "a part of the file")
    proxy.blackhole()
    assert not job.finish.wait(3.0)
    proxy.heal()
    assert finished(job).result == expected


def test_files_of_jobs_and_of_send_file_arrive_over_connections_that_are_reset(
    proxy: FaultProxy, proxied: NewProxied, tmp_path: Path
) -> None:
    cluster = proxied(digest_of)
    finished(cluster.submit(__file__))
    [used] = cluster.status().nodes
    expected = [make(tmp_path / f"of-job-{n}", 2 * MIB + n) for n in range(10)]
    put = make(tmp_path / "put")
    with repeatedly(proxy.reset, RESET_S):
        jobs = [
            cluster.submit(f"of-job-{n}", dispy_job_depends=[tmp_path / f"of-job-{n}"])
            for n in range(10)
        ]
        assert cluster.send_file("put", used) == 0
        jobs.append(cluster.submit("put"))
        all_ended(jobs, PATIENCE_S)
    assert [job.result for job in jobs] == [*expected, put]
    assert proxy.resets > 3


def test_another_node_takes_over_when_one_is_killed_in_the_middle(
    start_node: StartNode, through_proxy: ThroughProxy, new_cluster: NewCluster, tmp_path: Path
) -> None:
    expected = make(tmp_path / "large")
    dying = start_node("--name", "dying")
    slow = through_proxy(dying)
    slow.bytes_per_s = 6e6
    cluster = new_cluster(digest_of, slow.address, depends=["large"])
    jobs = [cluster.submit("large") for _ in range(4)]
    until(lambda: slow.carried > LARGE_BYTES / 10, "a part of the file")
    dying.kill()
    assert cluster.allocate_node(start_node("--name", "living").address) == 0
    assert [finished(job).result for job in jobs] == [expected] * 4
    assert [used.name for used in cluster.status().nodes] == ["living"]


def test_a_node_that_is_started_again_gets_the_file_from_the_beginning(
    start_node: StartNode, through_proxy: ThroughProxy, new_cluster: NewCluster, tmp_path: Path
) -> None:
    expected = make(tmp_path / "large")
    dying = start_node()
    slow = through_proxy(dying)
    slow.bytes_per_s = 6e6
    job = new_cluster(digest_of, slow.address, depends=["large"]).submit("large")
    until(lambda: slow.carried > LARGE_BYTES / 10, "a part of the file")
    dying.kill()
    slow.bytes_per_s = 0.0
    start_node(port=dying.port)
    assert finished(job).result == expected


def parts_of_files(node: NodeProcess) -> list[Path]:
    """Return what a node keeps of files that aren't whole."""
    blobs = [path for path in node.temporary.glob("dispy-node-*/blobs/*") if path.is_file()]
    return [path for path in blobs if len(path.name) != 64]


def test_a_cluster_can_be_closed_while_its_file_is_on_its_way(
    start_node: StartNode, through_proxy: ThroughProxy, new_cluster: NewCluster, tmp_path: Path
) -> None:
    expected = make(tmp_path / "large")
    node = start_node()
    slow = through_proxy(node)
    slow.bytes_per_s = 6e6
    cluster = new_cluster(digest_of, slow.address, depends=["large"])
    job = cluster.submit("large")
    until(lambda: slow.carried > LARGE_BYTES / 10, "a part of the file")
    until(lambda: parts_of_files(node), "it at the node")
    begin = time.monotonic()
    assert cluster.close(timeout=0, terminate=True)
    assert time.monotonic() - begin < SOON_S
    assert job.status == DispyJob.Cancelled
    until(lambda: not parts_of_files(node), "no parts of files", SOON_S)
    slow.bytes_per_s = 0.0
    again = new_cluster(digest_of, slow.address, depends=["large"])
    assert finished(again.submit("large")).result == expected


def test_a_job_can_be_cancelled_while_its_file_is_on_its_way(
    proxy: FaultProxy, proxied: NewProxied, tmp_path: Path
) -> None:
    make(tmp_path / "large")
    cluster = proxied(digest_of)
    finished(cluster.submit(__file__))
    before = proxy.carried
    proxy.bytes_per_s = 6e6
    job = cluster.submit("large", dispy_job_depends=["large"])
    until(lambda: proxy.carried - before > LARGE_BYTES / 10, "a part of the file")
    begin = time.monotonic()
    assert cluster.cancel(job) == 0
    assert ended(job).status == DispyJob.Cancelled
    assert time.monotonic() - begin < SOON_S
    proxy.bytes_per_s = 0.0
    assert finished(cluster.submit(__file__)).result


def test_jobs_of_another_cluster_go_on_while_a_file_is_on_its_way(
    proxy: FaultProxy, proxied: NewProxied, tmp_path: Path
) -> None:
    make(tmp_path / "large")
    other = proxied(double)
    finished(other.submit(0))
    proxy.bytes_per_s = SLOW_BYTES_PER_S
    job = proxied(digest_of, depends=["large"]).submit("large")
    waits = []
    while not job.finish.is_set():
        begin = time.monotonic()
        assert other.submit(21)() == 42
        waits.append(time.monotonic() - begin)
    finished(job)
    assert len(waits) > 5 * SCALE
    assert max(waits) < LONGEST_S, sorted(waits)[-5:]


def test_jobs_of_the_same_cluster_go_on_while_the_file_of_one_is_on_its_way(
    proxy: FaultProxy, proxied: NewProxied, tmp_path: Path
) -> None:
    expected = make(tmp_path / "large")
    cluster = proxied(digest_of)
    known = finished(cluster.submit(__file__)).result
    proxy.bytes_per_s = SLOW_BYTES_PER_S
    job = cluster.submit("large", dispy_job_depends=["large"])
    while not job.finish.is_set():
        begin = time.monotonic()
        assert cluster.submit(__file__)() == known
        assert time.monotonic() - begin < LONGEST_S
    assert finished(job).result == expected


def test_two_clusters_fetch_the_same_file_once(
    start_node: StartNode, through_proxy: ThroughProxy, new_cluster: NewCluster, tmp_path: Path
) -> None:
    expected = make(tmp_path / "large")
    slow = through_proxy(start_node())
    slow.bytes_per_s = 32e6
    clusters = [new_cluster(digest_of, slow.address, depends=["large"]) for _ in range(2)]
    jobs = [cluster.submit("large") for cluster in clusters]
    assert [finished(job).result for job in jobs] == [expected] * 2
    assert slow.carried < 1.2 * LARGE_BYTES


# -- from the node ---------------------------------------------------------------------------------


def send_files(folder: str, count: int, size: int) -> list[tuple[int, str]]:
    os.makedirs(folder)
    sent = []
    for number in range(count):
        path = f"{folder}/{number}"
        content = os.urandom(size + number)
        with open(path, "wb") as file:
            file.write(content)
        code = dispy_send_file(path, timeout=60)  # type: ignore[name-defined]  # noqa: F821
        sent.append((code, hashlib.sha256(content).hexdigest()))
    return sent


@pytest.mark.parametrize("fault", ["resets", "breaks"])
def test_files_of_jobs_arrive_at_the_client_over_bad_connections(
    proxy: FaultProxy, proxied: NewProxied, tmp_path: Path, fault: str
) -> None:
    cluster = proxied(send_files)
    if fault == "breaks":
        proxy.cut_after(3_000_017)
    with repeatedly(proxy.reset if fault == "resets" else int, RESET_S):
        jobs = [cluster.submit(f"from-{n}", 20, MIB) for n in range(2)]
        all_ended(jobs, PATIENCE_S)
    assert proxy.resets > 3
    for n, job in enumerate(jobs):
        assert job.status == DispyJob.Finished, job.exception
        for number, (code, digest) in enumerate(job.result):
            assert code == 0, job.stderr
            assert digest_of(str(tmp_path / f"from-{n}/{number}")) == (MIB + number, digest)
        assert len(os.listdir(tmp_path / f"from-{n}")) == 20  # and no parts


def send_results(count: int) -> int:
    send = dispy_provisional_result  # type: ignore[name-defined]  # noqa: F821
    return sum(send(number, timeout=60) != 0 for number in range(count))


def test_provisional_results_come_once_and_in_order_over_connections_that_are_reset(
    proxy: FaultProxy, proxied: NewProxied
) -> None:
    seen: list[int] = []

    def on_result(job: DispyJob) -> None:
        if job.status == DispyJob.ProvisionalResult:
            seen.append(job.result)

    cluster = proxied(send_results, job_status=on_result)
    with repeatedly(proxy.reset, RESET_S):
        job = ended(cluster.submit(2000), PATIENCE_S)
    cluster.close()
    assert job.result == 0, job.exception
    assert proxy.resets > 3
    assert seen == list(range(2000))


def chatter(lines: int) -> None:
    for number in range(lines):
        print("line", number)
        if number % 100 == 0:
            time.sleep(0.01)


def test_output_comes_once_and_in_order_over_connections_that_are_reset(
    proxy: FaultProxy, proxied: NewProxied
) -> None:
    cluster = proxied(chatter)
    with repeatedly(proxy.reset, RESET_S):
        job = cluster.submit(5000)
        told = "".join(text for _, text in job.follow())
    assert told.splitlines() == [f"line {number}" for number in range(5000)]
    assert finished(job)
    assert proxy.resets > 3


def test_a_node_killed_while_a_job_sends_a_file_leaves_no_part_of_it(
    start_node: StartNode, through_proxy: ThroughProxy, new_cluster: NewCluster, tmp_path: Path
) -> None:
    node = start_node()
    slow = through_proxy(node)
    cluster = new_cluster(send_files, slow.address, pulse_interval=0.5)
    finished(cluster.submit("none", 0, 0))
    before = slow.carried
    slow.bytes_per_s = 6e6
    job = cluster.submit("some", 1, LARGE_BYTES)
    until(lambda: slow.carried - before > LARGE_BYTES / 10, "a part of the file")
    assert not job.finish.is_set()
    node.kill()
    assert ended(job).status == DispyJob.Abandoned
    until(lambda: not list(Path("some").glob("*")), "the end of the part", SOON_S)


def test_nodes_are_ready_though_the_file_of_another_is_slow(
    start_node: StartNode, through_proxy: ThroughProxy, new_cluster: NewCluster, tmp_path: Path
) -> None:
    expected = make(tmp_path / "large")
    slow, fast = through_proxy(start_node("--name", "slow")), start_node("--name", "fast")
    slow.bytes_per_s = 1.2e6
    cluster = new_cluster(digest_of, slow.address, fast, depends=["large"])
    ready(cluster, "fast")
    jobs = [cluster.submit("large") for _ in range(20)]
    assert [finished(job).result for job in jobs] == [expected] * 20
    assert [used.name for used in cluster.status().nodes] == ["fast"]
    slow.heal()
