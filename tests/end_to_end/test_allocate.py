"""NodeAllocate: what of a node is used and what it is given; and what nodes have to spare."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import DispyJob, DispyNode, DispyNodeAvailInfo, NodeAllocate

from .at_broker import embedded_only
from .changes import entry, ready
from .conftest import NewCluster, StartNode
from .processes import NodeProcess
from .waiting import all_ended, ended, finished, until

PULSE_S = 0.2


remembered: tuple[object, ...]  # made by setup, at nodes


def where() -> str:
    name: str = dispy_node_name  # type: ignore[name-defined]  # noqa: F821
    return name


def remember(*args: object) -> int:
    global remembered
    remembered = args
    return 0


def recall(path: str = "") -> tuple[object, ...]:
    return (*remembered, Path(path).read_text() if path else "")


@pytest.fixture
def pair(start_node: StartNode) -> tuple[NodeProcess, NodeProcess]:
    return start_node("--name", "one"), start_node("--name", "two")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that jobs wait for; it's there at the latest when the test ends."""
    path = tmp_path / "gate"
    yield path
    path.touch()


# -- entries ---------------------------------------------------------------------------------------


def test_each_node_gets_its_own_files_and_arguments(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, tmp_path: Path
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"of {name}")
    cluster = new_cluster(
        recall,
        entry(pair[0], depends=["a.txt"], setup_args=("one", {"list": [1]})),
        entry(pair[1], depends=[tmp_path / "b.txt"], setup_args=("two",)),
        setup=remember,
    )
    ready(cluster, "one", "two")
    assert cluster.submit_node("one", "a.txt")() == ("one", {"list": [1]}, "of a.txt")
    assert cluster.submit_node("two", "b.txt")() == ("two", "of b.txt")
    assert "FileNotFoundError" in str(ended(cluster.submit_node("two", "a.txt")).exception)


def test_entries_may_be_tuples_and_dicts(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("data")
    cluster = new_cluster(
        recall,
        (pair[0].host, pair[0].port, 1, ["data"], ("by tuple",)),
        {"host": pair[1].address, "cpus": 1, "setup_args": ("by dict",)},
        setup=remember,
    )
    nodes = ready(cluster, "one", "two")
    assert [node.avail_cpus for node in nodes] == [1, 1]
    assert cluster.submit_node("one", "data")() == ("by tuple", "data")
    assert cluster.submit_node("two")() == ("by dict", "")


@pytest.mark.parametrize(("asked", "used"), [(0, 2), (1, 1), (5, 2), (-1, 1)])
def test_cpus_are_limited_by_the_entry(
    node: NodeProcess, new_cluster: NewCluster, gate: Path, asked: int, used: int
) -> None:
    cluster = new_cluster(wait_for, entry(node, cpus=asked))
    jobs = [cluster.submit(gate) for _ in range(4)]
    until(lambda: any(known.busy == used for known in cluster.status().nodes), "jobs that run")
    [known] = cluster.status().nodes
    assert not cluster.wait(0.1)
    assert (known.cpus, known.avail_cpus, known.busy) == (2, used, used)
    gate.touch()
    all_ended(jobs)


def wait_for(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.005)


@embedded_only("a broker dials addresses, not patterns")
def test_an_explicit_entry_goes_before_a_pattern(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster
) -> None:
    pattern = NodeAllocate(f"{pair[1].host[:3]}*", pair[1].port, setup_args=("by pattern",))
    exact = entry(pair[0], setup_args=("exactly",))
    cluster = new_cluster(recall, pattern, exact, setup=remember)
    ready(cluster, "one", "two")
    assert cluster.submit_node("one")() == ("exactly", "")
    assert cluster.submit_node("two")() == ("by pattern", "")


# -- allocate() of one's own -----------------------------------------------------------------------


class Asked(NodeAllocate):
    """Writes down what it was asked, and gives what it was told to."""

    answer: Any = 1

    def __init__(self, host: str, port: int, answer: Any = None, **more: Any) -> None:
        super().__init__(host, port, **more)
        self.asked: list[dict[str, Any]] = []
        self.answer = answer

    def allocate(
        self,
        cluster: dispy.JobCluster,
        ip_addr: str,
        name: str,
        cpus: int,
        avail_info: DispyNodeAvailInfo | None = None,
        platform: str = "",
    ) -> int:
        self.asked.append(dict(locals(), thread=threading.current_thread().name))
        self.setup_args = (name, len(self.asked))
        if isinstance(self.answer, Exception):
            raise self.answer
        answer: int = cpus if self.answer is None else self.answer
        return answer


@embedded_only("a subclass's allocate() is code of a client, which a broker doesn't run")
def test_allocate_is_given_what_is_known_of_a_node(
    start_node: StartNode, new_cluster: NewCluster
) -> None:
    node = start_node("--name", "asked")
    allocate = Asked(f"{node.host[:-1]}*", node.port)
    cluster = new_cluster(recall, allocate, setup=remember)
    assert cluster.submit()() == ("asked", 1, "")
    [asked] = allocate.asked
    assert asked["cluster"] is cluster
    assert (asked["ip_addr"], asked["name"], asked["cpus"]) == (node.host, "asked", 2)
    assert asked["platform"] == platform.platform()
    assert_sensible(asked["avail_info"])
    assert asked["thread"] == "dispy-callbacks"


def assert_sensible(info: object) -> None:
    assert isinstance(info, DispyNodeAvailInfo)
    assert 0 <= info.cpu <= 100 and 0 <= info.swap <= 100
    assert info.memory > 1 << 20 and info.disk > 1 << 20


@embedded_only("a subclass's allocate() is code of a client, which a broker doesn't run")
def test_allocate_decides_for_each_node(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster
) -> None:
    class OnlyOne(NodeAllocate):
        def allocate(
            self, cluster: object, ip_addr: str, name: str, cpus: int, *more: Any, **other: Any
        ) -> int:
            return 1 if name == "one" else 0

    cluster = new_cluster(where, *[entry(node, OnlyOne) for node in pair])
    [one] = ready(cluster, "one")
    assert {job() for job in [cluster.submit() for _ in range(20)]} == {"one"}
    assert (one.cpus, one.avail_cpus) == (2, 1)
    assert [node.name for node in cluster.status().nodes] == ["one"]


@embedded_only("a subclass's allocate() is code of a client, which a broker doesn't run")
def test_the_next_entry_is_asked_when_one_has_no_use_for_a_node(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    entries = [Asked(node.host, node.port, answer) for answer in (0, 1, None)]
    cluster = new_cluster(recall, *entries, setup=remember)
    result = cluster.submit()()
    assert result[1:] == (1, "")
    assert [len(each.asked) for each in entries] == [1, 1, 0]
    assert cluster.status().nodes[0].avail_cpus == 1


@embedded_only("a subclass's allocate() is code of a client, which a broker doesn't run")
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [(ValueError("no such shelf"), "no such shelf"), ("two", "'two'"), (None, "")],
    ids=["raises", "a string", "0"],
)
def test_a_node_that_allocate_does_not_want_is_not_used_and_jobs_wait(
    pair: tuple[NodeProcess, NodeProcess],
    new_cluster: NewCluster,
    caplog: pytest.LogCaptureFixture,
    answer: Any,
    complaint: str,
) -> None:
    with caplog.at_level(logging.WARNING):
        allocate = Asked(pair[0].host, pair[0].port, 0 if answer is None else answer)
        cluster = new_cluster(where, allocate)
        job = cluster.submit()
        until(lambda: allocate.asked and complaint in caplog.text, "a question")
        until(lambda: "allocate() returned 0" in job.explain(), "an explanation")
    assert not job.finish.wait(0.1)
    assert cluster.status().nodes == []
    assert cluster.allocate_node(pair[1].address) == 0
    assert finished(job).result == "two"
    assert len(allocate.asked) <= 2


@embedded_only("a subclass's allocate() is code of a client, which a broker doesn't run")
def test_no_more_cpus_are_used_than_there_are(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster(where, Asked(node.host, node.port, 1000))
    finished(cluster.submit())
    assert cluster.status().nodes[0].avail_cpus == 2


@embedded_only("a subclass's allocate() is code of a client, which a broker doesn't run")
def test_arguments_that_cannot_be_sent_are_logged(
    pair: tuple[NodeProcess, NodeProcess],
    new_cluster: NewCluster,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Bad(NodeAllocate):
        def allocate(self, *args: Any, **more: Any) -> int:
            self.setup_args = (threading.Lock(),)
            return super().allocate(*args, **more)

    with caplog.at_level(logging.ERROR):
        cluster = new_cluster(where, entry(pair[0], Bad), pair[1])
        assert {job() for job in [cluster.submit() for _ in range(10)]} == {"two"}
        until(lambda: "lock" in caplog.text and "one" in caplog.text, "an error in the log")


@embedded_only("a subclass's allocate() is code of a client, which a broker doesn't run")
def test_files_may_be_chosen_for_each_node(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster, tmp_path: Path
) -> None:
    class Volume(NodeAllocate):
        def allocate(
            self, cluster: object, ip_addr: str, name: str, cpus: int, *more: Any, **other: Any
        ) -> int:
            path = tmp_path / f"volume-{name}"
            path.write_text(f"made for {name}")
            self.depends = [str(path)]
            self.setup_args = (path.name,)
            return cpus

    cluster = new_cluster(recall, *[entry(node, Volume) for node in pair], setup=remember)
    for name in ("one", "two"):
        ready(cluster, name)
        result = cluster.submit_node(name, f"volume-{name}")()
        assert result == (f"volume-{name}", f"made for {name}")


@embedded_only("a subclass's allocate() is code of a client, which a broker doesn't run")
def test_a_node_added_later_is_asked_about(
    pair: tuple[NodeProcess, NodeProcess], new_cluster: NewCluster
) -> None:
    cluster = new_cluster(where, pair[0])
    ready(cluster, "one")
    allocate = Asked(pair[1].host, pair[1].port, 1)
    assert cluster.allocate_node(allocate) == 0
    [two] = ready(cluster, "two")
    assert two.avail_cpus == 1 and len(allocate.asked) == 1


# -- what nodes have to spare ----------------------------------------------------------------------


@embedded_only("the pulse is an option of the broker")
def test_nodes_tell_what_they_have_to_spare_at_each_pulse(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    told: list[tuple[float, DispyNode, DispyJob | None, DispyNodeAvailInfo | None]] = []

    def on_change(status: int, known: DispyNode | None, job: DispyJob | None) -> None:
        if status == DispyNode.AvailInfo:
            assert known is not None
            told.append((time.monotonic(), known, job, known.avail_info))

    cluster = new_cluster(where, node, cluster_status=on_change, pulse_interval=PULSE_S)
    finished(cluster.submit())
    until(lambda: len(told) >= 8, "eight pulses", 8 * PULSE_S + 5)
    [known] = cluster.status().nodes
    for _, about, job, info in told:
        assert about is known and job is None
        assert_sensible(info)
    pause = (told[-1][0] - told[1][0]) / (len(told) - 2)  # the first comes with the node
    assert pause == pytest.approx(PULSE_S, rel=0.5)
    cluster.close()
    count = len(told)
    assert not threading.Event().wait(2 * PULSE_S)  # in which more would come
    assert len(told) == count


def burn(gate: Path) -> None:
    while not gate.exists():
        sum(range(1000))


def test_a_busy_node_says_so(node: NodeProcess, new_cluster: NewCluster, gate: Path) -> None:
    free: list[float] = []

    def on_change(status: int, known: DispyNode | None, job: DispyJob | None) -> None:
        if status == DispyNode.AvailInfo and known is not None and known.avail_info:
            free.append(known.avail_info.cpu)

    cluster = new_cluster(burn, node, cluster_status=on_change, pulse_interval=PULSE_S)
    jobs = [cluster.submit(gate) for _ in range(2)]
    until(lambda: free and free[-1] < 60, "less to spare")
    gate.touch()
    all_ended(jobs)
