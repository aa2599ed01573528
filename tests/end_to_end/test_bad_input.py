"""Mistakes and misfortunes: each is named, to whoever can do something about it, and hurts no more.

A test with a result of a gibibyte runs with DISPY_TEST_SCALE=10; the quick run takes a tenth.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import DispyJob, PicklingError

from .at_broker import embedded_only
from .conftest import NewCluster, StartNode
from .processes import NodeProcess
from .waiting import PATIENCE_S, all_ended, ended, finished, until

SCALE = float(os.environ.get("DISPY_TEST_SCALE", "1"))
MEBIBYTE = 1 << 20
RESULT_BYTES = min(1 << 30, int(104 * MEBIBYTE * SCALE))
DISK_MIB = 24  # of the node whose disk is full


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Be the computation of most clusters here."""
    return function(*arguments)


@pytest.fixture(autouse=True)
def the_node_goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the node that all share works as before."""
    yield
    if "node" in request.fixturenames:
        node = request.getfixturevalue("node")
        with dispy.JobCluster(call, nodes=[node.address]) as cluster:
            assert finished(cluster.submit(len, "abc")).result == 3


# -- parameters ----------------------------------------------------------------------------------

LOCK = threading.Lock()


def use_lock() -> bool:
    return LOCK.locked()


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": ({"depend": []}, TypeError, "depend"),
    "computation": ({"computation": 5}, TypeError, "computation"),
    "unpicklable": ({"computation": use_lock}, PicklingError, "LOCK"),
    "nodes": ({"nodes": 5}, TypeError, "nodes"),
    "no nodes": ({"nodes": []}, ValueError, "nodes"),
    "node": ({"nodes": [("127.0.0.1", "port")]}, TypeError, "port"),
    "host name": ({"nodes": ["no-such-host.invalid"]}, OSError, "no-such-host.invalid"),
    "depends": ({"depends": [5]}, TypeError, r"depends\[0\]"),
    "text": ({"depends": "a.txt"}, TypeError, "depends"),
    "file": ({"depends": [len, "missing.txt"]}, Exception, "missing.txt|builtin|len"),
    "missing": ({"depends": ["missing.txt"]}, FileNotFoundError, r"missing\.txt"),
    "device": ({"depends": ["/dev/null"]}, ValueError, "/dev/null"),
    "setup": ({"setup": "prepare"}, TypeError, "setup"),
    "cleanup": ({"cleanup": "yes"}, TypeError, "cleanup"),
    "job_status": ({"job_status": 5}, TypeError, "job_status"),
    "cluster_status": ({"cluster_status": len}, TypeError, "cluster_status"),
    "job_output": ({"job_output": 5}, TypeError, "job_output"),
    "pulse": ({"pulse_interval": "often"}, TypeError, "pulse_interval"),
    "reentrant": ({"reentrant": 1}, TypeError, "reentrant"),
    "grace": ({"cancel_grace": -1}, ValueError, "cancel_grace"),
    "tasks": ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child"),
    "timeout": ({"timeout": "5"}, TypeError, "timeout"),
    "retries": ({"retries": -1}, ValueError, "retries"),
    "priority": ({"priority": 1.5}, TypeError, "priority"),
    "setup_timeout": ({"setup_timeout": -2}, ValueError, "setup_timeout"),
    "dest_path": ({"dest_path": 7}, TypeError, "dest_path"),
    "recover_file": ({"recover_file": 7}, TypeError, "recover_file"),
    "port": ({"dispy_port": "9700"}, TypeError, "dispy_port"),
    "secret": ({"secret": "dispy1_damaged"}, ValueError, "secret"),
}


# A broker's nodes have names that needn't be hosts; and its pulse is its own.
OF_THE_BROKER = {"host name", "pulse"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=embedded_only("the broker decides"))
        if name in OF_THE_BROKER
        else name
        for name in WRONG
    ],
)
def test_a_wrong_parameter_raises_and_is_named(node: NodeProcess, name: str) -> None:
    given, error, named = WRONG[name]
    before = threading.active_count()
    with pytest.raises(error, match=named):
        dispy.JobCluster(**{"computation": call, "nodes": [node.address], **given})
    assert threading.active_count() <= before


WRONG_JOBS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": ({"dispy_job_dependencies": []}, TypeError, "dispy_job_dependencies"),
    "timeout": ({"dispy_job_timeout": "1"}, TypeError, "dispy_job_timeout"),
    "negative": ({"dispy_job_timeout": -1}, ValueError, "dispy_job_timeout"),
    "retries": ({"dispy_job_retries": 1.5}, TypeError, "dispy_job_retries"),
    "priority": ({"dispy_job_priority": "high"}, TypeError, "dispy_job_priority"),
    "depends": ({"dispy_job_depends": "a.txt"}, TypeError, "dispy_job_depends"),
    "none": ({"dispy_job_depends": [None]}, TypeError, r"dispy_job_depends\[0\]"),
    "file": ({"dispy_job_depends": ["missing.txt"]}, FileNotFoundError, r"missing\.txt"),
}


@pytest.mark.parametrize("name", WRONG_JOBS)
def test_a_wrong_parameter_of_a_job_raises_and_is_named(
    node: NodeProcess, new_cluster: NewCluster, name: str
) -> None:
    given, error, named = WRONG_JOBS[name]
    cluster = new_cluster(call, node)
    with pytest.raises(error, match=named):
        cluster.submit(len, "abc", **given)
    job = finished(cluster.submit(len, "abc"))
    assert (job.result, job.id) == (3, 1)


def test_wrong_nodes_raise_or_are_logged(
    node: NodeProcess, new_cluster: NewCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = new_cluster(call, node)
    finished(cluster.submit(len, "abc"))
    with pytest.raises(ValueError, match=r"127\.0\.0\.9"):
        cluster.submit_node("127.0.0.9", len, "abc")
    with pytest.raises(TypeError, match="node"):
        cluster.submit_node(5, len, "abc")  # type: ignore[arg-type]
    assert cluster.close_node("no-such-host.invalid") == -1
    assert "no-such-host.invalid" in caplog.text
    assert cluster.set_node_cpus("127.0.0.9", 1) == -1
    with pytest.raises(TypeError, match="cpus"):
        cluster.set_node_cpus(node.address, "1")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="missing"):
        cluster.send_file("missing.txt", node.address)
    assert cluster.send_file(__file__, "127.0.0.9") == -1


# -- a result that is large ----------------------------------------------------------------------


def large(size: int) -> bytes:
    return bytes(size)


def test_a_huge_result_arrives_or_is_refused_and_others_go_on(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(call, node)
    huge = cluster.submit(large, RESULT_BYTES)
    others = [cluster.submit(len, "abc") for _ in range(20)]
    for job in all_ended(others):
        assert job.result == 3
    ended(huge, 4 * PATIENCE_S)
    if huge.status == DispyJob.Finished:
        assert len(huge.result) == RESULT_BYTES
    else:
        assert huge.status == DispyJob.Terminated
        assert "result" in str(huge.exception) and "bytes" in str(huge.exception)


# -- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk_node(start_node: StartNode, tmp_path: Path) -> NodeProcess:
    """A node whose folder for everything is a small disk of its own, that nobody else sees."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can give a node a disk of its own")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = (
        f'mount -t tmpfs -o size={DISK_MIB}m dispy "$0" || exit 77; export TMPDIR="$0"; exec "$@"'
    )
    through = ["unshare", "-m", "--propagation", "private", "sh", "-c", mount, str(disk)]
    try:
        return start_node(through=through)
    except AssertionError as error:
        if "mount" not in str(error) and "unshare" not in str(error):
            raise
        pytest.skip(f"no disk of its own for the node here: {error}")


def fill_disk() -> str:
    """Write until there is no room; say how that ended."""
    try:
        with open("fill", "wb") as file:
            while True:
                file.write(bytes(MEBIBYTE))
                file.flush()
    except OSError as error:
        return str(error.strerror)


def write_much() -> int:
    total = 0
    for _ in range(4 * DISK_MIB):
        total += os.write(1, b"x" * MEBIBYTE)
    return total


def test_a_full_disk_at_the_node_fails_what_needs_it_and_nothing_else(
    small_disk_node: NodeProcess,
    new_cluster: NewCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    node = small_disk_node
    Path("huge.bin").write_bytes(os.urandom((DISK_MIB + 8) * MEBIBYTE))
    refused = new_cluster(call, node, depends=["huge.bin"])
    job = ended(refused.submit(len, "abc"))
    assert job.status == DispyJob.Terminated
    assert "huge.bin" in str(job.exception) and "space" in str(job.exception)
    refused.close()

    cluster = new_cluster(call, node)
    mine = ended(cluster.submit(len, "abc", dispy_job_depends=["huge.bin"]))
    assert mine.status == DispyJob.Terminated
    assert "huge.bin" in str(mine.exception) and "space" in str(mine.exception)
    until(lambda: cluster.status().nodes, "the node")
    assert cluster.send_file("huge.bin", node.address) == -1

    assert finished(cluster.submit(fill_disk)).result == "No space left on device"
    printed = cluster.submit(write_much)  # output doesn't need the disk
    assert finished(cluster.submit(len, "abc")).result == 3
    ended(printed)
    assert printed.status == DispyJob.Finished or "space" in str(printed.exception)
    Path("small.bin").write_bytes(os.urandom(1000))
    job = ended(cluster.submit(len, "abc", dispy_job_depends=["small.bin"]))
    assert job.status == DispyJob.Finished or "space" in str(job.exception)
    cluster.close()
    again = new_cluster(call, node, depends=["small.bin"])
    assert finished(again.submit(len, "abc")).result == 3


# -- what never ends -----------------------------------------------------------------------------


def load_forever() -> None:
    time.sleep(600)


class SlowToLoad:
    """Holds up the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return load_forever, ()


def test_arguments_that_never_load_can_be_cancelled(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(call, node, cancel_grace=0.2)
    job = cluster.submit(len, SlowToLoad())
    assert finished(cluster.submit(len, "abc")).result == 3
    until(lambda: job.status == DispyJob.Running, "the job")
    cluster.cancel(job)
    assert ended(job).status == DispyJob.Terminated
