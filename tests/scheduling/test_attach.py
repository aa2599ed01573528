"""Clusters are taken over by other clients, and what their old ones are told."""

from __future__ import annotations

import pytest

from dispy.broker import attaching
from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    CANCELLED,
    FINISHED,
    Attached,
    ClusterClosed,
    ClusterLost,
    ClusterOpened,
    NodeReady,
    Release,
    Results,
    ResultsHeard,
)

from .shared_stage import SharedStage

LEASE_S = 3600.0


def abandoned() -> SharedStage:
    """Return a stage where client a is away; job 1 runs, job 2 has ended, 3 to 5 wait."""
    stage = SharedStage(Settings(durable=True, shared=True, client_lease_s=LEASE_S))
    stage.client("a")
    stage.open("a", label="runs")
    stage.node("n")
    stage.give("a", 2, 1, 3, 4, 5)
    stage.finish("n", stage.cluster("a").id, 2)
    stage.take(Results), stage.take(NodeReady), stage.take(ClusterOpened)
    stage.go_away("a")
    stage.client("b", "bob@there")
    return stage


def refusal(stage: SharedStage, client: str = "b") -> str:
    """Return why a client doesn't get a cluster."""
    [lost] = stage.said(ClusterLost, client)
    assert isinstance(lost, ClusterLost)
    return lost.reason


def test_a_cluster_is_taken_over_by_its_label() -> None:
    stage = abandoned()
    number = stage.cluster("a").id
    stage.attach("b", 4, label="runs")
    attached = stage.one(Attached)
    assert (attached.cluster, attached.computation, attached.label) == (4, number, "runs")
    assert (attached.pending, attached.unheard) == ([(1, 1), (3, 5)], 1)
    [(peer, results)] = stage.take(Results)
    assert (peer, results.cluster, [each.seq for each in results.results]) == ("b", 4, [2])
    assert stage.said(NodeReady, "b") and not attached.is_program
    meta = stage.last_kept(number).meta
    assert (meta.owner, meta.number, meta.user) == ("b", 4, "ann@here")


def test_jobs_go_on_for_the_new_client() -> None:
    stage = abandoned()
    number = stage.cluster("a").id
    stage.attach("b", 4, label="runs")
    stage.take(Results)
    stage.finish("n", number, 1)
    [(peer, results)] = stage.take(Results)
    assert peer == "b" and results.cluster == 4
    stage.tell("b", ResultsHeard(4, sorted(stage.kept_results())))
    assert stage.kept_results() == set()
    stage.close("b", 4)
    assert stage.said(ClusterClosed, "b") and stage.dropped() == {number}


def test_a_cluster_is_found_by_what_its_client_called_it() -> None:
    stage = abandoned()
    stage.attach("b", owner="a", number=1)
    assert stage.one(Attached).label == "runs"
    stage.go_away("b")
    stage.client("c")
    stage.attach("c", 9, owner="a", number=1)  # the recover file knows nothing of b
    assert stage.one(Attached).cluster == 9
    assert "c" in stage.scheduler.clients and not stage.of("b").clusters


def test_a_cluster_is_found_by_the_number_of_the_broker() -> None:
    stage = abandoned()
    stage.attach("b", label=str(stage.cluster("a").id))
    assert stage.one(Attached).label == "runs"


def test_a_cluster_is_found_by_user_and_label() -> None:
    stage = abandoned()
    stage.attach("b", label="ann@here:runs")
    assert stage.one(Attached).label == "runs"


def test_what_there_is_is_said_when_nothing_fits() -> None:
    stage = abandoned()
    stage.attach("b", label="rums")
    reason = refusal(stage)
    assert "no cluster 'rums'" in reason and "ann@here:runs" in reason
    stage.attach("b", owner="nobody", number=3)
    assert "doesn't know" in refusal(stage)
    stage.leave("a")
    stage.release(1)
    stage.attach("b", label="runs")
    assert "none at all" in refusal(stage)


def test_a_label_that_several_have_is_refused_unless_one_is_the_own() -> None:
    stage = abandoned()
    stage.open("b", 2, label="runs")
    stage.open("b", 3, label="runs")
    stage.go_away("b")
    stage.client("c", "carl@there")
    stage.attach("c", label="runs")
    reason = refusal(stage, "c")
    assert "3 clusters" in reason and "number 1" in reason and "number 3" in reason
    stage.client("d", "ann@here")
    stage.attach("d", label="runs")
    assert stage.one(Attached).computation == 1


def test_a_cluster_of_a_client_that_is_there_is_only_taken_by_force() -> None:
    stage = abandoned()
    stage.come_back("a")
    stage.attach("b", label="runs")
    assert "is running, at host-of-a" in refusal(stage)
    stage.attach("b", label="runs", force=True)
    assert stage.one(Attached).label == "runs"
    assert "taken over by host-of-b (bob@there)" in refusal(stage, "a")
    assert not stage.of("a").clusters


def test_the_old_client_is_told_when_it_comes_back() -> None:
    stage = abandoned()
    stage.wait(60.0)  # its session is over
    stage.attach("b", label="runs")
    assert "a" not in stage.scheduler.clients and stage.take(ClusterLost) == []
    stage.client("a")
    stage.open("a")
    assert "taken over" in refusal(stage, "a")
    assert stage.take(ClusterOpened) == []


def test_a_cluster_may_be_taken_back() -> None:
    stage = abandoned()
    stage.attach("b", label="runs")
    stage.come_back("a")
    stage.attach("a", 1, label="runs", force=True)
    assert stage.cluster("a").meta.before == [("b", 1)]
    stage.client("a")
    stage.open("a")
    assert stage.one(ClusterOpened).known


def test_attaching_twice_is_answered_twice() -> None:
    stage = abandoned()
    stage.attach("b", owner="a", number=1)
    stage.client("b", "bob@there")
    stage.attach("b", owner="a", number=1)
    assert len(stage.take(Attached)) == 2
    stage.attach("b", 8, label="runs")
    assert "already, as number 1" in refusal(stage)


def test_a_number_that_is_in_use_is_refused() -> None:
    stage = abandoned()
    stage.open("b", 2)
    stage.attach("b", 2, label="runs")
    assert "another cluster" in refusal(stage)


def test_results_of_a_client_that_was_given_up_can_be_had() -> None:
    stage = abandoned()
    number = stage.cluster("a").id
    stage.wait(LEASE_S)
    stage.attach("b", label="runs")
    attached = stage.one(Attached)
    assert attached.pending == [] and attached.unheard == 5
    ends = stage.results()
    assert ends[2] == FINISHED and {ends[seq] for seq in (1, 3, 4, 5)} == {CANCELLED}
    assert len(stage.take(Release)) == 1
    stage.close("b")
    assert stage.dropped() == {number}


def test_results_that_were_attached_are_not_dropped_while_the_client_is_there() -> None:
    settings = Settings(durable=True, shared=True, client_lease_s=60.0, retain_s=100.0)
    stage = SharedStage(settings)
    stage.client("a")
    stage.open("a")
    stage.give("a", 1)
    stage.go_away("a")
    stage.wait(60.0)
    stage.client("b")
    stage.attach("b", owner="a", number=1)
    stage.wait(1000.0)
    assert stage.dropped() == set()
    stage.go_away("b")
    stage.wait(99.0)
    assert stage.dropped() == set()
    stage.wait(1.0)
    assert stage.dropped() == {1}


def test_what_was_attached_stays_when_its_client_says_goodbye() -> None:
    stage = abandoned()
    stage.attach("b", 1, label="runs")
    stage.open("b", 2)
    stage.leave("b")
    assert [each.number for each in stage.scheduler.clusters.values() if not each.closing] == [1]
    stage.client("c")
    stage.attach("c", label="runs")
    assert len(stage.take(Attached)) == 2


def test_a_cluster_that_is_being_closed_is_not_taken_over() -> None:
    stage = abandoned()
    stage.come_back("a")
    stage.leave("a")
    stage.attach("b", label="runs")
    assert "being closed" in refusal(stage)


def test_what_was_taken_is_remembered_after_a_start() -> None:
    stage = abandoned()
    number = stage.cluster("a").id
    stage.attach("b", 4, label="runs")
    stage.restart()
    stage.client("a")
    stage.open("a")
    assert "taken over" in refusal(stage, "a")
    stage.client("c")
    stage.attach("c", owner="a", number=1)
    assert stage.one(Attached).computation == number
    assert stage.cluster("c").meta.before == [("a", 1), ("b", 4)]


def test_what_was_taken_is_remembered_even_when_it_was_closed_before_the_start() -> None:
    stage = abandoned()
    stage.wait(60.0)
    stage.attach("b", 4, label="runs")
    stage.close("b", 4)
    assert not stage.store.clusters
    stage.restart()
    stage.client("a")
    stage.open("a")
    assert "taken over" in refusal(stage, "a")
    assert stage.take(ClusterOpened) == [] and not stage.scheduler.clusters


def test_what_was_taken_back_is_not_remembered_after_a_start() -> None:
    stage = abandoned()
    stage.attach("b", label="runs")
    stage.attach("a", 1, label="runs", force=True)
    stage.restart()
    assert stage.scheduler.state.taken.keys() == {("b", 1)}
    stage.client("a")
    stage.open("a")
    assert stage.one(ClusterOpened).known


def test_a_cluster_is_taken_over_after_a_start() -> None:
    stage = abandoned()
    stage.restart()
    stage.client("b", "bob@there")
    stage.attach("b", label="runs")
    attached = stage.one(Attached)
    assert (attached.pending, attached.unheard) == ([(1, 1), (3, 5)], 1)
    assert stage.results() == {2: FINISHED}


def test_what_was_taken_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attaching, "TAKEN_MAX", 2)
    stage = abandoned()
    for name in ("b", "c", "d"):
        stage.client(name)
        stage.attach(name, label="runs", force=True)
    assert stage.scheduler.state.taken.keys() == {("b", 1), ("c", 1)} == stage.store.taken.keys()
