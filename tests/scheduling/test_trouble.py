"""When the disk is full, no jobs are taken, and everything else goes on."""

from __future__ import annotations

from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    FINISHED,
    Accepted,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Credit,
    NodeTrouble,
    Rejected,
    ResultsHeard,
)

from .shared_stage import SharedStage

FULL = "the disk of the broker's journal is full"


def busy() -> SharedStage:
    """Return a stage where job 1 runs and job 2 waits, and then the disk is full."""
    stage = SharedStage(Settings(durable=True, shared=True))
    stage.client("a")
    stage.open("a")
    stage.node("n")
    stage.give("a", 1, 2)
    stage.take(Accepted), stage.take(Credit)
    stage.scheduler.set_trouble(FULL)
    stage.flush()
    return stage


def test_new_jobs_are_rejected_with_the_reason() -> None:
    stage = busy()
    stage.give("a", 3, 4)
    rejected = stage.one(Rejected)
    assert (rejected.jobs, rejected.reason, rejected.limit) == ([3, 4], FULL, 2)
    assert stage.take(Accepted) == [] == stage.take(Credit)


def test_jobs_that_were_taken_before_are_not_rejected() -> None:
    stage = busy()
    stage.give("a", 1, 2, 3)
    assert stage.one(Rejected).jobs == [3]
    assert stage.one(Accepted).jobs == [(1, 2)]


def test_what_was_taken_before_goes_on() -> None:
    stage = busy()
    number = stage.cluster("a").id
    stage.finish("n", number, 1)
    assert 2 in stage.runs()["n"]
    stage.finish("n", number, 2)
    assert stage.results() == {1: FINISHED, 2: FINISHED}
    assert stage.take(Credit) == []
    stage.tell("a", ResultsHeard(1, sorted(stage.kept_results())))
    assert stage.kept_results() == set()


def test_when_there_is_room_again_jobs_are_asked_for() -> None:
    stage = busy()
    stage.give("a", 3)
    rejected = stage.one(Rejected)
    stage.scheduler.set_trouble("")
    stage.flush()
    assert stage.one(Credit).limit > rejected.limit
    stage.give("a", 3)
    assert stage.one(Accepted).jobs == [(3, 3)]


def test_a_cluster_is_opened_once_there_is_room() -> None:
    stage = busy()
    stage.take(ClusterOpened), stage.take(NodeTrouble)
    stage.client("b")
    stage.open("b", 7)
    stage.open("b", 7)
    trouble = stage.take(NodeTrouble)[0][1]
    assert (trouble.cluster, trouble.address, trouble.reason) == (7, "broker", FULL)
    assert stage.take(ClusterOpened) == []
    stage.scheduler.set_trouble("")
    stage.flush()
    assert stage.one(ClusterOpened).cluster == 7
    stage.prepared()
    stage.give("b", 1, number=7)
    assert stage.one(Accepted).cluster == 7


def test_a_cluster_that_waits_to_be_opened_can_be_closed() -> None:
    stage = busy()
    stage.client("b")
    stage.open("b")
    stage.tell("b", CloseCluster(1))
    assert len(stage.said(ClusterClosed, "b")) == 1
    stage.scheduler.set_trouble("")
    stage.flush()
    assert not stage.of("b").clusters


def test_a_client_in_a_new_session_opens_its_clusters_itself() -> None:
    stage = busy()
    stage.client("b")
    stage.open("b")
    stage.client("b")
    stage.scheduler.set_trouble("")
    stage.flush()
    assert not stage.of("b").clusters


def test_a_client_that_has_left_is_not_remembered() -> None:
    stage = busy()
    stage.client("b")
    stage.open("b")
    stage.leave("b")
    stage.scheduler.set_trouble("")
    stage.flush()
    assert "b" not in stage.scheduler.clients and len(stage.scheduler.clusters) == 1
