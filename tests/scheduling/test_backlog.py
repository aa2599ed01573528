"""Many jobs wait on disk until their turn is near, and still are jobs to everybody."""

from __future__ import annotations

from dispy.broker import backlog
from dispy.broker.hope import GATHER_S
from dispy.broker.intake import UNREADABLE
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    CancelJobs,
    CloseCluster,
    Done,
    FollowJobs,
    JobOptions,
    JobResult,
    JobSpec,
    Prepare,
    Prepared,
    Run,
    Submit,
)

from .durablestage import DurableStage
from .stage import CLIENT, text_of

SIZE = 50  # jobs in a batch
LOADED = 200


def crowded(batches: int = 20) -> DurableStage:
    """Return a stage with many jobs and no node."""
    stage = DurableStage(loaded_jobs=LOADED)
    for number in range(batches):
        stage.submit(*range(number * SIZE + 1, (number + 1) * SIZE + 1))
    return stage


def work(stage: DurableStage, name: str = "n") -> list[int]:
    """Have a node finish what it is given, until there is nothing more; return the order."""
    order: list[int] = []
    while runs := stage.take(Run):
        for peer, run in runs:
            order += [job.seq for job in run.jobs]
            ended = [JobResult(job.seq, job.attempt, FINISHED, 1.0, 2.0, b"r") for job in run.jobs]
            stage.tell(peer, Done(run.computation, ended))
    return order


def test_only_so_many_jobs_are_in_memory() -> None:
    stage = crowded()
    [cluster] = stage.scheduler.clusters.values()
    assert cluster.line.waiting == len(cluster.jobs) == LOADED
    assert cluster.backlog.waiting == 20 * SIZE - LOADED
    assert backlog.waiting(cluster) == 20 * SIZE == len(backlog.unended(cluster))
    assert not stage.reads


def test_all_run_in_order() -> None:
    stage = crowded()
    stage.node("n", 4)
    assert work(stage) == list(range(1, 20 * SIZE + 1))
    [cluster] = stage.scheduler.clusters.values()
    assert not cluster.jobs and not cluster.backlog.waiting and not cluster.batches
    assert not cluster.loaded_bytes and not stage.store.batches
    assert len(stage.reads) == len(set(stage.reads)) == 16


def test_memory_stays_bounded_while_they_run() -> None:
    stage = crowded()
    stage.node("n", 4)
    [cluster] = stage.scheduler.clusters.values()
    while runs := stage.take(Run):
        assert len(cluster.jobs) <= LOADED
        for peer, run in runs:
            ended = [JobResult(job.seq, job.attempt, FINISHED, 1.0, 2.0, b"r") for job in run.jobs]
            stage.tell(peer, Done(run.computation, ended))


def test_large_payloads_count() -> None:
    stage = DurableStage(loaded_jobs=1000, loaded_bytes=100_000)
    for start in range(1, 401, 10):
        seqs = range(start, start + 10)
        stage.tell(CLIENT, Submit(1, [JobSpec(seq, 0, bytes(1000)) for seq in seqs]))
    [cluster] = stage.scheduler.clusters.values()
    assert cluster.loaded_bytes == 100_000 and len(cluster.jobs) == 100
    stage.node("n", 4)
    assert work(stage) == list(range(1, 401))
    assert cluster.loaded_bytes == 0


def test_jobs_of_a_higher_priority_go_first_wherever_they_are() -> None:
    stage = crowded()
    last = 20 * SIZE
    urgent = JobOptions(priority=1)
    for start in range(last + 1, last + 601, SIZE):
        stage.submit(*range(start, start + SIZE), options=urgent)
    [cluster] = stage.scheduler.clusters.values()
    assert cluster.backlog.has(1)
    stage.node("n", 4)
    order = work(stage)
    assert order[:600] == list(range(last + 1, last + 601))
    assert order[600:] == list(range(1, last + 1))


def test_a_job_on_disk_is_cancelled_at_once() -> None:
    stage = crowded()
    last = 20 * SIZE
    stage.tell(CLIENT, CancelJobs(1, [last, last, last - 1, last + 1, 0]))
    assert stage.results() == {last: CANCELLED, last - 1: CANCELLED}
    [cluster] = stage.scheduler.clusters.values()
    assert backlog.waiting(cluster) == last - 2
    stage.tell(CLIENT, CancelJobs(1, list(range(last - SIZE + 1, last + 1))))
    assert len(stage.results()) == SIZE - 2 and backlog.waiting(cluster) == last - SIZE
    stage.node("n", 4)
    assert len(work(stage)) == last - SIZE
    assert not stage.store.batches


def test_a_cancelled_job_stays_cancelled_when_its_batch_is_loaded() -> None:
    stage = crowded()
    stage.tell(CLIENT, CancelJobs(1, [300, 301]))
    stage.node("n", 4)
    assert set(work(stage)) == set(range(1, 20 * SIZE + 1)) - {300, 301}


def test_output_of_a_job_on_disk_is_followed_once_it_runs() -> None:
    stage = crowded()
    stage.tell(CLIENT, FollowJobs(1, [900]))
    stage.node("n", 4)
    followed: list[int] = []
    while runs := stage.take(Run):
        for peer, run in runs:
            followed += [job.seq for job in run.jobs if job.options and job.options.follow]
            ended = [JobResult(job.seq, job.attempt, FINISHED, 1.0, 2.0, b"r") for job in run.jobs]
            stage.tell(peer, Done(run.computation, ended))
    assert followed == [900]


def test_known_jobs_on_disk_are_not_taken_twice() -> None:
    stage = crowded()
    stage.accepted()
    stage.submit(*range(901, 951))
    assert stage.accepted() == list(range(901, 951))
    [cluster] = stage.scheduler.clusters.values()
    assert backlog.waiting(cluster) == 20 * SIZE


def test_closing_ends_all() -> None:
    stage = crowded()
    stage.results()
    stage.tell(CLIENT, CloseCluster(1))
    assert set(stage.results().values()) == {CANCELLED}
    assert not stage.scheduler.clusters and not stage.scheduler.state.batches
    assert not stage.store.batches and not stage.store.clusters


def test_no_node_that_can_run_them_ends_all() -> None:
    stage = crowded()
    stage.node("n", 4, ready=False)
    for peer, prepare in stage.take(Prepare):
        stage.tell(peer, Prepared(prepare.computation, "no such module"))
    stage.wait(GATHER_S)
    ends = stage.results()
    assert len(ends) == 20 * SIZE and set(ends.values()) == {TERMINATED}


def test_how_many_go_before_is_known() -> None:
    stage = crowded()
    [cluster] = stage.scheduler.clusters.values()
    assert backlog.before(cluster, 1) is None
    assert backlog.before(cluster, 1000) == 999
    stage.tell(CLIENT, CancelJobs(1, [990, 500, 10]))
    assert backlog.before(cluster, 1000) == 996
    assert backlog.before(cluster, 990) is None and backlog.before(cluster, 1001) is None


def test_jobs_that_cannot_be_read_end() -> None:
    stage = crowded()
    stage.tell(CLIENT, CancelJobs(1, [501]))
    lost = [number for number, shelf in stage.store.batches.items() if 501 in shelf.seqs]
    read = stage.store.read_batch
    stage.store.read_batch = lambda number: None if number in lost else read(number)  # type: ignore[method-assign]
    stage.node("n", 4)
    assert len(work(stage)) == 19 * SIZE
    ends = stage.ends()
    assert len(ends) == 20 * SIZE
    assert {seq for seq in ends if ends[seq].status == ABANDONED} == set(range(502, 551))
    assert text_of(ends[510]) == UNREADABLE
