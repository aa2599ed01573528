"""What people ask of a broker, and how nodes and clusters are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispy.broker.operation import JOBS_MAX
from dispy.broker.overview import PART
from dispy.broker.settings import FIFO
from dispy.broker.state import About
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    CANCEL,
    CANCELLED,
    DRAIN,
    RESUME,
    SERIALS,
    STATUS,
    WHY,
    Kill,
    NodeSpec,
    Operate,
    Pulse,
    Report,
)

from .operators import PEOPLE, SharedStage
from .stage import VITALS, text_of


def test_the_state_of_all() -> None:
    stage = SharedStage()
    state = stage.scheduler.state
    state.about = About("lab", "1.2", 100.0, "/var/lib/dispy", 4096)
    state.wall_offset_s = 1000.0
    stage.now = 10.0
    stage.node("a", 2)
    stage.tell("a", Pulse(VITALS))
    stage.node("b", 1)
    stage.submit(*range(1, 7))
    stage.runs()
    stage.done("b", 3)
    status = stage.status()
    assert (status.name, status.software, status.policy) == ("lab", "1.2", "fair")
    assert (status.journal, status.journal_bytes) == ("/var/lib/dispy", 4096)
    assert status.trouble == "" and status.clients == 1
    a, b = status.nodes
    assert (a.name, a.cpus, a.state, a.running, a.held, a.done) == ("a", 2, "up", 2, 2, 0)
    assert a.vitals == VITALS and a.since == 1010.0 and a.clusters == [stage.number]
    assert (b.running, b.done, b.vitals) == (1, 1, None)
    [cluster] = status.clusters
    assert (cluster.id, cluster.label, cluster.state) == (stage.number, "c", "open")
    assert (cluster.waiting, cluster.running, cluster.ended) == (2, 3, 1)
    assert cluster.cpus == 3 and cluster.used_s == 10.0
    assert cluster.rate == status.rate > 0.0


def test_a_long_report_comes_in_parts() -> None:
    stage = SharedStage()
    for number in range(2 * PART + 1):
        stage.join(f"node{number}")
    stage.tell(PEOPLE, Operate(5, STATUS))
    reports = [report for _, report in stage.take(Report)]
    assert [report.more for report in reports] == [True, True, False]
    assert len(stage.status().nodes) == 2 * PART + 1


def test_rates_are_of_late() -> None:
    stage = SharedStage()
    stage.node("a")
    for seq in range(1, 101):  # two a second
        stage.now += 0.5
        stage.submit(seq)
        stage.done("a", seq)
    assert 1.5 < stage.status().rate < 2.1
    stage.now += 600.0
    assert stage.status().rate < 0.001


def test_what_the_state_of_a_node_can_be() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.scheduler.away("a", "silent", False, 0.0)
    assert stage.state_of("a") == ("away", "it can't be reached at present")
    stage.scheduler.back("a")
    assert stage.state_of("a") == ("up", "")


def test_the_state_of_a_cluster() -> None:
    stage = SharedStage()
    stage.open(2, exclusive=True)
    stage.scheduler.away("client", "silent", False, 0.0)
    assert {each.state for each in stage.status().clusters} == {"away"}
    stage.scheduler.back("client")
    first, second = stage.status().clusters
    assert (first.state, second.state, second.exclusive) == ("open", "waiting", True)


def test_only_clients_may_ask() -> None:
    stage = SharedStage()
    stage.node("a")
    with pytest.raises(ProtocolError):
        stage.tell("a", Operate(1, STATUS))


def test_what_is_not_known() -> None:
    assert "doesn't know how to 'dance'" in SharedStage().operate("dance").error


# -- names ----------------------------------------------------------------------------------


def test_nodes_by_any_name() -> None:
    stage = SharedStage()
    number = stage.node("host1", place="one")
    for name in ("host1", "127.0.0.1:9705", "127.0.0.1", str(number)):
        assert stage.operate(DRAIN, name).error == ""
        assert stage.state_of("host1")[0] == "drained"
        assert stage.operate(RESUME, name).error == ""
    stage.node("host22", place="two")
    error = stage.operate(DRAIN, "127.0.0.1").error
    assert "several nodes are meant by '127.0.0.1'" in error
    assert "host1 (127.0.0.1:9705)" in error and "host22 (127.0.0.1:9706)" in error
    error = stage.operate(DRAIN, "host3").error
    assert error.startswith("there is no node 'host3'; there is host1 (127.0.0.1:9705), host22")


def test_clusters_by_any_name() -> None:
    stage = SharedStage()
    number = stage.open(2, "program", label="simulation")
    state = stage.scheduler.state
    state.clusters[number].meta.user = "ann@lab"
    names = ("simulation", str(number), str(number % SERIALS), "ann:simulation")
    for name in (*names, "ann@lab:simulation"):
        assert "'simulation'" in stage.operate(WHY, name).text
    assert "there is no cluster 'bob:simulation'" in stage.operate(WHY, "bob:simulation").error
    other = stage.open(3, "program", label="simulation")
    error = stage.operate(CANCEL, "simulation").error
    assert "several clusters" in error and str(other % SERIALS) in error


def test_nothing_is_there() -> None:
    stage = SharedStage()
    assert stage.operate(DRAIN, "x").error == "there is no node 'x'; there are none"


# -- cancelling -----------------------------------------------------------------------------


def test_jobs_are_cancelled() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.submit(1, 2, 3)
    assert stage.operate(CANCEL, "c", (1, 3, 9)).text == (
        "2 jobs of cluster 1 (c) cancelled; not waiting or running there: 9"
    )
    ends = stage.ends()
    assert {seq: each.status for seq, each in ends.items()} == {3: CANCELLED}
    assert text_of(ends[3]) == "cancelled by an operator"
    [(peer, kill)] = stage.take(Kill)
    assert (peer, kill.jobs) == ("a", [(1, 1)])


@pytest.mark.parametrize("durable", [False, True])
def test_all_jobs_are_cancelled(durable: bool) -> None:
    stage = SharedStage(durable)
    stage.node("a")
    stage.submit(*range(1, 11))
    assert stage.operate(CANCEL, "c").text == "10 jobs of cluster 1 (c) cancelled"
    assert sorted(stage.results()) == list(range(2, 11))
    assert [kill.jobs for _, kill in stage.take(Kill)] == [[(1, 1)]]
    stage.submit(11)  # the cluster stays open
    stage.done("a", 1)
    assert stage.runs()["a"][-1] == 11


def test_a_cluster_whose_client_is_away_is_closed() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.submit(1, 2)
    stage.scheduler.away("client", "silent", False, 0.0)
    assert "it is closed, since its client is away" in stage.operate(CANCEL, "c").text
    [cluster] = stage.scheduler.clusters.values()
    assert cluster.closing
    assert "has been closed" in stage.operate(CANCEL, "c").error


# -- why ------------------------------------------------------------------------------------


def test_why_of_several_jobs() -> None:
    stage = SharedStage(nodes=(NodeSpec("*"),))
    stage.node("a")
    stage.submit(1, 2)
    lines = stage.operate(WHY, "c", (1, 2, 3)).text.splitlines()
    assert lines[0].startswith("Job 1: It has been given to node a")
    assert lines[1].startswith("Job 2: It waits; 0 jobs of the cluster go before it.")
    assert lines[2].startswith("Job 3: It has not been sent to the broker yet.")
    too_many = tuple(range(JOBS_MAX + 1))
    assert "at most 100 jobs" in stage.operate(WHY, "c", too_many).error


def test_why_of_a_cluster() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.submit(1, 2, 3)
    assert stage.operate(WHY, "c").text.splitlines()[0] == (
        "2 jobs of cluster 'c' wait, and nodes have 1."
    )


def test_rivals_are_named() -> None:
    stage = SharedStage()
    stage.node("a")
    number = stage.open(2, "other")
    stage.prepare()
    stage.submit(1, 2)
    stage.submit_to(2, 1, 2)
    text = stage.operate(WHY, str(number), (2,)).text
    assert "1 other cluster has jobs as well." in text
    assert "entitled to 50 % of 1 CPU at present" in text
    assert "number 1 of 2 that wait for CPUs. The lowest goes first: by weight" in text
    state = stage.scheduler.state
    state.settings = replace(state.settings, policy=FIFO)
    text = stage.operate(WHY, str(number), (2,)).text
    assert "The cluster that was opened first goes first." in text


def test_an_exclusive_cluster_waits() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.open(2, "alone", exclusive=True)
    stage.submit_to(2, 1)
    text = stage.operate(WHY, "alone", (1,)).text
    assert "The cluster is exclusive, and waits until another cluster has been closed." in text


def test_jobs_are_not_taken_at_present() -> None:
    stage = SharedStage()
    stage.scheduler.set_trouble("the disk is full")
    assert stage.status().trouble == "the disk is full"
    text = stage.operate(WHY, "c", (1,)).text
    assert "The broker takes no new jobs at present: the disk is full." in text


def test_each_question_gets_one_answer() -> None:
    stage = SharedStage()
    for action in (STATUS, DRAIN, RESUME, CANCEL, WHY, "?"):
        stage.tell(PEOPLE, Operate(5, action, "nothing"))
        [(peer, report)] = stage.take(Report)
        assert (peer, report.request) == (PEOPLE, 5)
        assert bool(report.error) == (action != STATUS)


def test_cancelling_only_jobs_that_are_not_there_is_refused() -> None:
    stage = SharedStage()
    stage.submit(1)
    answer = stage.operate(CANCEL, "c", (500, 501))
    assert answer.error.endswith("not waiting or running there: 500, 501") and not answer.text
