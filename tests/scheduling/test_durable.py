"""What a broker with a journal keeps, and when; without one, it keeps nothing."""

from __future__ import annotations

import pytest

from dispy.broker import unheard
from dispy.broker.effects import (
    DropBatch,
    DropResults,
    Effect,
    KeepAbandoned,
    KeepBatch,
    KeepProgress,
    KeepResults,
    Load,
)
from dispy.broker.packing import Packer
from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    CancelJobs,
    Credit,
    Done,
    JobOptions,
    JobResult,
    JobSpec,
    Results,
    ResultsHeard,
    Run,
    Submit,
)
from dispy.protocol.wire import HEADER_BYTES

from .durablestage import DurableStage
from .stage import CLIENT, Stage


class Recorder(DurableStage):
    """Also keeps the effects of the last flush."""

    last: list[Effect]

    def carry_out(self, effects: list[Effect]) -> None:
        self.last = effects
        super().carry_out(effects)

    def kept(self, kind: type) -> list[Effect]:
        return [effect for effect in self.last if isinstance(effect, kind)]


def test_without_a_journal_nothing_is_kept() -> None:
    stage = Stage()
    assert stage.scheduler.state.settings == Settings()
    stage.node("n")
    stage.submit(1, 2)
    stage.done("n", 1)
    assert stage.take(Results)[0][1].record == 0
    assert not stage.scheduler.state.batches
    [cluster] = stage.scheduler.clusters.values()
    assert cluster.submitted == 2 and not cluster.unheard


def test_jobs_are_accepted_in_the_flush_that_keeps_them() -> None:
    stage = Recorder()
    stage.tell(CLIENT, Submit(1, [JobSpec(seq, 0, b"x") for seq in (1, 2, 3)]))
    [batch] = stage.kept(KeepBatch)
    assert isinstance(batch, KeepBatch) and batch.plain and batch.priority == 0
    assert stage.accepted() == [1, 2, 3]


def test_known_jobs_are_accepted_again_and_not_kept_twice() -> None:
    stage = Recorder()
    stage.submit(1, 2)
    stage.accepted()
    stage.submit(1, 2, 3)
    [batch] = stage.kept(KeepBatch)
    assert isinstance(batch, KeepBatch)
    assert [spec.seq for spec in batch.submit.jobs] == [3]
    assert stage.accepted() == [1, 2, 3]
    assert stage.store.load().clusters[0].batches[1].count == 1


def test_the_attempt_is_on_disk_before_the_node_hears_of_it() -> None:
    stage = Recorder()
    number = stage.node("n")
    stage.submit(1, 2)
    assert stage.one(Run).jobs[0].seq == 1
    [progress] = stage.kept(KeepProgress)
    assert isinstance(progress, KeepProgress)
    [mark] = progress.progress.jobs
    assert (mark.index, mark.attempt, mark.node) == (0, 1, number)


def test_a_result_is_kept_until_it_is_heard() -> None:
    stage = Recorder()
    stage.node("n")
    stage.submit(1, 2)
    stage.done("n", 1)
    results = stage.one(Results)
    assert results.record and stage.kept(KeepResults) and not stage.kept(DropBatch)
    stage.done("n", 2)
    assert stage.kept(DropBatch)
    stage.tell(CLIENT, ResultsHeard(1, [results.record, results.record, 17]))
    assert stage.kept(DropResults) == [DropResults([results.record])]
    [cluster] = stage.scheduler.clusters.values()
    assert len(cluster.unheard) == 1 and cluster.meta.ended == 2 and not cluster.batches


def test_a_cancelled_job_is_marked_before_its_node_is_told() -> None:
    stage = Recorder()
    stage.node("n")
    stage.submit(1, 2)
    stage.tell(CLIENT, CancelJobs(1, [1, 2]))
    [progress] = stage.kept(KeepProgress)
    assert isinstance(progress, KeepProgress)
    assert [mark.marks for mark in progress.progress.jobs] == [1]
    assert stage.results() == {2: CANCELLED}


def test_an_abandoned_attempt_is_remembered_and_its_late_result_kept() -> None:
    stage = Recorder()
    stage.node("n")
    stage.submit(1)
    stage.scheduler.away("n", "silent", False, stage.now)
    stage.now += 100.0
    stage.scheduler.tick(stage.now)
    stage.flush()
    assert stage.kept(KeepAbandoned) == [KeepAbandoned(stage.number, [(1, 1)])]
    assert stage.results() == {1: ABANDONED}
    stage.node("n")
    stage.done("n", 1)
    [late] = stage.kept(KeepResults)
    assert isinstance(late, KeepResults) and late.message.results[0].status == FINISHED


def test_results_that_are_kept_together_fit_into_one_header() -> None:
    """A link would cut longer ones, and the second part be forgotten once the first is heard."""
    stage = Recorder()
    stage.node("n", 100)
    stage.submit(*range(1, 101))
    long = [JobResult(seq, 1, FINISHED, 1.0, 2.0, bytes(60_000)) for seq in range(1, 101)]
    stage.tell("n", Done(stage.number, long))
    said = [message for _, message in stage.take(Results)]
    assert len({each.record for each in said}) == len(said) > 10
    assert [result.seq for each in said for result in each.results] == list(range(1, 101))
    for each in said:
        assert len(Packer().pack(each)[0]) < HEADER_BYTES


def test_results_of_a_client_that_is_away_wait() -> None:
    stage = Recorder()
    stage.node("n")
    stage.submit(1, 2)
    stage.scheduler.away(CLIENT, "silent", False, stage.now)
    stage.done("n", 1)
    assert not stage.take(Results) and stage.kept(KeepResults)
    stage.scheduler.back(CLIENT)
    stage.flush()
    assert stage.hear() == {1: FINISHED}
    stage.done("n", 2)
    stage.rejoin()
    assert [each.results[0].seq for _, each in stage.take(Results)] == [2, 2]


def test_results_of_a_client_that_is_away_for_long_wait_on_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unheard, "MEMORY_MAX", 1000)
    stage = Recorder()
    stage.node("n", 100)
    stage.submit(*range(1, 101))
    [cluster] = stage.scheduler.clusters.values()
    for seq in range(1, 51):
        stage.done("n", seq)
    stage.scheduler.away(CLIENT, "silent", False, stage.now)
    for seq in range(51, 101):
        stage.done("n", seq)
    assert len(cluster.unheard) + len(cluster.stored) == unheard.count(cluster) == 100
    assert len(cluster.unheard) == 5
    stage.take(Results)
    stage.scheduler.back(CLIENT)
    for _ in range(3):
        stage.flush()
    assert set(stage.hear()) == set(range(51, 101))
    assert unheard.count(cluster) == 50
    stage.crash()
    [cluster] = stage.scheduler.clusters.values()
    assert len(cluster.stored) == 45
    stage.rejoin()
    for _ in range(3):
        stage.flush()
    assert set(stage.hear()) == set(range(1, 51)) and not stage.store.results
    assert not cluster.unheard and not cluster.stored and not cluster.unheard_bytes


def test_a_client_may_send_as_fast_as_jobs_get_onto_the_disk() -> None:
    stage = Recorder(loaded_jobs=100)
    stage.take(Credit)
    sent = 0
    for _ in range(20):
        stage.submit(*range(sent + 1, sent + 2001))
        sent += 2000
    assert stage.take(Credit)[-1][1].limit > 50_000


def test_jobs_that_cannot_wait_on_disk_are_bounded_by_credit() -> None:
    stage = Recorder(loaded_jobs=100)
    stage.take(Credit)
    number = stage.node("n")
    for start in range(1, 40_000, 2000):
        stage.submit(*range(start, start + 2000), options=JobOptions(node=number))
    assert len(stage.take(Credit)) <= 1
    [cluster] = stage.scheduler.clusters.values()
    assert not cluster.backlog.waiting


def test_priorities_decide_what_is_plain() -> None:
    stage = Recorder()
    for specs, plain in [
        ([JobSpec(1, 0, b""), JobSpec(2, 0, b"", [], JobOptions(timeout=1.0))], True),
        ([JobSpec(3, 0, b""), JobSpec(4, 0, b"", [], JobOptions(priority=1))], False),
        ([JobSpec(5, 0, b"", [], JobOptions(priority=1)), JobSpec(6, 0, b"")], False),
        ([JobSpec(7, 0, b"", [], JobOptions(priority=3))], True),
        ([JobSpec(9, 0, b""), JobSpec(11, 0, b"")], False),
        ([JobSpec(13, 0, b""), JobSpec(12, 0, b"")], False),
    ]:
        stage.tell(CLIENT, Submit(1, specs))
        [batch] = stage.kept(KeepBatch)
        assert isinstance(batch, KeepBatch) and batch.plain is plain
    assert not stage.kept(Load)
