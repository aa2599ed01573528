"""A whole cluster: without any node, and with one that is only played."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import blobs, computation, pickling, process
from dispy import job as job_module
from dispy.callbacks import Listener
from dispy.pickling import load
from dispy.protocol.messages import (
    FILE,
    OUTPUT,
    PROVISIONAL,
    BlobRange,
    JobOptions,
    NeedBlobs,
    Pulse,
    PutFile,
    Run,
    Vitals,
)
from dispy.protocol.payload import pack_file_piece, pack_object, pack_output

from .fake_node import FakeNode

PATIENCE_S = 10.0  # nothing takes so long unless it hangs


def compute(*args: object, **kwargs: object) -> None:
    """Never run."""


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens, and nothing else will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def cluster(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dispy.JobCluster]:
    monkeypatch.chdir(tmp_path)
    opened = dispy.JobCluster(compute, nodes=nobody)
    yield opened
    opened.close(timeout=0, terminate=True)
    opened.shutdown()


def test_jobs_wait_and_say_why(cluster: dispy.JobCluster, nobody: str) -> None:
    first, second = cluster.submit(1), cluster.submit_job_id("mine", 2, dispy_job_priority=1)
    assert [first.id, second.id] == [1, "mine"] and first < second
    assert (second.args, second.kwargs) == ((2,), {})
    assert cluster.discover_nodes(nobody) == 0  # by now the broker has joined
    for text in (first.explain(), cluster.explain(second)):
        assert nobody in text
    assert not cluster.wait(timeout=0)
    assert cluster.status() == dispy.ClusterStatus([], 2)
    assert cluster.cancel(first) == 0 and first.finish.wait(PATIENCE_S)
    assert first.explain().startswith("job 1 is Cancelled")
    assert cluster.cancel(first) == -1


def test_nodes_that_are_not_there_are_named(
    cluster: dispy.JobCluster, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for method in (cluster.deallocate_node, cluster.close_node, cluster.resetup_node):
        assert method("127.0.0.9") == -1
    assert cluster.set_node_cpus("127.0.0.9", 1) == -1
    assert cluster.node_jobs("127.0.0.9") == []
    assert cluster.send_file(__file__, "127.0.0.9") == -1
    assert caplog.text.count("'127.0.0.9'") == 6
    with pytest.raises(ValueError, match=r"127\.0\.0\.9"):
        cluster.submit_node("127.0.0.9", 1)
    with pytest.raises(TypeError, match="node"):
        cluster.close_node(3)  # type: ignore[arg-type]
    assert cluster.allocate_node("10.0.0.1") == -1
    assert cluster.status().jobs_pending == 0


def test_more_nodes_may_be_looked_for(cluster: dispy.JobCluster, nobody: str) -> None:
    assert cluster.discover_nodes(nobody) == 0
    assert cluster.discover_nodes([nobody, dispy.NodeAllocate("127.0.0.1", 9)]) == 0
    assert cluster.allocate_node(nobody) == 0
    assert cluster.allocate_node([nobody, (nobody, None, 1)]) == 0


def test_what_is_wrong_with_a_job_raises(cluster: dispy.JobCluster) -> None:
    with pytest.raises(TypeError, match="dispy_job_timeout"):
        cluster.submit(1, dispy_job_timeout="long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dispy_job_retries"):
        cluster.submit(1, dispy_job_retries=-1)
    with pytest.raises(TypeError, match="dispy_job_typo"):
        cluster.submit(1, dispy_job_typo=1)
    with pytest.raises(FileNotFoundError, match="missing"):
        cluster.submit(1, dispy_job_depends=["missing"])
    with pytest.raises(TypeError, match=r"args\[0\]"):
        cluster.submit(threading.Lock())
    with pytest.raises(ValueError, match="no job"):
        cluster.explain(dispy.DispyJob)  # type: ignore[arg-type]
    assert cluster.status().jobs_pending == 0


def test_the_computation_keeps_its_own_names(cluster: dispy.JobCluster) -> None:
    names: Any = {"timeout": 1, "retries": 2, "priority": 3, "node": 4, "job_id": 5}
    assert cluster.submit(**names).kwargs == names


def test_a_closed_cluster_takes_no_jobs(cluster: dispy.JobCluster) -> None:
    job = cluster.submit(1)
    assert not cluster.close(timeout=0)
    assert cluster.close(timeout=0, terminate=True)
    assert job.status == dispy.DispyJob.Cancelled
    with pytest.raises(dispy.ClusterClosedError):
        cluster.submit(1)
    assert cluster.close()
    assert job.explain() == "job 1 is Cancelled: Cancelled"
    assert list(job.follow()) == []


def test_close_in_a_callback_does_not_wait_for_itself(nobody: str) -> None:
    closed = threading.Event()

    def on_cluster(status: int, node: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
        if status == dispy.DispyJob.Cancelled and opened.close():
            closed.set()

    opened = dispy.JobCluster(compute, nodes=nobody, cluster_status=on_cluster)
    for job in [opened.submit(n) for n in range(20)]:
        opened.cancel(job)
    assert closed.wait(PATIENCE_S)
    assert Listener().drain(PATIENCE_S)
    opened.shutdown()


def test_a_forked_child_waits_for_nobody(cluster: dispy.JobCluster) -> None:
    """The locks are held by a thread which the child hasn't got."""
    job = cluster.submit(1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with pickling._registry_lock, job_module._EVENT_LOCK, blobs._digests._lock:
            held.set()
            done.wait(PATIENCE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE_S)
    child = os.fork()
    if child == 0:
        _exit_unless_it_waits(cluster, job)
    done.set()
    holder.join(PATIENCE_S)
    assert os.waitpid(child, 0)[1] == 0


def _exit_unless_it_waits(cluster: dispy.JobCluster, job: dispy.DispyJob) -> None:
    signal.alarm(int(PATIENCE_S))  # ends the process if it waits
    try:
        with pytest.raises(RuntimeError, match="parent"):
            job()
        assert not job.finish.is_set() and cluster.wait()
        assert computation.pack(lambda: compute, depends=[__file__]).spec.files
        os._exit(0)
    finally:
        os._exit(1)


def test_a_program_has_no_keyword_arguments(nobody: str) -> None:
    with dispy.JobCluster("true", nodes=nobody) as cluster:
        with pytest.raises(TypeError, match="name"):
            cluster.submit(name=1)
        job = cluster.submit(1, 2.5)
        assert job.args == (1, 2.5)
        cluster.cancel(job)


# -- with a node that speaks the protocol and runs nothing -------------------------------------


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    monkeypatch.chdir(tmp_path)
    opened = FakeNode()
    yield opened
    opened.stop()
    process.end_unless_used()


@contextmanager
def opened_at(node: FakeNode, **parameters: Any) -> Iterator[dispy.JobCluster]:
    """Open a cluster that doesn't wait for its jobs when the test has failed."""
    with dispy.JobCluster(compute, nodes=node.address, **parameters) as cluster:
        try:
            yield cluster
        except BaseException:
            cluster.close(timeout=0, terminate=True)
            raise


def packed(value: object) -> bytes:
    return pack_object([], pickle.dumps(value))


def test_jobs_come_back_from_the_node_they_were_meant_for(node: FakeNode) -> None:
    with opened_at(node) as cluster:
        assert cluster.submit(1, two=2)() == ((1,), {"two": 2})
        (found,) = cluster.status().nodes
        assert (found.ip_addr, found.name, found.cpus) == ("127.0.0.1", "fake", 2)
        for name in (found, "fake", "127.0.0.1", node.address, "localhost"):
            job = cluster.submit_node(name, 5)
            assert job() == ((5,), {}) and job.host == "127.0.0.1"
        assert cluster.submit_job_id_node("mine", found, 1).id == "mine"
    (prepare,) = node.prepared
    assert prepare.spec.name == "compute"


def test_a_running_job_is_known_and_can_be_cancelled(node: FakeNode) -> None:
    begun = threading.Event()

    def on_cluster(status: int, node: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
        if status == dispy.DispyJob.Running:
            begun.set()

    with opened_at(node, cluster_status=on_cluster) as cluster:
        job = cluster.submit("wait", dispy_job_timeout=5)
        assert begun.wait(PATIENCE_S)
        assert cluster.node_jobs("fake") == [job]
        assert "fake" in job.explain()
        assert cluster.cancel(job) == 0
        assert job() is None and job.status == dispy.DispyJob.Terminated
        assert cluster.node_jobs("fake") == []
    (run,) = [message for message in node.got if isinstance(message, Run)]
    assert run.jobs[0].options == JobOptions(timeout=5.0)


def test_what_a_job_says_arrives_and_is_heard(node: FakeNode, tmp_path: Path) -> None:
    seen: list[tuple[int, object, str | None]] = []

    def on_job(job: dispy.DispyJob) -> None:
        seen.append((job.status, job.result, job.host))

    with opened_at(node, job_status=on_job) as cluster:
        job = cluster.submit("wait")
        assert node.await_that(lambda: node.is_running(1))
        output = job.follow()
        node.say(1, 1, PROVISIONAL, packed("so far"))
        node.say(1, 2, FILE, pack_file_piece("a/b", 0, 2, 0o644, 1.0, True, b"ab"))
        node.say(1, 3, FILE, pack_file_piece("../b", 0, 2, 0o644, 1.0, True, b"ab"))
        node.say(1, 4, OUTPUT, pack_output(1, 0, b"ou"))
        assert next(output) == ("stdout", "ou")
        assert node.await_that(lambda: node.heard and node.heard[-1].number == 4)
        node.finish(1, packed("end"))
        assert job() == "end" and list(output) == [("stdout", "t")]
    assert [each[:2] for each in seen] == [(7, "so far"), (11, "end")]
    assert (tmp_path / "a" / "b").read_bytes() == b"ab"
    assert not (tmp_path.parent / "b").exists()
    assert [heard.number for heard in node.heard if heard.error] == [3]


def test_a_node_can_be_controlled(node: FakeNode, tmp_path: Path) -> None:
    told: list[int] = []
    closed = threading.Event()

    def on_cluster(status: int, about: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
        told.append(status)
        if status == dispy.DispyNode.Closed:
            closed.set()

    with opened_at(node, cluster_status=on_cluster) as cluster:
        cluster.submit(1)()
        assert cluster.set_node_cpus("fake", -1) == 1
        assert cluster.status().nodes[0].avail_cpus == 1
        (tmp_path / "file").write_bytes(b"x")
        assert cluster.send_file("file", "fake") == 0
        (put,) = [message for message in node.got if isinstance(message, PutFile)]
        assert (put.file.path, put.file.size) == ("file", 1)
        with pytest.raises(FileNotFoundError):
            cluster.send_file("missing", "fake")
        assert cluster.deallocate_node("fake") == 0
        job = cluster.submit(2)
        assert not job.finish.wait(0.1) and job.explain()
        assert cluster.allocate_node("fake") == 0
        assert job() == ((2,), {})
        assert cluster.close_node("fake") == 0
        assert closed.wait(PATIENCE_S)
        with pytest.raises(ValueError, match="allocate_node"):
            cluster.submit_node("fake", 1)
        assert cluster.allocate_node("fake") == 0
        assert cluster.submit(3)() == ((3,), {})
        assert cluster.resetup_node("fake") == 0
        assert cluster.submit(4)() == ((4,), {})
    assert len(node.prepared) == 3


def test_an_allocate_of_ones_own_decides(node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x")
    asked: list[tuple[object, ...]] = []

    class Mine(dispy.NodeAllocate):
        def allocate(self, *args: Any, **kwargs: Any) -> int:
            asked.append(args)
            self.depends = ["data"]
            self.setup_args = (len(asked), "x")
            return 1

    with dispy.JobCluster(compute, nodes=[Mine("127.0.0.1", int(node.address[10:]))]) as cluster:
        cluster.submit(1)()
        assert cluster.status().nodes[0].avail_cpus == 1
        assert cluster.resetup_node("fake") == 0
        assert node.await_that(lambda: len(node.prepared) == 2)
    first, second = node.prepared
    assert asked[0][:4] == (cluster, "127.0.0.1", "fake", 2)
    assert asked[0][4] == dispy.DispyNodeAvailInfo(90.0, 1 << 30, 1 << 40, 80.0)
    assert (first.cpus, [file.path for file in first.files]) == (1, ["data"])
    args = [p.setup_args and load(p.setup_args.payload, []) for p in (first, second)]
    assert args == [((1, "x"), {}), ((2, "x"), {})]


def test_a_node_gets_the_files_that_it_asks_for(node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"0123456789")
    with opened_at(node, depends=["data"]) as cluster:
        cluster.submit(1)()
        (prepare,) = node.prepared
        (file,) = prepare.spec.files
        node.ask(NeedBlobs(prepare.computation, 0, [BlobRange(file.digest, 2, 3)]))
        assert node.await_that(lambda: node.pieces)
        assert node.pieces[0].data == b"234"
        assert cluster.status().nodes[0].tx > 3


def test_a_lost_node_is_told_and_its_jobs_are_abandoned(node: FakeNode) -> None:
    told: list[tuple[int, str | None]] = []

    def on_cluster(status: int, about: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
        told.append((status, None if about is None else about.name))

    cluster = dispy.JobCluster(compute, nodes=node.address, cluster_status=on_cluster)
    job = cluster.submit("wait")
    assert node.await_that(lambda: node.is_running(1))
    node.ask(Pulse(Vitals(1.0, 2, 3, 4.0)))
    node.stop()
    assert job.finish.wait(PATIENCE_S) and job.status == dispy.DispyJob.Abandoned
    assert job.exception is not None and "fake" in job.exception
    assert cluster.close()
    assert (dispy.DispyNode.AvailInfo, "fake") in told
    assert (dispy.DispyNode.Closed, "fake") in told
    assert (dispy.DispyJob.Abandoned, "fake") in told or (dispy.DispyJob.Abandoned, None) in told
    assert cluster.status().nodes[0].avail_info is not None


def test_there_is_a_recover_file_while_jobs_run(node: FakeNode, tmp_path: Path) -> None:
    begun = threading.Event()

    def on_cluster(status: int, about: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
        if status == dispy.DispyJob.Running:
            begun.set()

    with opened_at(node, cluster_status=on_cluster) as cluster:
        cluster.submit("wait")
        came = begun.wait(PATIENCE_S)
        found = list(tmp_path.glob("_dispy_*"))
        node.finish(1, packed(None))
    assert came
    assert len(found) == 1
    assert not list(tmp_path.glob("_dispy_*"))


def test_output_goes_to_the_callback(node: FakeNode) -> None:
    seen: list[tuple[object, str, str]] = []

    def on_output(job: dispy.DispyJob, stream: str, text: str) -> None:
        seen.append((job.id, stream, text))

    with opened_at(node, job_output=on_output) as cluster:
        cluster.submit("wait")
        assert node.await_that(lambda: node.is_running(1))
        node.say(1, 1, OUTPUT, pack_output(1, 0, b"o"))
        assert node.await_that(lambda: node.heard)
        node.finish(1, packed(None))
    assert seen == [(1, "stdout", "o"), (1, "stdout", "ut")]
