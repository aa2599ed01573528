"""The client's state machine, and what it makes of jobs. No I/O, no threads, no waiting."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispy.core import PATIENCE_S, Core
from dispy.effects import (
    Answered,
    Begun,
    Closed,
    Effect,
    Ended,
    Offered,
    Requeued,
    Send,
    Silent,
    Told,
    Wanted,
    Warned,
)
from dispy.endings import ENDED_MAX
from dispy.job import DispyJob
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    CLOSE,
    DEALLOCATE,
    FILE,
    FINISHED,
    PROVISIONAL,
    TERMINATED,
    Allocate,
    Answer,
    BlobPiece,
    BlobPieces,
    BlobRange,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Code,
    ComputationSpec,
    Credit,
    Define,
    Done,
    Explain,
    FollowJobs,
    Heard,
    JobOptions,
    JobRecord,
    JobResult,
    JobSpec,
    JobsRequeued,
    JobsRunning,
    Large,
    NeedBlobs,
    NodeGone,
    NodeInfo,
    NodeOffer,
    NodeReady,
    NodeRequest,
    NodeSpec,
    NodeTrouble,
    OpenCluster,
    Records,
    RecordsHeard,
    Results,
    Submit,
    Vitals,
)
from dispy.protocol.payload import pack_object, pack_result
from dispy.reports import Report
from dispy.sending import BATCH_JOBS

OPENING = OpenCluster(1, ComputationSpec("compute", []), [NodeSpec("127.0.0.1", 9701)])
NODE = NodeInfo(7, "127.0.0.1:9701", "here", 2, "Linux")


def job(seq: int, payload: bytes = b"x", priority: int | None = None) -> DispyJob:
    options = None if priority is None else JobOptions(priority)
    return DispyJob(1, JobSpec(seq, 0, payload, [], options), None, (), {})


def said(seq: int, number: int, kind: int = PROVISIONAL, attempt: int = 1) -> JobRecord:
    return JobRecord(seq, attempt, number, kind, b"x")


def returned(seq: int, value: object = None, status: int = FINISHED) -> JobResult:
    body = pack_result(pack_object([], pickle.dumps(value)), b"out", b"err", "")
    return JobResult(seq, 1, status, 10.0, 12.0, body)


def sent(core: Core) -> list[Body]:
    """Take the effects, and return the messages among them."""
    return [effect.message for effect in core.take() if isinstance(effect, Send)]


def opened(credit: int = 1000) -> Core:
    core = Core()
    core.join(0.0)
    core.open(OPENING, 0.0)
    core.receive(ClusterOpened(1, credit), 0.0)
    core.take()
    return core


# -- the core ---------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_broker_has_joined_and_asked() -> None:
    core = Core()
    core.open(OPENING, 0.0)
    core.submit(1, job(1))
    assert sent(core) == []
    core.join(0.0)
    assert sent(core) == [OPENING]
    core.receive(ClusterOpened(1, 2), 0.0)
    assert sent(core) == [Submit(1, [JobSpec(1, 0, b"x")])]


def test_credit_bounds_what_is_sent() -> None:
    core = opened(credit=3)
    for seq in range(1, 11):
        core.submit(1, job(seq))
    assert [len(message.jobs) for message in sent(core) if isinstance(message, Submit)] == [3]
    core.receive(Credit(1, 5), 0.0)
    core.receive(Credit(1, 4), 0.0)  # late: credit never shrinks
    (message,) = sent(core)
    assert isinstance(message, Submit) and [spec.seq for spec in message.jobs] == [4, 5]
    core.check()


def test_batches_are_bounded_in_jobs_and_in_bytes() -> None:
    core = opened(credit=10_000)
    for seq in range(1, BATCH_JOBS + 2):
        core.submit(1, job(seq))
    assert [len(m.jobs) for m in sent(core) if isinstance(m, Submit)] == [BATCH_JOBS, 1]
    for seq in range(1000, 1004):
        large = job(seq, b"")
        assert large._spec is not None
        large._spec.parts = [Large(700_000, [])]
        core.submit(1, large)
    assert [len(m.jobs) for m in sent(core) if isinstance(m, Submit)] == [2, 2]


def test_a_job_ends_once() -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    for _ in range(2):
        core.receive(Results(1, 7, [returned(1), returned(1)]), 0.0)
    (effect,) = core.take()
    assert isinstance(effect, Ended) and len(effect.jobs) == 1


def test_abandoned_may_still_finish_but_nothing_else() -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    for status in (ABANDONED, TERMINATED, CANCELLED, ABANDONED, FINISHED, FINISHED):
        core.receive(Results(1, 7, [returned(1, status=status)]), 0.0)
    ends = [effect.jobs[0][1].status for effect in core.take() if isinstance(effect, Ended)]
    assert ends == [ABANDONED, FINISHED]


def test_cancel_of_a_waiting_job_ends_it_at_once_and_it_is_never_sent() -> None:
    core = opened(credit=0)
    for seq in (1, 2, 3):
        core.submit(1, job(seq))
    core.cancel(1, 2)
    (effect,) = core.take()
    assert isinstance(effect, Ended) and effect.jobs[0][1].status == CANCELLED
    core.receive(Credit(1, 10), 0.0)
    (message,) = sent(core)
    assert isinstance(message, Submit) and [spec.seq for spec in message.jobs] == [1, 3]
    core.check()


def test_cancel_of_a_sent_job_asks_the_broker_once() -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    core.cancel(1, 1)
    core.cancel(1, 1)
    assert sent(core) == [CancelJobs(1, [1])]
    core.receive(Results(1, 7, [returned(1)]), 0.0)
    core.cancel(1, 1)  # too late
    assert sent(core) == []
    core.check()


def test_a_new_session_gets_everything_that_has_not_ended() -> None:
    core = opened(credit=3)
    for seq in range(1, 6):
        core.submit(1, job(seq))
    core.receive(NodeReady(1, NODE), 0.0)
    core.take()
    core.receive(Results(1, 7, [returned(2)]), 0.0)
    core.cancel(1, 3)
    core.take()
    core.leave()
    core.join(0.0)
    assert Send(OPENING) in core.take()
    core.receive(ClusterOpened(1, 100, known=True), 0.0)
    cancel, message = sent(core)
    assert cancel == CancelJobs(1, [3])
    assert isinstance(message, Submit) and [spec.seq for spec in message.jobs] == [1, 4, 5]
    core.check()


def test_close_cancels_what_waits_and_ends_with_the_brokers_word() -> None:
    core = opened(credit=1)
    core.submit(1, job(1))
    core.submit(1, job(2))
    core.take()
    core.close(1)
    effects = core.take()
    assert [type(effect) for effect in effects] == [Ended, Send]
    assert effects[1] == Send(CloseCluster(1))
    core.receive(Results(1, 7, [returned(1, status=CANCELLED)]), 0.0)
    core.receive(ClusterClosed(1), 0.0)
    assert [type(effect) for effect in core.take()] == [Ended, Closed]
    assert not core.clusters


@pytest.mark.parametrize("event", [Core.leave, lambda core: core.join(0.0)])
def test_a_cluster_that_closes_does_not_wait_for_a_broker_that_is_gone(
    event: Callable[[Core], None],
) -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    core.close(1)
    core.take()
    event(core)
    effects = [effect for effect in core.take() if not isinstance(effect, Send)]
    assert [type(effect) for effect in effects] == [Ended, Closed]


def test_close_without_any_broker_is_immediate() -> None:
    core = Core()
    core.open(OPENING, 0.0)
    core.submit(1, job(1))
    core.close(1)
    assert [type(effect) for effect in core.take()] == [Ended, Closed]
    core.submit(1, job(2))  # it was on its way to the core meanwhile
    (effect,) = core.take()
    assert isinstance(effect, Ended) and effect.jobs[0][1].status == CANCELLED


def test_giving_up_ends_every_job_with_the_reason() -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    core.give_up("out of luck")
    ended, closed = core.take()
    assert isinstance(ended, Ended) and isinstance(closed, Closed)
    assert ended.jobs[0][1].status == TERMINATED
    assert b"out of luck" in ended.jobs[0][1].payload


def test_a_cluster_without_a_node_says_so_once() -> None:
    core = opened()
    assert core.deadline() == PATIENCE_S
    core.tick(PATIENCE_S - 0.1)
    assert core.take() == []
    core.tick(PATIENCE_S)
    (warned,) = core.take()
    assert isinstance(warned, Warned)
    assert "'compute'" in warned.text and "127.0.0.1:9701" in warned.text
    core.tick(PATIENCE_S + 100)
    assert core.take() == []
    assert core.deadline() == float("inf")


def test_each_trouble_is_told_once() -> None:
    core = opened()
    for reason in ("refused", "refused", "timeout"):
        core.receive(NodeTrouble(1, "127.0.0.1:9701", reason), 0.0)
    texts = [effect.text for effect in core.take() if isinstance(effect, Warned)]
    assert len(texts) == 2
    assert all("127.0.0.1:9701" in text and "still trying" in text for text in texts)


def test_a_trouble_may_be_the_brokers_own() -> None:
    core = opened()
    core.receive(NodeTrouble(1, "broker", "the cluster waits until others are closed"), 0.0)
    core.tick(PATIENCE_S)
    first, second = [effect.text for effect in core.take() if isinstance(effect, Warned)]
    assert first == "cluster 'compute': the cluster waits until others are closed"
    assert "no node to run jobs on (broker: the cluster waits until others are" in second


def test_a_node_ends_the_patience() -> None:
    core = opened()
    core.receive(NodeReady(1, NODE), 0.0)
    core.take()
    core.tick(PATIENCE_S)
    assert core.take() == []
    core.receive(NodeGone(1, 7, "it was stopped"), 0.0)
    core.receive(NodeGone(1, 7, "it was stopped"), 0.0)
    assert [type(effect).__name__ for effect in core.take()] == ["NodeDown", "Warned"]


def test_running_jobs_are_told() -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    core.receive(JobsRunning(1, 7, [(1, 10.0), (2, 10.0)]), 0.0)
    (begun,) = core.take()
    assert isinstance(begun, Begun) and [start for _, start in begun.jobs] == [10.0]


def test_what_no_broker_says_is_refused() -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    with pytest.raises(ProtocolError):
        core.receive(Done(1, []), 0.0)
    with pytest.raises(ProtocolError):
        core.receive(Results(1, 7, [returned(1, status=6)]), 0.0)
    assert 1 in core.clusters[1].unfinished  # it still waits for a real end
    core.receive(Results(99, 7, [returned(1)]), 0.0)  # a cluster that was closed
    assert core.take() == []


def test_higher_priorities_go_first_and_equal_ones_in_order() -> None:
    core = opened(credit=0)
    for seq, priority in enumerate([None, 0, 5, -1, 5, None, 7], 1):
        core.submit(1, job(seq, priority=priority))
    core.check()
    core.receive(Credit(1, 4), 0.0)
    (first,) = sent(core)
    assert isinstance(first, Submit) and [spec.seq for spec in first.jobs] == [7, 3, 5, 1]
    core.submit(1, job(8, priority=1))
    core.check()
    core.cancel(1, 2)  # not sent, though later ones have been
    core.receive(Credit(1, 10), 0.0)
    (second,) = sent(core)
    assert isinstance(second, Submit) and [spec.seq for spec in second.jobs] == [8, 6, 4]
    core.check()


def test_jobs_that_wait_again_are_told() -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    core.receive(JobsRequeued(1, [1, 2]), 0.0)
    (effect,) = core.take()
    assert isinstance(effect, Requeued) and [one._seq for one in effect.jobs] == [1]
    core.check()


def test_records_are_told_once_and_heard_in_order() -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    for _ in range(2):  # again, as after a reconnect
        core.receive(Records(1, [said(1, 1), said(1, 2, FILE), said(2, 1)], 7), 0.0)
    (told,) = core.take()
    assert isinstance(told, Told) and told.node == 7
    assert [record.number for _, record in told.records] == [1, 2]
    core.hear(1, 1, 1, 2, "disk full")
    assert sent(core) == []  # the first is still being dealt with
    core.hear(1, 1, 1, 1)
    assert sent(core) == [RecordsHeard(1, [Heard(1, 1, 2, "disk full")])]
    core.receive(Records(1, [said(1, 2)], 7), 0.0)  # the answer was lost
    assert sent(core) == [RecordsHeard(1, [Heard(1, 1, 2)])]
    core.check()


def test_a_new_attempt_begins_anew_and_old_records_are_dropped() -> None:
    core = opened()
    core.submit(1, job(1))
    core.take()
    core.receive(Records(1, [said(1, 1), said(1, 2)]), 0.0)
    core.take()
    core.receive(Records(1, [said(1, 1, attempt=2), said(1, 3, attempt=1)]), 0.0)
    silent, told = core.take()
    assert isinstance(silent, Silent) and isinstance(told, Told)
    assert [(record.attempt, record.number) for _, record in told.records] == [(2, 1)]
    core.hear(1, 1, 1, 1)  # of the old one: nobody needs it
    assert core.take() == []
    core.hear(1, 1, 2, 1)
    assert sent(core) == [RecordsHeard(1, [Heard(1, 2, 1)])]
    core.receive(Results(1, 7, [returned(1)]), 0.0)
    assert [type(effect) for effect in core.take()] == [Ended, Silent]
    assert not core.clusters[1].reports
    core.hear(1, 1, 2, 2)
    assert core.take() == []


def test_a_record_of_no_kind_is_refused() -> None:
    core = opened()
    core.submit(1, job(1))
    with pytest.raises(ProtocolError):
        core.receive(Records(1, [said(1, 1, kind=9)]), 0.0)


def test_code_goes_before_the_jobs_that_need_it_and_again_to_a_new_broker() -> None:
    core = opened()
    layer = Code("3.11", JobSpec(0, 0, b"layer"))
    core.define(1, [layer])
    core.submit(1, job(1))
    assert sent(core) == [Define(1, [layer]), Submit(1, [JobSpec(1, 0, b"x")])]
    core.leave()
    core.join(0.0)
    (again,) = sent(core)
    assert isinstance(again, OpenCluster) and again.computation.layers == [layer]
    assert OPENING.computation.layers == []


def test_a_followed_job_is_followed_wherever_it_goes() -> None:
    core = opened(credit=1)
    one, two = job(1), job(2)
    core.submit(1, one)
    core.submit(1, two)
    core.take()
    core.follow(1, 1)
    core.follow(1, 2)
    core.follow(1, 3)
    assert sent(core) == [FollowJobs(1, [1])]
    core.receive(Credit(1, 9), 0.0)
    (message,) = sent(core)
    assert isinstance(message, Submit)
    assert message.jobs[0].options is not None and message.jobs[0].options.follow


def test_a_node_is_offered_and_allocated() -> None:
    core = opened()
    vitals = Vitals(50.0, 1, 2, 3.0)
    core.receive(NodeOffer(1, NODE, vitals), 0.0)
    assert core.take() == [Offered(1, NODE, vitals)]
    core.allocate(Allocate(1, 7, 0), NODE.address)
    assert sent(core) == [Allocate(1, 7, 0)]
    core.tick(PATIENCE_S)
    (warned,) = core.take()
    assert isinstance(warned, Warned) and "allocate() returned 0" in warned.text


def test_requests_are_answered_once_also_when_the_broker_goes() -> None:
    core = opened()
    for number in (1, 2):
        core.request(NodeRequest(1, number, DEALLOCATE, 7))
    assert len(sent(core)) == 2
    for _ in range(2):
        core.receive(Answer(1, 1, 0), 0.0)
    assert core.take() == [Answered(1, 1, 0, "")]
    core.leave()
    (answer,) = core.take()
    assert isinstance(answer, Answered) and (answer.request, answer.code) == (2, -1)
    assert "broker" in answer.text
    later = NodeRequest(1, 3, DEALLOCATE, 7)
    core.request(later)
    assert core.take() == []
    core.join(0.0)
    assert sent(core) == [OPENING, later]
    core.leave()
    core.request(NodeRequest(1, 4, DEALLOCATE, 7))
    core.close(1)
    answers = [effect for effect in core.take() if isinstance(effect, Answered)]
    assert [(answer.request, answer.code) for answer in answers] == [(3, -1), (4, -1)]


def test_a_node_that_was_sent_away_is_not_lost() -> None:
    core = opened()
    core.receive(NodeReady(1, NODE), 0.0)
    core.request(NodeRequest(1, 1, CLOSE, 7))
    core.take()
    core.receive(NodeGone(1, 7, "closed"), 0.0)
    assert [type(effect).__name__ for effect in core.take()] == ["NodeDown"]


def test_explain_says_what_is_known_here_or_asks() -> None:
    core = opened(credit=1)
    for seq in (1, 2, 3):
        core.submit(1, job(seq))
    core.take()
    core.explain(1, 1, 3)
    assert sent(core) == [Explain(1, 1, 3)]
    core.receive(Answer(1, 1, 0, "There has been no answer from x."), 0.0)
    (answer,) = core.take()
    assert isinstance(answer, Answered) and "behind 2 jobs. There has been no" in answer.text
    assert "127.0.0.1" not in answer.text  # the broker has said it
    core.explain(1, 2, 1)
    assert sent(core) == [Explain(1, 2, 1)]
    core.receive(Answer(1, 2, 0, "It waits."), 0.0)
    (answer,) = core.take()
    assert (
        isinstance(answer, Answered) and answer.text == "It waits. (no answer from 127.0.0.1:9701)"
    )
    core.explain(1, 3, 99)
    (answer,) = core.take()
    assert isinstance(answer, Answered) and "ended" in answer.text


def test_what_is_asked_after_the_end_of_a_cluster_has_been_answered_by_it() -> None:
    core = opened()
    core.receive(ClusterClosed(1), 0.0)
    assert core.take() == [Closed(1)]
    core.request(NodeRequest(1, 1, DEALLOCATE, 7))
    core.explain(1, 2, 1)
    assert core.take() == []


def test_jobs_that_are_cancelled_before_they_are_sent_are_forgotten() -> None:
    core = opened(credit=0)
    first, last = job(1), job(10 * ENDED_MAX)
    core.submit(1, first)
    for seq in range(2, 10 * ENDED_MAX):
        core.submit(1, job(seq))
        core.cancel(1, seq)
        assert len(core.clusters[1].waiting) <= ENDED_MAX + 3
    core.submit(1, last)
    core.check()
    core.take()
    core.receive(Credit(1, 10), 0.0)
    assert sent(core) == [Submit(1, [spec for spec in (first._spec, last._spec) if spec])]


def test_pieces_of_blobs_are_read_and_sent() -> None:
    core = opened()
    core.receive(NeedBlobs(1, 7, [BlobRange(b"d", 0, 3)]), 0.0)
    assert core.take() == [Wanted(1, 7, [BlobRange(b"d", 0, 3)])]
    pieces = [BlobPiece(b"d", 0, b"abc")]
    core.send_pieces(1, 7, pieces)
    core.send_pieces(2, 7, pieces)  # a cluster that was closed
    assert sent(core) == [BlobPieces(1, 7, pieces)]


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(1, 9)))
def test_whatever_the_order_all_records_are_heard(order: list[int]) -> None:
    report = Report(1, 0)
    assert all(report.arrive(number) for number in range(1, 9))
    said = [heard for number in order for heard in report.deal(number, "")]
    assert [number for number, _ in said] == sorted({number for number, _ in said})
    assert report.heard == said[-1][0] == 8
    assert report.deal(8, "") == []


def test_records_that_went_with_a_broker_are_not_waited_for() -> None:
    report = Report(1, 0)
    assert [report.arrive(number) for number in (1, 2, 1000, 1001, 3)] == [True] * 4 + [False]
    assert report.deal(1001, "") == report.deal(2, "no") == []
    assert report.deal(1, "") == [(2, "no")]
    assert report.deal(1000, "") == [(1001, "")]


class FakeBroker:
    """What the core may assume of a broker, with every liberty that it has."""

    def __init__(self, core: Core, chance: random.Random) -> None:
        self.core = core
        self.chance = chance
        self.jobs: dict[int, None] = {}
        self.submitted = 0
        self.credit = 0
        self.opened = False
        self.ends: dict[int, list[int]] = {}
        self.closed = 0

    def take(self) -> None:
        """Do what the core wants, and what it wants because of that."""
        while effects := self.core.take():
            for effect in effects:
                self.carry_out(effect)

    def carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.receive(effect.message)
        elif isinstance(effect, Ended):
            for ended, result in effect.jobs:
                self.ends.setdefault(ended._seq, []).append(result.status)
        elif isinstance(effect, Closed):
            self.closed += 1

    def receive(self, message: Body) -> None:
        if isinstance(message, OpenCluster):
            self.opened = True
            self.credit = self.chance.randrange(5)
            self.core.receive(ClusterOpened(1, self.credit), 0.0)
        elif isinstance(message, Submit):
            self.submitted += len(message.jobs)
            assert self.opened and self.submitted <= self.credit
            assert not {spec.seq for spec in message.jobs} & self.jobs.keys()
            self.jobs |= {spec.seq: None for spec in message.jobs}
        elif isinstance(message, CloseCluster):
            self.finish(len(self.jobs), CANCELLED)
            self.core.receive(ClusterClosed(1), 0.0)

    def finish(self, count: int, status: int) -> None:
        seqs = self.chance.sample(list(self.jobs), min(count, len(self.jobs)))
        for seq in seqs:
            del self.jobs[seq]
        self.core.receive(Results(1, 7, [JobResult(seq, 1, status, 1, 2, b"") for seq in seqs]), 0)
        if self.chance.random() < 0.3:  # again, as after a reconnect
            late = [JobResult(seq, 1, FINISHED, 1, 2, b"") for seq in seqs]
            self.core.receive(Results(1, 7, late), 0.0)

    def restart(self) -> None:
        self.core.leave()
        self.take()
        self.jobs.clear()
        self.submitted = self.credit = 0
        self.opened = False
        self.core.join(0.0)

    def speak(self, seq: int) -> None:
        """Let a job say something, which may be anything that it said before."""
        attempt, number = self.chance.randint(1, 2), self.chance.randint(1, 4)
        self.core.receive(Records(1, [said(seq, number, attempt=attempt)]), 0.0)
        self.core.hear(1, seq, attempt, self.chance.randint(1, 4))

    def grant(self) -> None:
        if self.opened:
            self.credit += self.chance.randrange(1, 6)
            self.core.receive(Credit(1, self.credit), 0.0)


def submit_one(core: Core, seq: int, chance: random.Random) -> bool:
    core.submit(1, job(seq, priority=chance.choice([None, None, 1, -1])))
    return True


def take_step(core: Core, broker: FakeBroker, seq: int, chance: random.Random) -> None:
    step = chance.randrange(7)
    if step == 0 and seq:
        core.cancel(1, chance.randint(1, seq))
    elif step == 1:
        broker.finish(chance.randrange(4), chance.choice([FINISHED, TERMINATED, ABANDONED]))
    elif step == 2:
        broker.grant()
    elif step == 3 and chance.random() < 0.3:
        broker.restart()
    elif step == 4 and seq:
        broker.speak(chance.randint(1, seq))
    elif step == 5 and broker.jobs:
        core.receive(JobsRequeued(1, [chance.choice(list(broker.jobs))]), 0.0)
    elif not core.joined:
        core.join(0.0)


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 90))
def test_whatever_happens_every_job_ends_once(chance: random.Random, steps: int) -> None:
    core = Core()
    broker = FakeBroker(core, chance)
    core.open(OPENING, 0.0)
    seq = 0
    for _ in range(steps):
        seq += chance.random() < 0.2 and submit_one(core, seq + 1, chance)
        take_step(core, broker, seq, chance)
        core.check()
        broker.take()
        core.check()
    core.close(1)
    broker.take()
    assert broker.closed == 1
    assert sorted(broker.ends) == list(range(1, seq + 1))
    for statuses in broker.ends.values():
        assert len(statuses) == 1 or statuses == [ABANDONED, FINISHED]
