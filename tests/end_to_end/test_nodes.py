"""Which nodes a cluster finds, and what it says of those that it doesn't."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import psutil
import pytest

import dispy
from dispy import DispyJob, DispyNode, LocalNode

from .apart import IS_WANTED, NODES
from .at_broker import embedded_only
from .behind_relays import OWN_PORT, direct_only
from .conftest import NewCluster, RunProgram, StartNode
from .processes import NodeProcess, free_port, marked
from .waiting import all_ended, ended, finished, is_there, until

COMPLAINT_S = 3.0  # after so long a user must know why nothing happens
RETRY_S = 4.0  # and after so long a node that has come must be found
# That a connection is refused proves on this machine only that a process has ended.
NOTICED_S = 35.0 if IS_WANTED else 10.0


def double(number: int) -> int:
    return number * 2


def where(path: Path, number: int) -> str:
    """Say that it runs, wait for the others, return the node's name."""
    (path / f"job-{number}").touch()
    deadline = time.monotonic() + 20
    while len(list(path.glob("job-*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    name: str = dispy_node_name  # type: ignore[name-defined]  # noqa: F821
    return name


def hold(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.005)


def port_is_free(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


# -- named nodes ---------------------------------------------------------------------------------


def test_two_nodes_share_the_work(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    nodes = start_node("--name", "one"), start_node("--name", "two")
    cluster = new_cluster(where, *nodes)
    jobs = all_ended([cluster.submit(tmp_path, number) for number in range(4)])
    assert sorted(job.result for job in jobs) == ["one", "one", "two", "two"]
    assert sorted(used.name for used in cluster.status().nodes) == ["one", "two"]


def test_cpus_of_an_entry_limit_what_is_used(start_node: StartNode) -> None:
    node = start_node()
    entry = dispy.NodeAllocate(node.host, node.port, cpus=1)
    with dispy.JobCluster(time.sleep, nodes=[entry]) as cluster:
        jobs = all_ended([cluster.submit(0.05) for _ in range(4)])
        [used] = cluster.status().nodes
        assert (used.cpus, used.avail_cpus) == (2, 1)
    spans = sorted((job.start_time or 0.0, job.end_time or 0.0) for job in jobs)
    assert all(spans[i][1] <= spans[i + 1][0] + 0.001 for i in range(3))


@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_a_node_whose_streams_are_closed_works(
    start_node: StartNode, new_cluster: NewCluster, closed: str
) -> None:
    node = start_node(through=("sh", "-c", f'exec "$@" {closed}', "sh"))
    cluster = new_cluster(double, node)
    assert [job() for job in [cluster.submit(number) for number in range(8)]] == [*range(0, 16, 2)]


def test_a_node_that_does_not_answer_is_named_with_the_reason_and_used_once_it_does(
    start_node: StartNode, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    address = f"{NODES}:{port}"
    with caplog.at_level(logging.WARNING):
        begin = time.monotonic()
        cluster = dispy.JobCluster(double, nodes=[address])
        try:
            job = cluster.submit(4)
            until(lambda: address in caplog.text, "a warning", COMPLAINT_S)
            assert time.monotonic() - begin < COMPLAINT_S
            assert "refused" in caplog.text
            assert job.status == DispyJob.Created
            start_node(port=port)
            until(job.finish.is_set, "the job's end", RETRY_S)
            assert job.result == 8
        finally:
            cluster.close(timeout=0, terminate=True)


def test_a_silent_listener_is_named_within_seconds(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as listener, caplog.at_level(logging.WARNING):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        cluster = dispy.JobCluster(double, nodes=[address])
        try:
            cluster.submit(1)
            until(lambda: address in caplog.text, "a warning", COMPLAINT_S)
        finally:
            assert cluster.close(timeout=0, terminate=True)


def test_a_silent_one_is_named_beside_one_that_is_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, caplog.at_level(logging.WARNING):
        silent, absent = (f"127.0.0.1:{port}" for port in (listener.getsockname()[1], free_port()))
        cluster = dispy.JobCluster(double, nodes=[silent, absent])
        try:
            until(lambda: silent in caplog.text, "a warning", COMPLAINT_S)
            assert f"{absent}: connection refused" in caplog.text
        finally:
            assert cluster.close(timeout=0, terminate=True)


def test_a_listener_that_speaks_something_else_is_named_within_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, caplog.at_level(logging.WARNING):
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        cluster = dispy.JobCluster(double, nodes=[address])
        try:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
                until(lambda: address in caplog.text, "a warning", COMPLAINT_S)
        finally:
            assert cluster.close(timeout=0, terminate=True)


PROGRAM = """
import sys, time, dispy

def hold(gate):
    import os
    while not os.path.exists(gate):
        time.sleep(0.005)
    return "done"

if __name__ == "__main__":
    with dispy.JobCluster(hold, nodes=[sys.argv[1]]) as cluster:
        job = cluster.submit(sys.argv[2])
        while job.status == dispy.DispyJob.Created:
            time.sleep(0.01)
        print("running", flush=True)
        print(job(), flush=True)
"""


@embedded_only("programs at one broker share its nodes")
def test_a_busy_node_says_so_and_is_taken_when_it_is_free(
    start_node: StartNode,
    start_program: RunProgram,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = start_node()
    other = start_program(PROGRAM, node.address, str(tmp_path / "gate"))
    is_there(other.out)
    with caplog.at_level(logging.WARNING):
        cluster = dispy.JobCluster(double, nodes=[node.address])
        try:
            job = cluster.submit(4)
            until(lambda: node.address in caplog.text, "a warning", COMPLAINT_S)
            assert "works for" in caplog.text or "busy" in caplog.text
            (tmp_path / "gate").touch()
            assert other.wait(10) == 0
            until(job.finish.is_set, "the job's end", 8.0)
            assert job.result == 8
        finally:
            cluster.close(timeout=0, terminate=True)


def test_a_lost_node_is_told_and_its_jobs_are_abandoned(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    changes: list[tuple[int, object]] = []
    node = start_node()
    cluster = new_cluster(hold, node, cluster_status=lambda *change: changes.append(change[:2]))
    job = cluster.submit(tmp_path / "gate")
    until(lambda: job.status == DispyJob.Running, "Running")
    begin = time.monotonic()
    node.kill()
    assert ended(job).status == DispyJob.Abandoned
    assert time.monotonic() - begin < NOTICED_S
    until(lambda: any(status == DispyNode.Closed for status, _ in changes), "Closed is told")


# -- private nodes -------------------------------------------------------------------------------


@embedded_only("a private node belongs to one program, and a broker has none")
def test_a_local_node_is_there_for_this_program_only(start_program: RunProgram) -> None:
    program = start_program(
        """
import os, dispy

def parent():
    return os.getpid()

if __name__ == "__main__":
    with dispy.JobCluster(parent, nodes=[dispy.LocalNode(cpus=1)]) as cluster:
        pids = {cluster.submit()() for _ in range(3)}
        print(len(pids), cluster.status().nodes[0].avail_cpus)
"""
    )
    assert program.wait(30) == 0, program.log()
    assert program.output() == "3 1\n"


def test_local_node_takes_no_more_cpus_than_there_are() -> None:
    with pytest.raises(ValueError, match="cpus"):
        LocalNode(cpus=10_000)


ANYWHERE = """
import sys, time, dispy

def square(number):
    return number * number, dispy_node_name

if __name__ == "__main__":
    with dispy.JobCluster(square, dispy_port=int(sys.argv[1])) as cluster:
        print(*cluster.submit(7)(), flush=True)
        if len(sys.argv) > 2:
            time.sleep(600)
"""


@embedded_only("a private node belongs to one program, and a broker has none")
def test_without_nodes_and_none_listening_a_private_one_is_started(
    start_program: RunProgram,
) -> None:
    program = start_program(ANYWHERE, str(free_port()))
    assert program.wait(30) == 0, program.log()
    assert program.output().startswith("49 ") and "private" in program.output()
    program.assert_nothing_left(1.0)


@embedded_only("a private node belongs to one program, and a broker has none")
def test_a_private_node_ends_when_its_program_is_killed(start_program: RunProgram) -> None:
    program = start_program(ANYWHERE, str(free_port()), "stay")
    is_there(program.out)
    assert len(marked(program.mark)) > 2
    program.kill()
    program.assert_nothing_left()


@embedded_only("a broker dials what it is told to, and no default")
@direct_only(OWN_PORT)
def test_without_nodes_the_one_at_the_default_port_is_used(
    start_node: StartNode, start_program: RunProgram
) -> None:
    port = dispy.config.NodePort
    if not port_is_free(port):
        pytest.skip(f"something else listens at port {port} of this machine")
    start_node("--name", "default", port=port)
    program = start_program(ANYWHERE, str(port - 1))
    assert program.wait(30) == 0, program.log()
    assert program.output() == "49 default\n"


@embedded_only("a broker dials addresses, not patterns")
@pytest.mark.parametrize("before", [0, -1], ids=["*", "127.0.0.*"])
def test_a_pattern_takes_the_node_of_this_machine(start_node: StartNode, before: int) -> None:
    node = start_node("--name", "pattern")
    entry = dispy.NodeAllocate(f"{node.host[:before]}*", node.port)
    with dispy.JobCluster(double, nodes=[entry]) as cluster:
        assert finished(cluster.submit(2)).result == 4
        assert cluster.status().nodes[0].name == "pattern"


@embedded_only("only entries with a port are dialled by a broker")
def test_nodes_of_other_machines_need_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPY_SECRET", raising=False)
    monkeypatch.delenv("DISPY_HOST", raising=False)
    for entry in ("192.0.2.1", "192.0.2.*"):
        with pytest.raises(dispy.SecretNeededError, match=r"192\.0\.2"):
            dispy.JobCluster(double, nodes=[entry])
    with pytest.raises(OSError, match=r"no\.such\.host\.invalid"):
        dispy.JobCluster(double, nodes=["no.such.host.invalid"])


def test_an_idle_node_costs_nothing(node: NodeProcess) -> None:
    process = psutil.Process(node.pid)
    spent = process.cpu_times()
    time.sleep(1.0)  # what is measured
    now = process.cpu_times()
    assert (now.user + now.system) - (spent.user + spent.system) < 0.05
