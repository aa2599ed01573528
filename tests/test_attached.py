"""Clusters that are taken over at a shared broker: what the pure half makes of what is said."""

from __future__ import annotations

from dispy.attached import NOT_THERE, RETRIES_S, RETRY_S, Takeover
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FILE,
    FINISHED,
    OUTPUT,
    TERMINATED,
    Attach,
    Attached,
    BlobPiece,
    BlobPieces,
    BlobRange,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterLost,
    Credit,
    Heard,
    JobRecord,
    JobResult,
    NeedBlobs,
    NodeInfo,
    NodeReady,
    Records,
    RecordsHeard,
    Results,
    ResultsHeard,
)

WANTED = Attach(1, "nightly")


def result(seq: int, status: int = FINISHED) -> JobResult:
    return JobResult(seq, 1, status, 1.0, 2.0, b"")


def attached(*pending: tuple[int, int], unheard: int = 0) -> Takeover:
    takeover = Takeover([WANTED])
    takeover.join(0.0)
    assert takeover.take() == [WANTED]
    takeover.receive(Attached(1, 99, "nightly", list(pending), unheard), 0.0)
    return takeover


def statuses(takeover: Takeover) -> dict[int, int]:
    return {seq: end.status for seq, (end, _) in takeover.clusters[1].ends.items()}


def test_results_of_before_and_of_now_are_gathered() -> None:
    takeover = attached((3, 4), unheard=2)
    assert not takeover.gathered
    takeover.receive(NodeReady(1, NodeInfo(7, "127.0.0.1:9701", "here", 2, "Linux")), 0.0)
    takeover.receive(Results(1, 7, [result(1)], 10), 0.0)
    takeover.receive(Results(1, 7, [result(1)], 10), 0.0)
    assert not takeover.gathered
    takeover.receive(Results(1, 7, [result(2, TERMINATED)], 11), 0.0)
    assert takeover.gathered and not takeover.settled
    takeover.receive(Results(1, 7, [result(3)], 12), 0.0)
    for _ in range(2):
        takeover.receive(Results(1, 0, [result(4, CANCELLED)], 13), 0.0)
    takeover.receive(Credit(1, 5), 0.0)  # nobody wants to know
    takeover.receive(Results(5, 0, [result(4)], 13), 0.0)
    assert takeover.settled
    assert statuses(takeover) == {1: FINISHED, 2: TERMINATED, 3: FINISHED, 4: CANCELLED}
    assert takeover.clusters[1].hosts == {7: "127.0.0.1"}
    assert takeover.take() == []  # nothing is heard before it has been handed over
    takeover.hear(1, {4})
    takeover.hear(1, {4})
    assert takeover.take() == [ResultsHeard(1, [10, 11, 12])]
    takeover.close()
    assert takeover.take() == [CloseCluster(1)] and not takeover.closed
    takeover.receive(ClusterClosed(1), 0.0)
    assert takeover.closed


def test_ends_that_the_dead_program_knew_are_heard_but_not_given_again() -> None:
    takeover = attached(unheard=2)
    takeover.receive(NodeReady(1, NodeInfo(7, "127.0.0.1:9701", "here", 2, "Linux")), 0.0)
    takeover.receive(Results(1, 7, [result(2), result(1)], 11), 0.0)
    assert list(takeover.news(1, {1}.__contains__)) == [(result(2), "127.0.0.1")]
    takeover.hear(1, set())
    assert takeover.take() == [ResultsHeard(1, [11])]


def test_an_abandoned_job_may_still_finish() -> None:
    takeover = attached(unheard=2)
    takeover.receive(Results(1, 7, [result(1, ABANDONED)], 11), 0.0)
    takeover.receive(Results(1, 7, [result(1)], 12), 0.0)
    takeover.receive(Results(1, 7, [result(1, TERMINATED)], 13), 0.0)
    assert statuses(takeover) == {1: FINISHED}
    assert takeover.settled


def test_a_client_that_was_just_killed_may_still_count_as_there() -> None:
    takeover = Takeover([WANTED])
    takeover.join(0.0)
    takeover.take()
    takeover.receive(ClusterLost(1, "its client is there"), 0.1)
    assert takeover.deadline() == 0.1 + RETRY_S
    takeover.tick(0.1 + RETRY_S)
    assert takeover.take() == [WANTED]
    assert not takeover.gathered
    takeover.receive(ClusterLost(1, "its client is there"), RETRIES_S)
    assert takeover.clusters[1].lost == "its client is there"
    assert takeover.settled and takeover.closed
    takeover.tick(100.0)
    takeover.close()
    assert takeover.take() == []


def test_what_is_taken_away_ends_the_wait() -> None:
    takeover = attached((1, 2))
    takeover.receive(Results(1, 7, [result(1)], 11), 0.0)
    takeover.receive(ClusterLost(1, "it was taken over by ann"), 0.1)
    assert takeover.settled and statuses(takeover) == {1: FINISHED}
    takeover.hear(1, set())
    assert takeover.take() == []


def test_a_new_session_asks_again_and_counts_anew() -> None:
    takeover = attached((1, 3), unheard=1)
    takeover.receive(Results(1, 7, [result(1)], 11), 0.0)
    takeover.join(5.0)
    assert takeover.take() == [WANTED]
    takeover.receive(Attached(1, 99, "nightly", [(2, 3)], 2), 5.0)
    assert not takeover.gathered
    takeover.receive(Results(1, 7, [result(1)], 11), 0.0)
    takeover.receive(Results(1, 7, [result(4)], 12), 0.0)
    assert takeover.gathered and takeover.clusters[1].pending == {2, 3}


def test_jobs_that_are_left_can_be_ended() -> None:
    takeover = attached((1, 2))
    takeover.kill()
    assert takeover.take() == [CancelJobs(1, [1, 2])]
    takeover.receive(Results(1, 7, [result(1, CANCELLED)], 11), 0.0)
    takeover.cut_short()
    assert takeover.settled and statuses(takeover) == {1: CANCELLED, 2: TERMINATED}


def test_jobs_that_the_broker_never_got_are_cancelled() -> None:
    takeover = attached((1, 1), unheard=1)
    takeover.miss(1, [1, 2, 3])
    assert statuses(takeover) == {}  # results are still to come
    takeover.receive(Results(1, 7, [result(2)], 11), 0.0)
    takeover.miss(1, [1, 2, 3])
    assert statuses(takeover) == {2: FINISHED, 3: CANCELLED}
    assert NOT_THERE.encode() in takeover.clusters[1].ends[3][0].payload


def test_jobs_that_say_something_or_need_files_are_not_held_up() -> None:
    takeover = attached((1, 1))
    records = [JobRecord(1, 1, 1, OUTPUT, b"x"), JobRecord(1, 1, 2, FILE, b"x")]
    takeover.receive(Records(1, records, 7), 0.0)
    takeover.receive(NeedBlobs(1, 0, [BlobRange(b"d", 0, 5)]), 0.0)
    heard, pieces = takeover.take()
    assert isinstance(heard, RecordsHeard)
    assert [(each.number, bool(each.error)) for each in heard.jobs] == [(1, False), (2, True)]
    assert isinstance(heard.jobs[0], Heard)
    assert isinstance(pieces, BlobPieces) and isinstance(pieces.pieces[0], BlobPiece)
    assert "has ended" in pieces.pieces[0].error
