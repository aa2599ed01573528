"""setup and cleanup: once at each node, shared by all jobs, and a failure hangs nobody."""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import dispy
from dispy import DispyJob, NodeAllocate

from .conftest import NewCluster, RunProgram, StartNode
from .processes import STOP_S, NodeProcess
from .waiting import PATIENCE_S, all_ended, ended, finished, is_there, until


def at(node: NodeProcess, *setup_args: object) -> list[NodeAllocate]:
    """Make the entry of a node with arguments for setup."""
    return [NodeAllocate(node.host, port=node.port, setup_args=setup_args)]


# -- what setup makes for jobs -------------------------------------------------------------------

GLOBALS = """
import functools
import sys

import dispy

prepared = "not so far"


def setup(size, step):
    import math
    import multiprocessing.sharedctypes

    global table, geometry, hits, prepared, Cell
    table = list(range(0, size, step))
    geometry = math
    hits = multiprocessing.sharedctypes.Value("i", 0)
    prepared = "prepared"

    class Cell:
        def __init__(self, n):
            self.n = n

    return 0


def compute(n):
    with hits.get_lock():
        hits.value += 1
        count = hits.value
    return table[n], geometry.floor(2.5), prepared, Cell(n).n, len(table), count


for max_tasks in (1, None):
    with dispy.JobCluster(
        compute,
        nodes=[sys.argv[1]],
        setup=functools.partial(setup, 20, step=2),
        max_tasks_per_child=max_tasks,
    ) as cluster:
        jobs = [cluster.submit(n) for n in range(10)]
        for n, job in enumerate(jobs):
            assert job() is not None, job.exception
            assert job.result[:-1] == (2 * n, 2, "prepared", n, 10), job.result
        assert sorted(job.result[-1] for job in jobs) == list(range(1, 11))
assert prepared == "not so far"
"""


def test_jobs_see_the_globals_of_setup_and_share_memory(
    node: NodeProcess, start_program: RunProgram
) -> None:
    program = start_program(GLOBALS, node.address)
    assert program.wait(PATIENCE_S) == 0, program.log()


remembered: tuple[Any, ...] = ()


def remember(*args: object) -> int:
    global remembered
    remembered = (args, os.getpid(), os.getcwd())
    return 0


def recall() -> tuple[Any, ...]:
    return (*remembered, psutil.Process(os.getppid()).ppid(), os.getcwd())


def test_setup_runs_once_at_each_node_with_its_own_arguments(
    start_node: StartNode, new_cluster: NewCluster
) -> None:
    nodes = [start_node(cpus=1), start_node(cpus=1)]
    entries = [at(node, f"for {number}", number)[0] for number, node in enumerate(nodes)]
    cluster = dispy.JobCluster(recall, nodes=entries, setup=remember)
    with cluster:
        until(lambda: len(cluster.status().nodes) == 2, "two nodes")
        for number, node in enumerate(nodes):
            jobs = [cluster.submit_node(node.address) for _ in range(3)]
            for args, pid, folder, template, current in [finished(job).result for job in jobs]:
                assert args == (f"for {number}", number)
                assert pid == template and folder == current


# -- what it returns -----------------------------------------------------------------------------


def returning(value: object) -> object:
    return value


def give(value: object) -> object:
    return value


@pytest.mark.parametrize("value", [0, 1, 2])
def test_setup_may_return_0_1_or_2(
    node: NodeProcess, new_cluster: NewCluster, value: object
) -> None:
    cluster = new_cluster(give, node, setup=functools.partial(returning, value))
    assert finished(cluster.submit(5)).result == 5


def explode() -> int:
    raise ValueError("no table at this node")


def leave() -> int:
    sys.exit("left early")


def crash() -> int:
    os._exit(3)


FAILURES = {
    "None": (functools.partial(returning, None), ["None", "0, 1 or 2"]),
    "3": (functools.partial(returning, 3), ["3", "0, 1 or 2"]),
    "text": (functools.partial(returning, "fine"), ["fine", "0, 1 or 2"]),
    "exception": (explode, ["no table at this node", "in explode"]),
    "sys.exit": (leave, ["left early"]),
    "crash": (crash, ["exit code 3"]),
    "arguments": (functools.partial(dict, 1, 2), ["TypeError"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_setup_that_fails_ends_the_jobs_and_says_why(
    node: NodeProcess, new_cluster: NewCluster, name: str
) -> None:
    setup, shown = FAILURES[name]
    cluster = new_cluster(give, node, setup=setup)
    jobs = [cluster.submit(number) for number in range(3)]
    for job in all_ended(jobs):
        assert job.status == DispyJob.Terminated
        assert [text for text in shown if text not in str(job.exception)] == []
        assert "setup" in str(job.exception)
    assert "setup" in cluster.explain(jobs[0]) or shown[0] in cluster.explain(jobs[0])
    assert ended(cluster.submit(4)).status == DispyJob.Terminated
    assert finished(new_cluster(give, node).submit(6)).result == 6


def only_good() -> int:
    if dispy_node_name != "good":  # type: ignore[name-defined]  # noqa: F821
        raise RuntimeError("not a good node")
    return 0


def name_of_node() -> str:
    return str(dispy_node_name)  # type: ignore[name-defined]  # noqa: F821


def test_a_node_whose_setup_succeeds_does_all_the_work(
    start_node: StartNode, new_cluster: NewCluster, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [start_node("--name", name) for name in ("bad", "good")]
    cluster = new_cluster(name_of_node, *nodes, setup=only_good)
    jobs = [cluster.submit() for _ in range(8)]
    assert [finished(job).result for job in jobs] == ["good"] * 8
    until(lambda: "not a good node" in caplog.text, "a line in the log")


# -- when it takes long --------------------------------------------------------------------------


def never_ends(started: str) -> int:
    Path(started).write_text("started\n")
    time.sleep(600)
    return 0


def test_a_setup_that_takes_longer_than_its_timeout_is_ended(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(
        give, node, setup=functools.partial(never_ends, str(tmp_path / "s")), setup_timeout=0.3
    )
    job = ended(cluster.submit(1))
    assert job.status == DispyJob.Terminated
    assert "setup took longer than its limit of 0.3 s" in str(job.exception)
    assert finished(new_cluster(give, node).submit(2)).result == 2


def test_a_cluster_with_a_setup_that_never_ends_can_be_closed(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    cluster = new_cluster(give, node, setup=functools.partial(never_ends, str(started)))
    job = cluster.submit(1)
    is_there(started)
    assert "set" in cluster.explain(job)
    begin = time.monotonic()
    assert cluster.close(timeout=0, terminate=True)
    assert time.monotonic() - begin < STOP_S
    assert job.status == DispyJob.Cancelled
    assert finished(new_cluster(give, node).submit(2)).result == 2


# -- cleanup -------------------------------------------------------------------------------------


noted = ""


def note_setup(path: str, text: str) -> int:
    global noted
    noted = text
    return 0


def note_cleanup(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(f"{noted} {text} {sorted(os.listdir('.'))}\n")


def note_without_arguments() -> None:
    Path("../noted").write_text("cleaned up\n")


def test_cleanup_gets_the_arguments_of_setup_and_comes_before_files_are_removed(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.txt").touch()
    path = tmp_path / "noted"
    with dispy.JobCluster(
        os.getcwd,
        nodes=at(node, str(path), "last"),
        depends=["data.txt"],
        setup=note_setup,
        cleanup=note_cleanup,
    ) as cluster:
        folder = finished(cluster.submit()).result
        assert not path.exists()
    until(lambda: path.exists(), "cleanup")
    assert is_there(path) == "last last ['data.txt']\n"
    until(lambda: not os.path.exists(folder), "the end of the folder")


def test_cleanup_may_take_no_arguments_and_may_fail(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    node = start_node()
    path = str(tmp_path / "noted")
    plain = functools.partial(note_cleanup, path, "by itself")
    with dispy.JobCluster(
        give, nodes=at(node, path, "set"), setup=note_setup, cleanup=plain
    ) as cluster:
        finished(cluster.submit(1))
    assert is_there(Path(path)).startswith("set by itself")
    cluster = new_cluster(give, node, cleanup=explode)
    finished(cluster.submit(1))
    cluster.close()
    until(lambda: "no table at this node" in node.log(), "the error in the node's log")
    assert finished(new_cluster(give, node).submit(2)).result == 2


def stamp(path: str) -> tuple[str, int, int, str]:
    """Say which file it is, not only what is in it."""
    found = os.stat(path)
    return os.path.abspath(path), found.st_ino, found.st_ctime_ns, Path(path).read_text()


def test_dest_path_is_kept_and_used_again(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "prefix"
    node = start_node("--dest-path-prefix", str(prefix))
    monkeypatch.chdir(tmp_path)
    Path("data.txt").write_text("data")
    stamps = []
    for _ in range(2):
        cluster = new_cluster(
            stamp, node, depends=["data.txt"], dest_path="mine/kept", cleanup=False
        )
        stamps.append(finished(cluster.submit("data.txt")).result)
        cluster.close()
    assert stamps[0] == stamps[1]  # the same file, never written again
    kept = prefix / "mine" / "kept" / "data.txt"
    assert stamps[0][0] == str(kept)
    until(kept.exists, "the file")
    cluster = new_cluster(stamp, node, depends=["data.txt"], dest_path="mine/kept")
    assert finished(cluster.submit("data.txt")).result == stamps[0]
    cluster.close()
    until(lambda: not kept.exists(), "the end of the file")


def test_without_dest_path_nothing_is_left_unless_it_is_wanted(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "prefix"
    node = start_node("--dest-path-prefix", str(prefix))
    monkeypatch.chdir(tmp_path)
    Path("data.txt").write_text("data")
    for cleanup in (True, False):
        cluster = new_cluster(stamp, node, depends=["data.txt"], cleanup=cleanup)
        finished(cluster.submit("data.txt"))
        cluster.close()
        until(lambda: len(list(prefix.rglob("data.txt"))) == (not cleanup), f"{cleanup}")  # noqa: B023


@pytest.mark.parametrize("outside", ["../outside", "a/../../b", "a//b"])
def test_dest_path_never_leads_out(
    node: NodeProcess, new_cluster: NewCluster, outside: str
) -> None:
    with pytest.raises(ValueError, match="dest_path"):
        new_cluster(give, node, dest_path=outside)


def shut_down() -> None:
    dispynode_shutdown()  # type: ignore[name-defined]  # noqa: F821


def test_cleanup_can_stop_a_node_that_allows_it(
    start_node: StartNode, new_cluster: NewCluster
) -> None:
    nodes = [start_node("--client-shutdown"), start_node()]
    for node in nodes:
        cluster = new_cluster(give, node, cleanup=shut_down)
        finished(cluster.submit(1))
        cluster.close()
    assert nodes[0].wait(STOP_S) == 0
    until(lambda: "client-shutdown" in nodes[1].log(), "the error in the node's log")
    assert finished(new_cluster(give, nodes[1]).submit(2)).result == 2
