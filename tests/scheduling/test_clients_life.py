"""Clients go away, come back, and are given up; what becomes of their clusters then."""

from __future__ import annotations

import msgspec
import pytest

from dispy.broker.clients import SESSION_S
from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FILE,
    FINISHED,
    PROVISIONAL,
    CancelJobs,
    CloseCluster,
    ClusterOpened,
    Code,
    Define,
    Holding,
    Inventory,
    JobRecord,
    JobSpec,
    JobsRunning,
    Kill,
    NodeReady,
    NodeVitals,
    OpenCluster,
    Prepare,
    Pulse,
    Records,
    RecordsHeard,
    Release,
    Results,
    ResultsHeard,
    Run,
    Started,
)

from . import shared_stage
from .shared_stage import WALL_S, SharedStage
from .stage import CLIENT, LAYER, VITALS, Stage

LEASE_S = 3600.0
RETAIN_S = 86400.0


def durable() -> SharedStage:
    settings = Settings(durable=True, shared=True, client_lease_s=LEASE_S, retain_s=RETAIN_S)
    return SharedStage(settings)


def with_jobs(*seqs: int) -> SharedStage:
    """Return a stage with one client, one cluster, and jobs of which a node has the first."""
    stage = durable()
    stage.client("a")
    stage.open("a")
    stage.node("n")
    stage.give("a", *seqs)
    return stage


# -- away and back --------------------------------------------------------------------------


def test_a_client_is_told_whether_its_cluster_is_known() -> None:
    stage = durable()
    stage.client("a")
    stage.open("a")
    first = stage.one(ClusterOpened)
    assert first.durable and not first.known
    stage.client("a")
    stage.open("a")
    again = stage.one(ClusterOpened)
    assert again.known and again.computation == first.computation
    assert not Stage().one(ClusterOpened).durable


def test_a_broker_may_say_how_often_nodes_have_pulses() -> None:
    stage = SharedStage(Settings(durable=True, shared=True, pulse_s=0.25))
    stage.client("a")
    stage.open("a")
    stage.node("n", ready=False)
    assert stage.one(Prepare).spec.pulse_interval == 0.25
    stage.restart()
    assert stage.cluster("a").computation.pulse_interval == 0.25


def test_jobs_go_on_while_their_client_is_away() -> None:
    stage = with_jobs(1, 2, 3)
    number = stage.cluster("a").id
    stage.go_away("a")
    stage.wait(SESSION_S + 1)
    stage.finish("n", number, 1)
    stage.finish("n", number, 2)
    assert stage.take(Results) == [] and stage.forgotten == ["a"]
    stage.client("a")
    stage.open("a")
    assert stage.results() == {1: FINISHED, 2: FINISHED}
    stage.finish("n", number, 3)
    assert stage.results() == {3: FINISHED}


def test_a_short_absence_is_not_noticed() -> None:
    stage = with_jobs(1)
    stage.go_away("a")
    stage.wait(SESSION_S / 2)
    stage.come_back("a")
    stage.wait(10 * LEASE_S)
    assert stage.forgotten == [] and stage.of("a").clusters
    stage.finish("n", stage.cluster("a").id, 1)
    assert stage.results() == {1: FINISHED}


def test_results_that_were_not_heard_are_sent_again() -> None:
    stage = with_jobs(1, 2)
    number = stage.cluster("a").id
    stage.finish("n", number, 1)
    first = stage.one(Results)
    stage.finish("n", number, 2)
    second = stage.one(Results)
    stage.tell("a", ResultsHeard(1, [first.record]))
    stage.client("a")
    stage.open("a")
    assert stage.one(Results).record == second.record
    assert stage.kept_results() == {second.record}


def test_a_new_session_learns_of_nodes_and_of_what_runs() -> None:
    stage = with_jobs(1)
    stage.tell("n", Started(stage.cluster("a").id, [(1, 1, 5.0)]))
    stage.take(NodeReady), stage.take(JobsRunning)
    stage.client("a")
    stage.open("a")
    assert stage.one(NodeReady).node.name == "n"
    assert stage.one(JobsRunning).jobs == [(1, 5.0)]


def test_vitals_do_not_pile_up_for_a_client_that_is_away() -> None:
    stage = with_jobs(1)
    stage.take(NodeVitals)
    stage.go_away("a")
    stage.tell("n", Pulse(VITALS))
    assert stage.take(NodeVitals) == []
    stage.come_back("a")
    stage.tell("n", Pulse(VITALS))
    assert len(stage.take(NodeVitals)) == 1


def test_code_that_was_said_in_a_lost_session_is_not_missed() -> None:
    stage = with_jobs(1)
    stage.take(Define)
    more = Code("3.11", JobSpec(0, 0, b"g"))
    opening = stage.openings["a", 1]
    spec = type(opening.computation)("c1", [LAYER, more], pulse_interval=1.0)
    stage.openings["a", 1] = OpenCluster(1, spec, opening.nodes)
    stage.client("a")
    stage.open("a")
    assert stage.one(Define).layers == [more]
    kept = stage.last_kept(stage.cluster("a").id).opened
    assert kept is not None and kept.computation.layers == [LAYER, more]
    stage.client("a")
    stage.open("a")
    assert stage.take(Define) == []


# -- what running jobs say ------------------------------------------------------------------


def test_a_job_is_not_held_up_because_its_client_is_absent() -> None:
    stage = with_jobs(1)
    number = stage.cluster("a").id
    stage.go_away("a")
    stage.wait(SESSION_S)
    stage.tell("n", Records(number, [JobRecord(1, 1, 1, PROVISIONAL, b"")]))
    [(peer, heard)] = stage.take(RecordsHeard)
    assert peer == "n" and heard.jobs[0].number == 1 and not heard.jobs[0].error


def test_files_wait_for_an_absent_client() -> None:
    stage = with_jobs(1)
    number = stage.cluster("a").id
    stage.go_away("a")
    stage.wait(SESSION_S)
    stage.tell("n", Records(number, [JobRecord(1, 1, 1, FILE, b"piece")]))
    stage.tell("n", Records(number, [JobRecord(1, 1, 2, PROVISIONAL, b"")]))
    assert stage.take(RecordsHeard) == [] == stage.take(Records)
    stage.client("a")
    stage.open("a")
    said = [record for _, message in stage.take(Records) for record in message.records]
    assert [(record.number, record.payload) for record in said] == [(1, b"piece"), (2, b"")]
    assert stage.take(RecordsHeard) == []


def test_what_a_lost_session_may_have_swallowed_is_refused() -> None:
    stage = with_jobs(1)
    stage.tell("n", Records(stage.cluster("a").id, [JobRecord(1, 1, 1, FILE, b"piece")]))
    stage.client("a")
    stage.open("a")
    assert "lost" in stage.one(RecordsHeard).jobs[0].error


# -- given up -------------------------------------------------------------------------------


def test_a_client_that_stays_away_is_given_up() -> None:
    stage = with_jobs(1, 2)
    number = stage.cluster("a").id
    stage.go_away("a")
    stage.wait(LEASE_S - 1)
    assert stage.take(Release) == []
    stage.wait(1)
    assert stage.one(Release).computation == number
    stage.release(number)
    meta = stage.last_kept(number).meta
    assert meta.expired and meta.away_since == WALL_S
    assert len(stage.kept_results()) == 2 and stage.dropped() == set()
    stage.wait(RETAIN_S - LEASE_S - 1)
    assert stage.dropped() == set()
    stage.wait(1)
    assert stage.dropped() == {number}
    assert not stage.scheduler.clients and not stage.scheduler.clusters
    assert stage.scheduler.state.clients_due == float("inf")


def test_nothing_is_kept_of_a_client_that_has_heard_all() -> None:
    stage = with_jobs(1)
    number = stage.cluster("a").id
    stage.finish("n", number, 1)
    stage.tell("a", ResultsHeard(1, [stage.one(Results).record]))
    stage.go_away("a")
    stage.wait(LEASE_S)
    stage.release(number)
    assert stage.dropped() == {number} and not stage.scheduler.clients


def test_a_client_that_was_given_up_gets_its_results_and_goes_on() -> None:
    stage = with_jobs(1, 2)
    number = stage.cluster("a").id
    stage.finish("n", number, 1)
    stage.go_away("a")
    stage.wait(LEASE_S)
    stage.release(number)
    stage.take(Results), stage.take(Run), stage.take(ClusterOpened)
    stage.client("a")
    stage.open("a")
    assert stage.one(ClusterOpened).known
    assert stage.results() == {1: FINISHED, 2: CANCELLED}
    stage.prepared()
    stage.give("a", 3)
    assert stage.runs() == {"n": [3]}
    assert not stage.last_kept(number).meta.expired


def test_a_client_may_come_back_while_its_nodes_are_being_released() -> None:
    stage = with_jobs(1)
    number = stage.cluster("a").id
    stage.go_away("a")
    stage.wait(LEASE_S)
    stage.client("a")
    stage.open("a")
    stage.release(number)
    stage.prepared()
    stage.give("a", 2)
    assert stage.runs()["n"][-1] == 2


def test_code_that_was_defined_while_the_client_was_given_up_goes_to_the_nodes() -> None:
    stage = with_jobs(1)
    stage.go_away("a")
    stage.wait(LEASE_S)
    stage.release(stage.cluster("a").id)
    stage.client("a")
    opening = stage.openings["a", 1]
    spec = msgspec.structs.replace(opening.computation, layers=[LAYER, LAYER])
    stage.tell("a", msgspec.structs.replace(opening, computation=spec))
    given = [prepare.spec.layers for _, prepare in stage.take(Prepare)][-1]
    for _, define in stage.take(Define):
        given = given + define.layers
    assert given == [LAYER, LAYER] == stage.cluster("a").computation.layers


def test_without_a_journal_a_client_that_is_given_up_is_forgotten() -> None:
    stage = SharedStage(Settings(shared=True, client_lease_s=LEASE_S))
    stage.client("a")
    stage.open("a")
    stage.give("a", 1)
    stage.go_away("a")
    stage.wait(LEASE_S - 1)
    assert stage.scheduler.clusters and stage.forgotten == []
    stage.wait(1)
    assert not stage.scheduler.clusters and stage.forgotten == ["a"]


def test_a_client_that_says_goodbye_takes_its_clusters_along() -> None:
    stage = with_jobs(1)
    number = stage.cluster("a").id
    stage.leave("a")
    stage.release(number)
    assert stage.dropped() == {number} and not stage.scheduler.clients


def test_the_deadline_does_not_depend_on_clients_that_are_there() -> None:
    stage = durable()
    for each in range(5):
        stage.client(f"c{each}")
    assert stage.scheduler.deadline() == float("inf")
    stage.go_away("c3")
    assert stage.scheduler.deadline() == SESSION_S


# -- the broker is started anew --------------------------------------------------------------


def test_all_clients_are_away_after_a_start() -> None:
    stage = with_jobs(1, 2)
    number = stage.cluster("a").id
    stage.restart()
    assert stage.of("a").absent and stage.of("a").user == "ann@here"
    stage.wait(LEASE_S - 1)
    assert stage.scheduler.clusters and not stage.cluster("a").meta.expired
    stage.wait(1)
    assert stage.last_kept(number).meta.expired


def test_a_client_that_comes_back_after_a_start_finds_all_as_it_was() -> None:
    stage = with_jobs(1, 2)
    number = stage.cluster("a").id
    stage.finish("n", number, 1)
    stage.take(Results)
    stage.restart()
    stage.client("a")
    stage.open("a")
    assert stage.take(ClusterOpened)[-1][1].known
    assert stage.results() == {1: FINISHED}
    assert stage.last_kept(number).meta.away_since == 0.0
    stage.wait(2 * LEASE_S)
    assert not stage.cluster("a").closing


def test_results_of_a_client_that_was_given_up_are_kept_over_a_start() -> None:
    stage = with_jobs(1)
    number = stage.cluster("a").id
    stage.go_away("a")
    stage.wait(LEASE_S)
    stage.release(number)
    stage.restart()
    assert stage.cluster("a").meta.expired
    stage.wait(RETAIN_S - LEASE_S - 1)
    stage.client("a")
    stage.open("a")
    assert stage.results() == {1: CANCELLED}
    stage.go_away("a")
    stage.wait(2 * RETAIN_S)
    assert stage.dropped() == {number} and not stage.store.clusters


def test_a_cluster_that_was_being_closed_is_gone_after_a_start() -> None:
    stage = with_jobs(1)
    stage.tell("a", CloseCluster(1))
    stage.restart()
    assert not stage.scheduler.clusters and not stage.scheduler.clients
    assert not stage.store.clusters


# -- other nodes and jobs -------------------------------------------------------------------


def test_cancelling_a_job_that_was_given_up_ends_it_at_its_node() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1)
    stage.lose("n")
    assert stage.results() == {1: ABANDONED}
    stage.take(Inventory)
    stage.join("n")
    stage.tell("n", Holding([stage.number], [(stage.number, 1, 1)]))
    assert stage.one(Inventory).jobs == [(stage.number, 1, 1)]
    stage.tell(CLIENT, CancelJobs(1, [1]))
    assert stage.one(Kill).jobs == [(1, 1)]
    stage.done("n", 1)
    assert stage.results() == {}


def test_a_job_that_was_given_up_and_cancelled_is_not_wanted_back() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1)
    stage.lose("n")
    stage.tell(CLIENT, CancelJobs(1, [1]))
    stage.take(Inventory)
    stage.join("n")
    stage.tell("n", Holding([stage.number], [(stage.number, 1, 1)]))
    assert stage.one(Inventory).jobs == []


@pytest.mark.parametrize("days", [-30, 30])
def test_a_clock_that_was_wrong_drops_no_results(
    monkeypatch: pytest.MonkeyPatch, days: float
) -> None:
    """It is set right before the broker is started again, or has just become wrong."""
    stage = with_jobs(1)
    computation = stage.cluster("a").id
    stage.finish("n", computation, 1)
    stage.go_away("a")
    stage.wait(stage.settings.client_lease_s + 40.0)
    stage.release(computation)
    assert len(stage.kept_results()) == 1
    monkeypatch.setattr(shared_stage, "WALL_S", shared_stage.WALL_S + days * 86400)
    stage.restart()
    stage.wait(1800.0)
    assert not stage.dropped()
    stage.wait(stage.settings.retain_s)
    assert stage.dropped() == {computation}


def test_a_clock_that_was_wrong_does_not_end_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = with_jobs(1)
    stage.go_away("a")
    stage.wait(40.0)  # its session ends
    monkeypatch.setattr(shared_stage, "WALL_S", shared_stage.WALL_S + 86400)
    stage.restart()
    stage.wait(stage.settings.client_lease_s - 1.0)
    assert not stage.cluster("a").closing
    stage.wait(2.0)
    assert stage.cluster("a").meta.expired
