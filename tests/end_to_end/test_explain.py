"""Why isn't my job running? What job.explain() and the log say to that."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import DispyJob, DispyNode

from .at_broker import embedded_only
from .changes import entry, ready
from .conftest import NewCluster, RunProgram, StartNode
from .processes import NodeProcess
from .waiting import all_ended, ended, finished, is_there, until

SAID_S = 8.0  # after so long it must be known


def wait_for(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.005)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that jobs wait for; it's there at the latest when the test ends."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def says(job: DispyJob, *words: str) -> str:
    """Wait until a job's explanation has all these words; return it."""
    text = ""

    def has_all() -> bool:
        nonlocal text
        text = job.explain()
        return all(word in text for word in words)

    try:
        until(has_all, f"{words}", SAID_S)
    except AssertionError:
        raise AssertionError(f"{words} are not in: {text}") from None
    return text


# -- it waits --------------------------------------------------------------------------------------


def test_nobody_answers(new_cluster: NewCluster, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        job = new_cluster(wait_for, "127.0.0.1:1").submit(Path())
        says(job, "job 1", "127.0.0.1:1", "refused")
        until(lambda: "127.0.0.1:1" in caplog.text and "refused" in caplog.text, "a warning")


def test_the_nodes_that_are_there_are_not_those_asked_for(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    """Nodes that another cluster of the program has found."""
    other = new_cluster(abs, node)
    finished(other.submit(-1))
    job = new_cluster(wait_for, "127.0.0.1:1").submit(Path())
    says(job, other.status().nodes[0].name, "not among those asked for", "127.0.0.1:1")


BUSY = """
import sys, time, dispy, os

def hold(gate):
    while not os.path.exists(gate):
        time.sleep(0.005)

if __name__ == "__main__":
    with dispy.JobCluster(hold, nodes=[sys.argv[1]]) as cluster:
        job = cluster.submit(sys.argv[2])
        while job.status == dispy.DispyJob.Created:
            time.sleep(0.01)
        print("running", flush=True)
"""


@embedded_only("programs at one broker share its nodes")
def test_the_node_works_for_another_program(
    start_node: StartNode,
    start_program: RunProgram,
    new_cluster: NewCluster,
    gate: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = start_node()
    other = start_program(BUSY, node.address, str(gate))
    is_there(other.out)
    with caplog.at_level(logging.WARNING):
        job = new_cluster(abs, node).submit(-3)
        said = says(job, node.address, "works for")
        assert "program.py" in said or str(other.pid) in said  # with whom
        until(lambda: "works for" in caplog.text and node.address in caplog.text, "a warning")
    gate.touch()
    assert other.wait(SAID_S) == 0, other.log()
    assert finished(job).result == 3


def fail_to_set_up() -> int:
    raise LookupError("the shelf is empty")


def test_setup_has_failed_at_one_node_and_the_other_is_busy(
    start_node: StartNode,
    new_cluster: NewCluster,
    gate: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = start_node("--name", "one"), start_node("--name", "two")

    def set_up(name: str) -> int:
        return fail_to_set_up() if name == "one" else 0

    with caplog.at_level(logging.WARNING):
        entries = [entry(one, setup_args=("one",)), entry(two, setup_args=("two",))]
        cluster = new_cluster(wait_for, *entries, setup=set_up)
        jobs = [cluster.submit(gate) for _ in range(3)]
        says(jobs[2], "one", "could not set the computation up", "the shelf is empty")
        says(jobs[2], "two", "busy with 2 jobs")
        assert "the shelf is empty" in caplog.text


def test_setup_has_failed_everywhere(
    node: NodeProcess, new_cluster: NewCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        job = ended(new_cluster(wait_for, node, setup=fail_to_set_up).submit(Path()))
        assert job.status == DispyJob.Terminated
        assert "the shelf is empty" in job.explain()
        assert "the shelf is empty" in str(job.exception)
        assert "the shelf is empty" in caplog.text


def test_setup_is_still_running(
    node: NodeProcess, new_cluster: NewCluster, gate: Path, tmp_path: Path
) -> None:
    def set_up(begun: Path, gate: Path) -> int:
        begun.write_text("begun\n")
        wait_for(gate)
        return 0

    allocate = entry(node, setup_args=(tmp_path / "begun", gate))
    job = new_cluster(abs, allocate, setup=set_up).submit(-1)
    is_there(tmp_path / "begun")
    says(job, "setting the computation up")
    gate.touch()
    assert finished(job).result == 1


def test_other_jobs_go_before_it(node: NodeProcess, new_cluster: NewCluster, gate: Path) -> None:
    cluster = new_cluster(wait_for, node)
    jobs = [cluster.submit(gate) for _ in range(12)]
    until(lambda: all(job.status == DispyJob.Running for job in jobs[:2]), "jobs that run")
    says(jobs[2], "0 jobs", "busy with 2 jobs")
    says(jobs[3], "1 job ")
    says(jobs[11], "9 jobs")
    urgent = cluster.submit(gate, dispy_job_priority=1)
    says(urgent, "0 jobs")
    says(jobs[11], "10 jobs")
    cluster.cancel(jobs[3])
    ended(jobs[3])
    says(jobs[11], "9 jobs")


def test_very_many_jobs_go_before_it(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    """Most of them are still in the program."""
    cluster = new_cluster(wait_for, node)
    jobs = [cluster.submit(gate) for _ in range(5000)]
    until(lambda: all(job.status == DispyJob.Running for job in jobs[:2]), "jobs that run")
    before = _number(says(jobs[-1], "jobs"))
    assert 4997 <= before <= 4999  # those that run may be among them
    begin = time.monotonic()
    assert _number(says(jobs[2500], "jobs")) >= 2498
    assert time.monotonic() - begin < 1.0


def _number(text: str) -> int:
    return max(int(word) for word in text.replace(",", "").split() if word.isdigit())


class Unwanted(dispy.NodeAllocate):
    def allocate(self, *args: Any, **more: Any) -> int:
        return 0


@embedded_only("a subclass's allocate() is code of a client, which a broker doesn't run")
def test_allocate_has_returned_0(node: NodeProcess, new_cluster: NewCluster) -> None:
    job = new_cluster(wait_for, entry(node, Unwanted)).submit(Path())
    says(job, "allocate() returned 0")


def test_its_node_is_deallocated_or_closed(
    start_node: StartNode, new_cluster: NewCluster, gate: Path
) -> None:
    one, two = start_node("--name", "one"), start_node("--name", "two")
    cluster = new_cluster(wait_for, one, two)
    used = ready(cluster, "one", "two")
    running = [cluster.submit(gate) for _ in range(4)]
    until(lambda: all(job.status == DispyJob.Running for job in running), "jobs that run")
    waiting = cluster.submit(gate)
    says(waiting, "one", "two", "busy")
    assert cluster.deallocate_node(used[0]) == 0
    says(waiting, "one", "was deallocated", "two", "busy")
    assert cluster.close_node(used[1]) == 0
    says(waiting, "one", "was deallocated", "two", "being closed")
    gate.touch()
    all_ended(running)
    until(lambda: used[1].status == DispyNode.Closed, "Closed")
    says(waiting, "one", "was deallocated", "two", "was closed on request")
    assert cluster.allocate_node("one") == 0
    finished(waiting)


def test_it_waits_for_one_node_only(
    start_node: StartNode, new_cluster: NewCluster, gate: Path
) -> None:
    cluster = new_cluster(wait_for, start_node("--name", "one"), start_node("--name", "two"))
    ready(cluster, "one", "two")
    jobs = [cluster.submit_node("one", gate) for _ in range(4)]
    until(lambda: all(job.status == DispyJob.Running for job in jobs[:2]), "jobs that run")
    said = says(jobs[3], "Only node one", "1 job ", "busy with 2 jobs")
    assert "two" not in said


def test_it_is_tried_again(node: NodeProcess, new_cluster: NewCluster, tmp_path: Path) -> None:
    def stumble(folder: Path) -> None:
        number = len(list(folder.glob("attempt-*")))
        (folder / f"attempt-{number}").touch()
        if number < 2:
            raise ValueError("as it should")
        wait_for(folder / "gate")

    job = new_cluster(stumble, node, retries=3).submit(tmp_path)
    says(job, "running", "2 attempts failed", "1 more")
    (tmp_path / "gate").touch()
    finished(job)


# -- it runs, or has ended -------------------------------------------------------------------------


def test_it_is_running(node: NodeProcess, new_cluster: NewCluster, gate: Path) -> None:
    cluster = new_cluster(wait_for, node)
    job = cluster.submit(gate)
    until(lambda: job.status == DispyJob.Running, "Running")
    [used] = cluster.status().nodes
    assert cluster.explain(job) == says(job, "running", used.name)


def end_as(how: str) -> str:
    if how == "raise":
        raise KeyError("no such key")
    return "well"


def test_it_has_ended(node: NodeProcess, new_cluster: NewCluster, gate: Path) -> None:
    cluster = new_cluster(end_as, node)
    well, badly = finished(cluster.submit("well")), ended(cluster.submit("raise"))
    waiting = new_cluster(wait_for, node)
    jobs = [waiting.submit(gate) for _ in range(3)]
    waiting.cancel(jobs[2])
    ended(jobs[2])
    for closed in (False, True):
        if closed:
            cluster.close()
        assert f"Finished at {node.host}" in well.explain()
        assert "Terminated" in badly.explain() and "KeyError: 'no such key'" in badly.explain()
    assert "Cancelled" in jobs[2].explain()


def test_a_job_of_another_cluster_is_refused(node: NodeProcess, new_cluster: NewCluster) -> None:
    ours, theirs = new_cluster(end_as, node), new_cluster(end_as, node)
    job = theirs.submit("well")
    with pytest.raises(ValueError, match="no job of cluster 'end_as'"):
        ours.explain(job)
    assert "job 1" in theirs.explain(finished(job))


def test_its_node_was_lost(start_node: StartNode, new_cluster: NewCluster, gate: Path) -> None:
    node = start_node("--name", "lost")
    cluster = new_cluster(wait_for, node, reentrant=True)
    job = cluster.submit(gate)
    until(lambda: job.status == DispyJob.Running, "Running")
    node.kill()
    until(lambda: job.status == DispyJob.Created, "Created")
    says(job, "1 node that had it was lost", node.address)
