"""What a cluster can do about its nodes while it works, in the main thread and in callbacks."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import DispyJob, DispyNode, NodeAllocate

from .at_broker import embedded_only
from .behind_relays import ONE_AT_A_TIME, direct_only
from .changes import Changes, entry, ready
from .conftest import NewCluster, RunProgram, StartNode
from .processes import NodeProcess
from .waiting import all_ended, ended, finished, is_there, until

MIB = 1 << 20
PATIENCE_S = 20.0


told: str  # both are made by setup, at nodes
grown: list[int]


def where(*args: object) -> str:
    name: str = dispy_node_name  # type: ignore[name-defined]  # noqa: F821
    return name


def where_after(gate: Path | None = None) -> str:
    """Go on until a file appears, if one is given; return the node's name."""
    while gate is not None and not gate.exists():
        time.sleep(0.005)
    return where()


def read(path: str) -> str:
    return Path(path).read_text() if os.path.exists(path) else "missing"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that jobs wait for; it's there at the latest when the test ends."""
    path = tmp_path / "gate"
    yield path
    path.touch()


@pytest.fixture
def pair(start_node: StartNode) -> tuple[NodeProcess, NodeProcess]:
    return start_node("--name", "one"), start_node("--name", "two")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# -- jobs for one node ---------------------------------------------------------------------------


def test_a_job_runs_where_its_node_says(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster
) -> None:
    cluster = new_cluster(where, *pair)
    one, two = ready(cluster, "one", "two")
    jobs = {
        "one": [cluster.submit_node(way, 1) for way in (one, pair[0].address, "one")],
        "two": [cluster.submit_node(way, 1) for way in (two, pair[1].address, "two")],
    }
    jobs["two"] += [cluster.submit_node(two) for _ in range(20)]
    for name, theirs in jobs.items():
        assert [finished(job).result for job in theirs] == [name] * len(theirs)
    assert cluster.submit_node(pair[0].host)() in ("one", "two")


def test_a_job_for_one_node_waits_for_it_though_others_are_free(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, gate: Path
) -> None:
    cluster = new_cluster(where_after, *pair)
    one, _ = ready(cluster, "one", "two")
    running = [cluster.submit_node(one, gate) for _ in range(2)]
    until(lambda: all(job.status == DispyJob.Running for job in running), "two jobs that run")
    waiting = cluster.submit_node(one)
    anywhere = all_ended([cluster.submit() for _ in range(10)])
    assert {job.result for job in anywhere} == {"two"}
    assert waiting.status == DispyJob.Created
    gate.touch()
    assert [finished(job).result for job in [*running, waiting]] == ["one"] * 3


def test_ids_can_be_given_at_once(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster
) -> None:
    changes = Changes()
    cluster = new_cluster(where, *pair, cluster_status=changes)
    ready(cluster, "one", "two")
    named = cluster.submit_job_id("first", 1, 2)
    both = cluster.submit_job_id_node(("second", 2), "two", 1)
    assert (named.id, both.id) == ("first", ("second", 2))
    assert finished(named).args == (1, 2)
    assert finished(both).result == "two"
    cluster.close()
    for job in (named, both):  # also the first call had the id
        assert changes.of_job(job) == [DispyJob.Created, DispyJob.Running, DispyJob.Finished]


def test_a_node_that_the_cluster_does_not_have_is_refused(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(where, node)
    finished(cluster.submit())
    for unknown in ("no-such-node", "127.0.0.1:1", "192.0.2.1"):
        with pytest.raises(ValueError, match=unknown):
            cluster.submit_node(unknown, 1)
        with pytest.raises(ValueError, match=unknown):
            cluster.submit_job_id_node(1, unknown, 1)
    with pytest.raises(TypeError, match="node must be"):
        cluster.submit_node(5)  # type: ignore[arg-type]
    assert cluster.status().jobs_pending == 0


@embedded_only("a node that others use as well isn't set up anew")
def test_requests_about_unknown_nodes_return_minus_one_and_say_why(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = new_cluster(where, node)
    finished(cluster.submit())
    (tmp_path / "file").touch()
    calls: list[Callable[[], int]] = [
        lambda: cluster.send_file("file", "nowhere"),
        lambda: cluster.deallocate_node("nowhere"),
        lambda: cluster.close_node("nowhere"),
        lambda: cluster.resetup_node("nowhere"),
        lambda: cluster.set_node_cpus("nowhere", 1),
        lambda: cluster.allocate_node("no.such.host.invalid"),
        lambda: cluster.discover_nodes(["no.such.host.invalid"]),
    ]
    for call in calls:
        caplog.clear()
        assert call() == -1
        assert "nowhere" in caplog.text or "no.such.host.invalid" in caplog.text
    assert cluster.node_jobs("nowhere") == []
    assert finished(cluster.submit()).result


# -- files ---------------------------------------------------------------------------------------


def test_a_file_is_sent_to_one_node_by_its_base_name(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(read, *pair)
    one, two = ready(cluster, "one", "two")
    path = tmp_path / "deep" / "below" / "data.txt"
    path.parent.mkdir(parents=True)
    path.write_text("first")
    assert cluster.send_file(str(path), one) == 0
    assert cluster.submit_node(one, "data.txt")() == "first"
    assert cluster.submit_node(two, "data.txt")() == "missing"
    path.write_text("second, and longer")
    assert cluster.send_file(path, "one") == 0
    assert cluster.submit_node(one, "data.txt")() == "second, and longer"
    assert cluster.send_file(path, pair[1].address) == 0
    assert cluster.submit_node(two, "data.txt")() == "second, and longer"
    with pytest.raises(OSError, match=r"not\.there"):
        cluster.send_file("not.there", one)


def test_files_are_sent_while_jobs_run_and_seen_by_them(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    def wait_for(name: str) -> int:
        while not os.path.exists(name):
            time.sleep(0.005)
        return os.path.getsize(name)

    cluster = new_cluster(wait_for, node)
    job = cluster.submit("big")
    until(lambda: job.status == DispyJob.Running, "Running")
    (tmp_path / "big").write_bytes(os.urandom(3 * MIB + 1))
    assert cluster.send_file("big", job.host or "") == 0
    assert finished(job).result == 3 * MIB + 1  # never a part of it


# -- nodes come ------------------------------------------------------------------------------------


def test_nodes_that_are_discovered_are_used_if_they_match(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster
) -> None:
    one, two = pair
    only_one, any_node = new_cluster(where, one), new_cluster(where, one, f"{one.host[:-1]}*")
    ready(only_one, "one")
    ready(any_node, "one")
    assert any_node.discover_nodes([two.address]) == 0
    ready(any_node, "two")
    assert any_node.submit_node("two")() == "two"
    assert only_one.discover_nodes(two.address) == 0
    assert {job() for job in [only_one.submit() for _ in range(10)]} == {"one"}


def test_a_node_can_be_added(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, gate: Path
) -> None:
    changes = Changes()
    cluster = new_cluster(where_after, pair[0], cluster_status=changes)
    ready(cluster, "one")
    assert cluster.allocate_node(entry(pair[1], cpus=1)) == 0
    [two] = ready(cluster, "two")
    assert (two.cpus, two.avail_cpus) == (2, 1)
    jobs = [cluster.submit(gate) for _ in range(4)]
    until(lambda: sum(job.status == DispyJob.Running for job in jobs) == 3, "three that run")
    gate.touch()
    assert sorted({finished(job).result for job in jobs}) == ["one", "two"]
    cluster.close()
    assert changes.of_node("two") == [DispyNode.Initialized, DispyNode.Closed]


def test_a_list_of_nodes_can_be_added(
    pair: tuple[NodeProcess, NodeProcess], start_node: StartNode, new_cluster: NewCluster
) -> None:
    third = start_node("--name", "three")
    cluster = new_cluster(where, pair[0])
    assert cluster.allocate_node([pair[1].address, (third.host, third.port, 1)]) == 0
    _, _, three = ready(cluster, "one", "two", "three")
    assert three.avail_cpus == 1


# -- nodes are left --------------------------------------------------------------------------------


def set_up(log: str, text: str = "") -> int:
    global told
    told = text
    with open(log, "a") as file:
        file.write(f"setup {text}\n")
    return 0


def clean_up(log: str, text: str = "") -> None:
    with open(log, "a") as file:
        file.write(f"cleanup {text}\n")


def tell(gate: Path | None = None) -> tuple[str, list[str]]:
    """Return what setup has made and which files there are, once a file has appeared."""
    while gate is not None and not gate.exists():
        time.sleep(0.005)
    return told, sorted(os.listdir())


def test_a_deallocated_node_keeps_what_is_set_up_and_gets_no_jobs_until_it_is_allocated(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, tmp_path: Path, gate: Path
) -> None:
    log = tmp_path / "log"
    cluster = new_cluster(
        where_after,
        entry(pair[0], setup_args=(str(log), "one")),
        entry(pair[1], setup_args=(str(log), "two")),
        setup=set_up,
        cleanup=clean_up,
    )
    one, _ = ready(cluster, "one", "two")
    running = cluster.submit_node(one, gate)
    until(lambda: running.status == DispyJob.Running, "Running")
    assert cluster.deallocate_node(one) == 0
    assert {job() for job in [cluster.submit() for _ in range(20)]} == {"two"}
    assert running.status == DispyJob.Running
    waiting = cluster.submit_node(one)
    gate.touch()
    assert finished(running).result == "one"
    assert waiting.status == DispyJob.Created
    assert cluster.allocate_node(one) == 0
    assert finished(waiting).result == "one"
    assert sorted(lines(log)) == ["setup one", "setup two"]
    cluster.close()
    assert sorted(lines(log)) == ["cleanup one", "cleanup two", "setup one", "setup two"]


def test_jobs_wait_while_the_only_node_is_deallocated(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(where, node)
    finished(cluster.submit())
    [used] = cluster.status().nodes
    assert cluster.deallocate_node(used.ip_addr) == 0
    jobs = [cluster.submit() for _ in range(5)]
    assert "deallocated" in jobs[0].explain()
    assert not cluster.wait(0.2)
    assert cluster.allocate_node(used.name) == 0
    assert [job() for job in jobs] == [used.name] * 5


def test_a_closed_node_finishes_its_jobs_cleans_up_and_can_be_set_up_again(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, tmp_path: Path, gate: Path
) -> None:
    log, changes = tmp_path / "log", Changes()
    cluster = new_cluster(
        where_after,
        entry(pair[0], setup_args=(str(log), "one")),
        entry(pair[1], setup_args=(str(tmp_path / "other"), "two")),
        setup=set_up,
        cleanup=clean_up,
        cluster_status=changes,
    )
    one, _ = ready(cluster, "one", "two")
    running = cluster.submit_node(one, gate)
    until(lambda: running.status == DispyJob.Running, "Running")
    assert cluster.close_node(one) == 0
    assert {job() for job in [cluster.submit() for _ in range(20)]} == {"two"}
    assert running.status == DispyJob.Running
    assert lines(log) == ["setup one"]
    gate.touch()
    assert finished(running).result == "one"
    until(lambda: DispyNode.Closed in changes.of_node("one"), "Closed")
    assert lines(log) == ["setup one", "cleanup one"]
    with pytest.raises(ValueError, match="closed"):
        cluster.submit_node("one")
    assert {job() for job in [cluster.submit() for _ in range(20)]} == {"two"}
    assert cluster.allocate_node("one") == 0
    ready(cluster, "one")
    assert cluster.submit_node("one")() == "one"
    assert lines(log) == ["setup one", "cleanup one", "setup one"]
    cluster.close()
    assert lines(log) == ["setup one", "cleanup one", "setup one", "cleanup one"]
    assert changes.of_node("one") == [DispyNode.Initialized, DispyNode.Closed] * 2


def test_jobs_wait_while_the_only_node_is_closed(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(where, node)
    finished(cluster.submit())
    [used] = cluster.status().nodes
    assert cluster.close_node(used) == 0
    until(lambda: used.status == DispyNode.Closed, "Closed")
    waiting = cluster.submit()
    assert "closed on request" in waiting.explain()
    assert not cluster.wait(0.2)
    assert cluster.allocate_node(used) == 0
    assert finished(waiting).result == used.name


OTHER = """
import os, sys, time, dispy

def hold(gate):
    while not os.path.exists(gate):
        time.sleep(0.005)

with dispy.JobCluster(hold, nodes=[sys.argv[1]]) as cluster:
    job = cluster.submit(sys.argv[2])
    while job.status == dispy.DispyJob.Created:
        time.sleep(0.01)
    print("running", flush=True)
"""


@direct_only(ONE_AT_A_TIME)
@embedded_only("programs at one broker share its nodes")
def test_a_closed_node_is_free_for_other_programs_and_comes_back_after_them(
    start_node: StartNode, new_cluster: NewCluster, start_program: RunProgram, gate: Path
) -> None:
    node = start_node("--name", "shared")
    cluster = new_cluster(where, node)
    finished(cluster.submit())
    [used] = cluster.status().nodes
    assert cluster.close_node(used) == 0
    until(lambda: used.status == DispyNode.Closed, "Closed")
    other = start_program(OTHER, node.address, str(gate))
    is_there(other.out)
    assert cluster.allocate_node(used) == 0
    job = cluster.submit()
    until(lambda: "works for" in job.explain(), "a reason")
    gate.touch()
    assert other.wait(PATIENCE_S) == 0, other.log()
    assert finished(job).result == "shared"


def test_jobs_of_a_node_that_is_closed_at_once_are_killed(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, gate: Path
) -> None:
    log, changes = tmp_path / "log", Changes()
    cluster = new_cluster(
        where_after,
        entry(node, setup_args=(str(log),)),
        setup=set_up,
        cleanup=clean_up,
        cluster_status=changes,
    )
    running = [cluster.submit(gate) for _ in range(2)]
    until(lambda: all(job.status == DispyJob.Running for job in running), "jobs that run")
    [used] = cluster.status().nodes
    pinned = cluster.submit_node(used)
    assert cluster.close_node(used, terminate_pending=True) == 0
    assert {ended(job).status for job in running} <= {DispyJob.Terminated, DispyJob.Cancelled}
    assert ended(pinned).status == DispyJob.Cancelled
    assert "closed" in str(pinned.exception)
    until(lambda: DispyNode.Closed in changes.of_node(used.name), "Closed")
    assert lines(log) == ["setup ", "cleanup "]
    assert not gate.exists()


class Numbered(NodeAllocate):
    """Gives a node another number and another file each time it is set up."""

    def __init__(self, host: str, port: int, folder: Path) -> None:
        super().__init__(host, port)
        self.folder = folder
        self.count = 0

    def allocate(self, cluster: dispy.JobCluster, *node: Any, **more: Any) -> int:
        self.count += 1
        path = self.folder / f"file-{self.count}"
        path.write_text(str(self.count))
        self.depends = [str(path)]
        self.setup_args = (str(self.folder / "log"), str(self.count))
        return super().allocate(cluster, *node, **more)


@embedded_only("a node that others use as well isn't set up anew")
def test_a_node_is_set_up_anew_with_other_arguments_and_files(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, gate: Path
) -> None:
    changes = Changes()
    cluster = new_cluster(
        tell,
        Numbered(node.host, node.port, tmp_path),
        setup=set_up,
        cleanup=clean_up,
        cluster_status=changes,
    )
    running = cluster.submit(gate)
    until(lambda: running.status == DispyJob.Running, "Running")
    [used] = cluster.status().nodes
    assert cluster.resetup_node(used) == 0
    later = [cluster.submit() for _ in range(3)]
    assert lines(tmp_path / "log") == ["setup 1"]  # it waits for the job that runs
    gate.touch()
    assert finished(running).result == ("1", ["file-1"])
    for job in later:
        assert finished(job).result == ("2", ["file-1", "file-2"])  # cleanup has left the first
    until(lambda: changes.of_node(used.name).count(DispyNode.Initialized) == 2, "Initialized")
    assert lines(tmp_path / "log") == ["setup 1", "cleanup 1", "setup 2"]
    assert cluster.resetup_node(used) == 0
    until(lambda: changes.of_node(used.name).count(DispyNode.Initialized) == 3, "Initialized")
    assert cluster.submit_node(used)() == ("3", ["file-1", "file-2", "file-3"])
    cluster.close()
    assert lines(tmp_path / "log")[-2:] == ["setup 3", "cleanup 3"]


class Fickle(NodeAllocate):
    """Uses a node, does not, and uses it again."""

    count = 0

    def allocate(self, *args: Any, **more: Any) -> int:
        self.count += 1
        return 0 if self.count == 2 else super().allocate(*args, **more)


@embedded_only("a node that others use as well isn't set up anew")
def test_a_node_may_be_left_out_when_it_is_asked_for_anew(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    changes = Changes()
    cluster = new_cluster(where, entry(node, Fickle), cluster_status=changes)
    name = cluster.submit()()
    [used] = cluster.status().nodes
    assert cluster.resetup_node(used) == 0
    until(lambda: used.status == DispyNode.Closed, "Closed")
    job = cluster.submit()
    until(lambda: "allocate() returned 0" in job.explain(), "the reason")
    assert not cluster.wait(0.1)
    assert cluster.allocate_node(used) == 0
    assert finished(job).result == name
    until(lambda: len(changes.of_node(name)) == 3, "three changes")
    assert changes.of_node(name) == [4, 16, 4]


def set_up_unless(flaw: Path) -> int:
    if flaw.exists():
        raise LookupError("the shelf is empty")
    return 0


@embedded_only("a node that others use as well isn't set up anew")
def test_a_new_set_up_that_fails_ends_jobs_with_the_reason_and_can_be_tried_again(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flaw = tmp_path / "flaw"
    cluster = new_cluster(where, entry(node, setup_args=(flaw,)), setup=set_up_unless)
    name = cluster.submit()()
    [used] = cluster.status().nodes
    flaw.touch()
    assert cluster.resetup_node(used) == 0
    job = ended(cluster.submit())
    assert job.status == DispyJob.Terminated
    assert "the shelf is empty" in str(job.exception) and "the shelf is empty" in caplog.text
    assert used.status == DispyNode.Closed
    flaw.unlink()
    assert cluster.allocate_node(used) == 0
    ready(cluster, name)
    assert cluster.submit()() == name


def grow() -> int:
    global grown
    grown = [*globals().get("grown", []), os.getpid()]
    return 0


def size() -> int:
    return len(grown)


@embedded_only("a node that others use as well isn't set up anew")
def test_nothing_in_memory_survives_a_new_set_up(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    changes = Changes()
    cluster = new_cluster(size, node, setup=grow, cluster_status=changes)
    assert cluster.submit()() == 1
    [used] = cluster.status().nodes
    for count in range(2, 5):
        assert cluster.resetup_node(used) == 0
        until(lambda: changes.of_node(used.name).count(4) == count, "Initialized")  # noqa: B023
        assert cluster.submit()() == 1


# -- what is known of nodes ------------------------------------------------------------------------


def test_the_jobs_that_run_at_a_node_are_known(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, gate: Path
) -> None:
    cluster = new_cluster(where_after, *pair)
    one, two = ready(cluster, "one", "two")
    assert cluster.node_jobs(one) == []
    jobs = [cluster.submit_node(one, gate) for _ in range(3)]
    other = cluster.submit_node(two, gate)
    until(lambda: cluster.node_jobs(one) == jobs[:2], "two that run")
    until(lambda: cluster.node_jobs("two") == [other], "one that runs")
    assert cluster.node_jobs("one", from_node=True) == jobs[:2]
    assert cluster.running_jobs(one) == jobs[:2]
    assert one.busy == 2
    gate.touch()
    all_ended(jobs)
    until(lambda: cluster.node_jobs(one) == [], "none that runs")


def test_cpus_of_a_node_can_be_set(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(where_after, node)
    finished(cluster.submit())
    [used] = cluster.status().nodes

    def running_at_most(count: int) -> bool:
        """Whether so many of many jobs run at a time, and no more."""
        gate = tmp_path / f"gate-{len(list(tmp_path.iterdir()))}"
        jobs = [cluster.submit(gate) for _ in range(4)]
        until(lambda: used.busy == count, f"{count} jobs that run")
        probe = cluster.submit()  # goes last: when it has run, all others have
        idle = used.busy == count and not cluster.wait(0.1) and used.busy == count
        gate.touch()
        all_ended([*jobs, probe])
        return idle

    assert cluster.set_node_cpus(used, 1) == 1
    assert used.avail_cpus == 1
    assert running_at_most(1)
    assert cluster.set_node_cpus(used.ip_addr, 2) == 2
    assert running_at_most(2)
    assert cluster.set_node_cpus(used.name, -1) == 1
    assert running_at_most(1)
    assert cluster.set_node_cpus(used, 0) == -1  # deallocate_node does that
    assert cluster.set_node_cpus(used, -2) == -1
    assert used.avail_cpus == 1
    assert cluster.set_node_cpus(used, 1000) == 2
    assert running_at_most(2)
    with pytest.raises(TypeError, match="cpus"):
        cluster.set_node_cpus(used, "1")  # type: ignore[arg-type]


def echo(data: bytes) -> bytes:
    return data


@embedded_only("a shared broker takes each file from the client once, and gives it to nodes itself")
def test_bytes_sent_and_received_are_counted(
    node: NodeProcess,
    new_cluster: NewCluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = new_cluster(echo, node)
    finished(cluster.submit(b""))
    [used] = cluster.status().nodes
    assert used.tx < 10_000 and used.rx < 10_000
    finished(cluster.submit(bytes(2 * MIB)))
    assert 0 <= used.tx - 2 * MIB < 10_000
    assert 0 <= used.rx - 2 * MIB < 10_000
    (tmp_path / "file").write_bytes(os.urandom(3 * MIB))
    assert cluster.send_file("file", used) == 0
    assert 0 <= used.tx - 5 * MIB < 20_000
    for show in (cluster.print_status, cluster.stats):
        show()
        printed = capsys.readouterr().out
        assert re.search(r"CPUs \|.*Jobs \|.*Sent \|.*Rcvd", printed)
        [row] = [line for line in printed.splitlines() if used.ip_addr in line]
        assert row.endswith("|   5.0 M |   2.0 M")


@embedded_only("a shared broker takes each file from the client once, and gives it to nodes itself")
def test_files_of_jobs_and_computations_are_counted_once(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    (tmp_path / "data").write_bytes(os.urandom(MIB))
    for expected in (MIB, 0):  # the node keeps contents, so a second cluster sends nothing
        cluster = new_cluster(read_size, node, depends=["data"])
        assert finished(cluster.submit("data")).result == MIB
        [used] = cluster.status().nodes
        assert expected <= used.tx < expected + 20_000
        cluster.close()


def read_size(path: str) -> int:
    return os.path.getsize(path)


@embedded_only("a LocalNode belongs to one program")
def test_name_and_status_and_shutdown(start_program: RunProgram) -> None:
    program = start_program(
        """
import threading, dispy, psutil

def square(n):
    return n * n

if __name__ == "__main__":
    cluster = dispy.JobCluster(square, nodes=[dispy.LocalNode(1)])
    other = dispy.JobCluster(square, nodes=[dispy.LocalNode(1)])
    job = cluster.submit(3)
    assert job() == 9, job.exception
    print(cluster.name, cluster.status().jobs_pending, len(cluster.status().nodes))
    cluster.shutdown()
    assert other.submit(4)() == 16  # it is still used
    other.shutdown()
    left = {thread.name for thread in threading.enumerate()} - {"MainThread", "dispy-callbacks"}
    print(sorted(left), len(psutil.Process().children()))
    with dispy.JobCluster(square, nodes=[dispy.LocalNode(1)]) as again:
        print(again.submit(5)())
"""
    )
    assert program.wait(PATIENCE_S) == 0, program.log()
    assert program.output() == "square 0 1\n[] 0\n25\n"


# -- from both kinds of threads --------------------------------------------------------------------


def all_of_it(cluster: dispy.JobCluster, node: DispyNode, log: Path) -> None:
    """Use everything that a cluster can do about its nodes."""
    Path("sent").write_text("sent")
    assert cluster.send_file("sent", node) == 0
    assert cluster.submit_node(node).finish.wait(PATIENCE_S)
    assert cluster.submit_job_id_node("x", node)() == ("told", ["sent"])
    assert cluster.set_node_cpus(node, 1) == 1
    assert cluster.set_node_cpus(node, -5) == -1
    assert cluster.node_jobs(node) == []
    assert cluster.discover_nodes(node.ip_addr + ":1") == 0
    assert cluster.deallocate_node(node) == 0
    waiting = cluster.submit()
    assert not cluster.wait(0.05)
    assert "deallocated" in cluster.explain(waiting)
    assert cluster.allocate_node(node) == 0
    assert waiting() == ("told", ["sent"])
    assert cluster.wait(PATIENCE_S)
    assert lines(log) == ["setup told"]
    assert cluster.resetup_node(node) == 0
    assert cluster.submit()()[0] == "told"
    assert cluster.close_node(node) == 0
    until(lambda: lines(log) == ["setup told", "cleanup told"] * 2, "the second cleanup")
    assert cluster.allocate_node(node) == 0
    assert cluster.submit()()[0] == "told"
    assert "speedup" in dispy_table(cluster)
    assert cluster.close(timeout=PATIENCE_S)


def dispy_table(cluster: dispy.JobCluster) -> str:
    cluster.print_status()
    return f"{cluster.status()} speedup"


@embedded_only("a node that others use as well isn't set up anew")
@pytest.mark.parametrize("thread", ["main", "callback"])
def test_everything_can_be_done_in_the_main_thread_and_in_callbacks(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, thread: str
) -> None:
    outcome: Future[None] = Future()
    made = threading.Event()
    log = tmp_path / "log"
    told: list[int] = []

    def on_change(status: int, used: DispyNode | None, job: DispyJob | None) -> None:
        told.append(status)
        if status != DispyNode.Initialized or told.count(status) > 1 or thread == "main":
            return
        try:
            assert made.wait(PATIENCE_S) and used is not None
            all_of_it(cluster, used, log)
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    cluster = new_cluster(
        tell,
        entry(node, setup_args=(str(log), "told")),
        setup=set_up,
        cleanup=clean_up,
        cluster_status=on_change,
    )
    made.set()
    if thread == "main":
        finished(cluster.submit())
        all_of_it(cluster, cluster.status().nodes[0], log)
    else:
        outcome.result(PATIENCE_S)
    assert lines(log) == ["setup told", "cleanup told"] * 3


def test_a_scheduler_of_ones_own_in_callbacks(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, tmp_path: Path
) -> None:
    """As many jobs at each node as it has CPUs, each with a file, until there are no more."""
    results: list[str] = []
    left = [f"data-{number}" for number in range(12)]
    done = threading.Event()
    made = threading.Event()
    for name in left:
        (tmp_path / name).write_text(name * 100)

    def next_job(node: DispyNode) -> None:
        if left:
            name = left.pop()
            assert cluster.send_file(name, node) == 0
            cluster.submit_job_id_node(name, node, name)

    def on_change(status: int, node: DispyNode | None, job: DispyJob | None) -> None:
        assert made.wait(PATIENCE_S)
        if status == DispyNode.Initialized and node is not None:
            for _ in range(node.avail_cpus):
                next_job(node)
        elif status == DispyJob.Finished and job is not None and node is not None:
            assert job.result == job.id * 100
            results.append(job.id)
            next_job(node)
            if len(results) == 12:
                done.set()

    cluster = new_cluster(read, *pair, cluster_status=on_change)
    made.set()
    assert done.wait(PATIENCE_S)
    assert sorted(results) == sorted(f"data-{number}" for number in range(12))


def test_a_closed_cluster_answers_minus_one(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster(where, node)
    job = cluster.submit()
    finished(job)
    [used] = cluster.status().nodes
    assert cluster.close()
    assert cluster.deallocate_node(used) == -1
    assert cluster.close_node(used) == -1
    assert cluster.set_node_cpus(used, 1) == -1
    assert cluster.allocate_node(used) == -1
    assert cluster.discover_nodes(node.address) == -1
    assert cluster.node_jobs(used) == []
    assert "Finished" in job.explain()
    with pytest.raises(dispy.ClusterClosedError):
        cluster.submit_node(used)


def test_wait_and_files_are_possible_while_a_node_is_being_set_up(
    node: NodeProcess, new_cluster: NewCluster, gate: Path, tmp_path: Path
) -> None:
    def slow_setup(gate: Path, started: Path) -> int:
        started.write_text("begun\n")
        while not gate.exists():
            time.sleep(0.005)
        return 0

    allocate = entry(node, setup_args=(gate, tmp_path / "begun"))
    cluster = new_cluster(where, allocate, setup=slow_setup)
    job = cluster.submit()
    is_there(tmp_path / "begun")
    assert not cluster.wait(0.05)
    assert cluster.status().nodes == []
    gate.touch()
    assert finished(job).result
