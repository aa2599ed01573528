"""A broker ends without a word and is started again: all goes on, and nothing is done twice."""

from __future__ import annotations

import pytest

from dispy.broker import tables, unheard
from dispy.broker.drain import drain
from dispy.broker.seen import NUMBER_MAX
from dispy.broker.settings import Settings
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    CancelJobs,
    ClusterOpened,
    Done,
    Holding,
    Inventory,
    JobOptions,
    JobResult,
    JobSpec,
    Kill,
    NodeReady,
    NodeSpec,
    Prepare,
    Results,
    Returned,
    Run,
    Submit,
)

from . import durablestage
from .durablestage import DurableStage
from .keptstore import JournalStore
from .stage import CLIENT, text_of

ADOPT_S = Settings().adopt_s


def come_back(stage: DurableStage, name: str, *jobs: tuple[int, int], cpus: int = 1) -> None:
    """Have a node that has the computation begin a new session, with these attempts."""
    stage.join(name, cpus)
    stage.tell(name, Holding([stage.number], [(stage.number, *each) for each in jobs]))


def expire(stage: DurableStage) -> None:
    """Let the time pass that nodes have to come back."""
    stage.now += ADOPT_S
    stage.scheduler.tick(stage.now)
    stage.flush()


def test_waiting_jobs_wait_on() -> None:
    stage = DurableStage()
    stage.submit(1, 2, 3)
    stage.crash()
    [cluster] = stage.scheduler.clusters.values()
    assert cluster.meta.number == 1 and cluster.line.waiting == 3
    stage.node("n", 3)
    assert stage.runs() == {"n": [1, 2, 3]}


def test_a_node_that_has_the_job_goes_on_with_it() -> None:
    stage = DurableStage()
    number = stage.node("n")
    stage.submit(1, 2)
    stage.crash()
    come_back(stage, "n", (1, 1))
    assert stage.scheduler.nodes["n"].id == number
    assert stage.one(Inventory).jobs == [(stage.number, 1, 1)]
    assert not stage.take(Prepare) and not stage.take(Run)
    stage.done("n", 1)
    assert stage.runs() == {"n": [2]}
    stage.rejoin()
    assert stage.hear() == {1: FINISHED}


def test_a_result_comes_before_the_node_says_what_it_holds() -> None:
    stage = DurableStage()
    stage.node("n")
    stage.submit(1)
    stage.crash()
    stage.join("n")
    stage.done("n", 1)
    stage.tell("n", Holding([stage.number], []))
    stage.rejoin()
    assert stage.hear() == {1: FINISHED}
    assert not stage.take(Run)


def test_a_job_that_never_got_to_its_node_is_sent_again_as_another_attempt() -> None:
    stage = DurableStage()
    stage.node("n")
    stage.submit(1)
    stage.crash()
    come_back(stage, "n")
    [run] = stage.one(Run).jobs
    assert (run.seq, run.attempt) == (1, 2)


def test_a_node_that_stays_away_is_lost() -> None:
    stage = DurableStage()
    stage.node("n")
    stage.submit(1, 2)
    stage.crash()
    stage.now += ADOPT_S - 1.0
    stage.scheduler.tick(stage.now)
    stage.flush()
    stage.rejoin()
    assert not stage.hear()
    stage.now += 1.0
    stage.scheduler.tick(stage.now)
    stage.flush()
    assert stage.hear() == {1: ABANDONED}


def test_jobs_of_a_lost_node_run_again_where_that_is_allowed() -> None:
    stage = DurableStage(reentrant=True)
    stage.node("n")
    stage.submit(1, 2)
    stage.crash()
    stage.node("other", 2)
    assert stage.runs() == {"other": [2]}
    expire(stage)
    [run] = stage.one(Run).jobs
    assert (run.seq, run.attempt) == (1, 2)


def test_a_job_whose_node_returns_late_is_reported_late() -> None:
    stage = DurableStage()
    stage.node("n")
    stage.submit(1)
    stage.crash()
    expire(stage)
    stage.crash()  # and again: what was abandoned is remembered
    come_back(stage, "n", (1, 1))
    stage.done("n", 1)
    stage.rejoin()
    assert [each for each in stage.ends()] == [1]
    [cluster] = stage.scheduler.clusters.values()
    assert len(cluster.unheard) == 2


def test_a_started_anew_node_has_lost_its_jobs_at_once() -> None:
    stage = DurableStage()
    stage.join("n", 1, "here:1")
    stage.tell("n", Holding([], []))
    stage.prepared()
    stage.submit(1)
    stage.crash()
    stage.join("m", 1, "here:1")
    stage.flush()
    stage.rejoin()
    assert stage.hear() == {1: ABANDONED}


def test_a_cancelled_job_is_ended_when_its_node_is_back() -> None:
    stage = DurableStage()
    stage.node("n")
    stage.submit(1)
    stage.tell(CLIENT, CancelJobs(1, [1]))
    stage.crash()
    come_back(stage, "n", (1, 1))
    assert stage.one(Kill).jobs == [(1, 1)]


def test_a_cancelled_job_that_never_got_to_its_node_ends() -> None:
    stage = DurableStage()
    stage.node("n")
    stage.submit(1)
    stage.tell(CLIENT, CancelJobs(1, [1]))
    stage.crash()
    come_back(stage, "n")
    stage.rejoin()
    assert stage.hear() == {1: CANCELLED}


def test_unheard_results_are_told_again_and_heard_ones_are_not() -> None:
    stage = DurableStage()
    stage.node("n", 2)
    stage.submit(1, 2)
    stage.done("n", 1)
    assert stage.hear() == {1: FINISHED}
    stage.done("n", 2)
    stage.crash()
    stage.rejoin()
    opened = stage.one(ClusterOpened)
    assert opened.known and opened.durable and opened.credit > 2
    assert stage.hear() == {2: FINISHED}
    stage.crash()
    stage.rejoin()
    assert not stage.hear()


def test_jobs_that_were_accepted_are_known() -> None:
    stage = DurableStage()
    stage.node("n", 2)
    stage.submit(1, 2)
    stage.submit(3, 5)
    stage.done("n", 1)
    stage.crash()
    stage.rejoin()
    stage.submit(1, 2, 3, 4, 5)
    assert stage.accepted() == [1, 2, 3, 4, 5]
    [cluster] = stage.scheduler.clusters.values()
    assert set(cluster.jobs) == {2, 3, 4, 5}


def test_credit_goes_on_from_what_was_submitted() -> None:
    stage = DurableStage()
    stage.node("n", 1000)
    for start in range(1, 30_001, 1000):
        stage.submit(*range(start, start + 1000))
        for peer, run in stage.take(Run):
            ended = [JobResult(job.seq, 1, FINISHED, 1.0, 2.0, b"") for job in run.jobs]
            stage.tell(peer, Done(run.computation, ended))
        stage.hear()
    assert not stage.store.batches and not stage.store.results
    stage.crash()
    stage.rejoin()
    assert stage.one(ClusterOpened).credit >= 30_000 + 10_000


def test_failures_and_losses_are_counted_on() -> None:
    stage = DurableStage(reentrant=True)
    stage.node("n")
    stage.submit(1, options=JobOptions(retries=1))
    stage.fail("n", 1)
    stage.crash()
    come_back(stage, "n", (1, 2))
    stage.fail("n", 1, 2)
    stage.rejoin()
    [end] = stage.ends().values()
    assert end.status == TERMINATED and "the last of 2 attempts" in text_of(end)


def test_a_job_for_one_node_waits_for_it() -> None:
    stage = DurableStage()
    number = stage.node("n")
    stage.node("m")
    stage.submit(1, 2, options=JobOptions(node=number))
    stage.crash()
    stage.node("m")
    assert not stage.runs()
    come_back(stage, "n", (1, 1))
    stage.done("n", 1)
    assert stage.runs() == {"n": [2]}


def test_a_job_for_a_node_that_was_lost_ends() -> None:
    stage = DurableStage()
    number = stage.node("n")
    stage.submit(1, 2, options=JobOptions(node=number))
    stage.crash()
    expire(stage)
    stage.rejoin()
    assert stage.hear() == {1: ABANDONED, 2: ABANDONED}


def test_put_back_jobs_go_first_and_keep_their_attempt() -> None:
    stage = DurableStage()
    stage.node("n", 2)
    stage.submit(1, 2, 3)
    stage.tell("n", Returned(stage.number, [(1, 1), (2, 1)], asked=False))
    stage.crash()
    stage.node("m", 1)
    [run] = stage.one(Run).jobs
    assert (run.seq, run.attempt) == (1, 2)


def test_a_node_without_the_computation_sets_it_up_again() -> None:
    stage = DurableStage(reentrant=True)
    stage.node("n")
    stage.submit(1)
    stage.crash()
    stage.join("n")
    stage.tell("n", Holding([], []))
    stage.prepared()
    [run] = stage.one(Run).jobs
    assert (run.seq, run.attempt) == (1, 2)


def test_the_client_hears_of_the_node_that_came_back() -> None:
    stage = DurableStage()
    stage.node("n", 4)
    stage.submit(1)
    stage.crash()
    stage.rejoin()
    assert not stage.take(NodeReady)
    come_back(stage, "n", (1, 1), cpus=4)
    assert stage.one(NodeReady).cpus == 4
    stage.submit(2, 3, 4)
    assert stage.runs() == {"n": [2, 3, 4]}


def test_nodes_are_dialled_again() -> None:
    stage = DurableStage(nodes=(NodeSpec("10.0.0.1", 9700),))
    stage.dialled.clear()
    stage.crash()
    assert stage.dialled == ["10.0.0.1:9700"]


def test_a_backlog_is_read_only_as_it_is_needed() -> None:
    stage = DurableStage(loaded_jobs=200)
    for start in range(1, 10_001, 100):
        stage.submit(*range(start, start + 100))
    stage.node("n", 2)
    stage.reads.clear()
    stage.crash()
    [cluster] = stage.scheduler.clusters.values()
    assert 2 <= len(cluster.jobs) <= 300 and len(stage.reads) <= 3
    assert len(cluster.jobs) + cluster.backlog.waiting == 10_000


def test_results_that_do_not_fit_into_memory_stay_on_disk_over_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "RESULTS_BYTES", 1000)
    monkeypatch.setattr(unheard, "RESULTS_BYTES", 1000)
    monkeypatch.setattr(durablestage, "KeptStore", JournalStore)
    stage = DurableStage()
    stage.node("n", 100)
    stage.submit(*range(1, 51))
    for seq in range(1, 51):
        stage.done("n", seq)
    stage.take(Results)
    stage.crash()
    [cluster] = stage.scheduler.clusters.values()
    assert 0 < len(cluster.unheard) < 10 and unheard.count(cluster) == 50
    stage.submit(7, 50)
    assert not stage.scheduler.state.batches, "they are known"
    stage.rejoin()
    for _ in range(4):
        stage.flush()
    assert [*stage.hear()] == [*range(1, 51)]
    assert not cluster.stored and not stage.scheduler.state.unheard_bytes


def test_a_node_that_comes_back_at_another_place() -> None:
    """No honest node does; but none can have the broker stumble."""
    stage = DurableStage()
    stage.node("n")
    stage.scheduler.left("n", "x")
    stage.join("n", place="here")
    stage.crash()
    stage.join("n", place="there")
    assert list(stage.scheduler.state.places) == ["there"]
    stage.lose("n")
    stage.join("m", place="here")
    stage.flush()
    assert list(stage.scheduler.nodes) == ["m"]


def test_a_node_without_cpus_is_refused() -> None:
    stage = DurableStage()
    stage.node("n", 2)
    stage.submit(1)
    stage.crash()
    with pytest.raises(ProtocolError):
        stage.join("n", 0)
    stage.flush()


def test_an_instance_that_was_drained_at_two_places_is_there_once() -> None:
    stage = DurableStage()
    for place in ("here", "there"):
        stage.join("n", place=place)
        drain(stage.scheduler.state, stage.scheduler.nodes["n"], "broken")
        stage.flush()
        stage.lose("n")
    stage.crash()
    assert {past.drained for past in stage.scheduler.state.pasts.values()} == {"broken"}
    assert sorted(stage.scheduler.state.places) == ["here", "there"]
    stage.join("n", place="there")
    stage.flush()
    expire(stage)
    assert list(stage.scheduler.nodes) == ["n"]


def test_a_node_that_is_away_is_given_up_whatever_pulse_a_client_wants() -> None:
    stage = DurableStage()
    stage.opening.computation.pulse_interval = float("inf")
    stage.node("n")
    stage.scheduler.away("n", "x", False, stage.now)
    stage.now += 1e4
    stage.scheduler.tick(stage.now)
    stage.flush()
    assert not stage.scheduler.nodes


def test_no_client_can_count_so_far_that_nobody_can_say_it() -> None:
    stage = DurableStage()
    stage.submit(1, NUMBER_MAX)
    with pytest.raises(ProtocolError):
        stage.scheduler.receive(CLIENT, Submit(1, [JobSpec(2**64 - 1, 0, b"x")]), stage.now)
    stage.crash()
    stage.rejoin()
    assert stage.one(ClusterOpened).credit < 2**63
