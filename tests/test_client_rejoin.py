"""What the client's core makes of a broker that comes, goes, forgets, and can't take jobs."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dispy.core import Core
from dispy.effects import (
    Answered,
    Closed,
    Effect,
    Ended,
    NodeDown,
    Send,
    Silent,
    Warned,
)
from dispy.job import DispyJob
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    DEALLOCATE,
    FINISHED,
    PROVISIONAL,
    TERMINATED,
    Accepted,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterLost,
    ClusterOpened,
    ComputationSpec,
    Credit,
    FollowJobs,
    Heard,
    JobOptions,
    JobRecord,
    JobResult,
    JobSpec,
    NodeInfo,
    NodeReady,
    NodeRequest,
    NodeSpec,
    OpenCluster,
    Records,
    RecordsHeard,
    Rejected,
    Results,
    ResultsHeard,
    Submit,
)
from dispy.ranges import Ranges

OPENING = OpenCluster(1, ComputationSpec("compute", []), [NodeSpec("*")])
REENTRANT = OpenCluster(1, ComputationSpec("compute", []), [NodeSpec("*")], reentrant=True)
NODE = NodeInfo(7, "127.0.0.1:9701", "here", 2, "Linux")


def job(seq: int, priority: int = 0) -> DispyJob:
    options = JobOptions(priority) if priority else None
    return DispyJob(1, JobSpec(seq, 0, b"x", [], options), None, (), {})


def ended(seq: int, status: int = FINISHED) -> JobResult:
    return JobResult(seq, 1, status, 10.0, 12.0, b"")


def sent(core: Core) -> list[Body]:
    return [effect.message for effect in core.take() if isinstance(effect, Send)]


def submitted(messages: list[Body]) -> list[int]:
    return [spec.seq for each in messages if isinstance(each, Submit) for spec in each.jobs]


def with_jobs(count: int, opening: OpenCluster = OPENING, credit: int = 100) -> Core:
    """Return a core whose jobs have been sent to a broker with a journal."""
    core = Core()
    core.join(0.0)
    core.open(opening, 0.0)
    core.receive(ClusterOpened(1, credit, durable=True), 0.0)
    for seq in range(1, count + 1):
        core.submit(1, job(seq))
    core.take()
    core.check()
    return core


def ends(core: Core) -> dict[int, int]:
    effects = [effect for effect in core.take() if isinstance(effect, Ended)]
    return {result.seq: result.status for effect in effects for _, result in effect.jobs}


# -- a broker that knows the cluster ------------------------------------------------------------


def test_what_was_accepted_stays_and_the_rest_is_sent_again() -> None:
    core = with_jobs(5)
    core.receive(Accepted(1, [(1, 2), (4, 4)]), 0.0)
    core.submit(1, job(6))
    core.take()
    core.join(0.0)
    assert sent(core) == [OPENING]
    core.submit(1, job(7))
    assert sent(core) == []  # it first says what it knows
    core.receive(ClusterOpened(1, 100, known=True, durable=True), 0.0)
    assert submitted(sent(core)) == [3, 5, 6, 7]
    core.check()
    assert core.clusters[1].sent == 7


def test_old_credit_is_no_answer() -> None:
    core = with_jobs(1)
    core.join(0.0)
    core.submit(1, job(2))
    core.receive(Credit(1, 1000), 0.0)  # of the session before
    assert submitted(sent(core)) == []
    core.receive(ClusterOpened(1, 100), 0.0)
    assert submitted(sent(core)) == [2]


def test_a_cancelled_job_that_was_accepted_ends_by_the_brokers_word() -> None:
    core = with_jobs(2)
    core.receive(Accepted(1, [(1, 1)]), 0.0)
    core.cancel(1, 1)
    core.cancel(1, 2)
    core.take()
    core.join(0.0)
    core.take()
    core.receive(ClusterOpened(1, 100, known=True), 0.0)
    effects = core.take()
    assert Send(CancelJobs(1, [1, 2])) in effects
    (end,) = [effect for effect in effects if isinstance(effect, Ended)]
    assert [(one._seq, result.status) for one, result in end.jobs] == [(2, CANCELLED)]
    assert 1 in core.clusters[1].unfinished
    core.check()


def test_followed_jobs_and_records_go_on() -> None:
    core = with_jobs(2)
    core.receive(Accepted(1, [(1, 2)]), 0.0)
    core.follow(1, 2)
    core.receive(Records(1, [JobRecord(1, 1, 1, PROVISIONAL, b"x")], 7), 0.0)
    core.hear(1, 1, 1, 1)
    core.take()
    core.join(0.0)
    core.take()
    core.receive(ClusterOpened(1, 100, known=True), 0.0)
    messages = sent(core)
    assert FollowJobs(1, [2]) in messages
    assert RecordsHeard(1, [Heard(1, 1, 1)]) in messages  # the broker may not have got it
    core.receive(Records(1, [JobRecord(1, 1, 1, PROVISIONAL, b"x")], 7), 0.0)
    assert [type(effect) for effect in core.take()] == [Send]  # it isn't told once more


def test_requests_of_the_last_session_are_answered_and_nodes_are_down() -> None:
    core = with_jobs(0)
    core.receive(NodeReady(1, NODE), 0.0)
    core.request(NodeRequest(1, 1, DEALLOCATE, 7))
    core.take()
    core.join(0.0)
    effects = core.take()
    assert [type(effect) for effect in effects] == [NodeDown, Send, Answered]
    assert not core.clusters[1].asked


# -- a broker that has forgotten it -------------------------------------------------------------


def test_jobs_that_a_forgetful_broker_had_are_abandoned() -> None:
    core = with_jobs(3, credit=2)
    core.join(0.0)
    core.take()
    core.receive(ClusterOpened(1, 100), 0.0)
    effects = core.take()
    (end,) = [effect for effect in effects if isinstance(effect, Ended)]
    assert [(one._seq, result.status) for one, result in end.jobs] == [
        (1, ABANDONED),
        (2, ABANDONED),
    ]
    assert b"without its journal" in end.jobs[0][1].payload
    assert [effect.text for effect in effects if isinstance(effect, Warned)] == [
        "the broker has forgotten cluster 'compute': 2 jobs that it had are Abandoned, since it "
        "isn't reentrant"
    ]
    assert submitted([each.message for each in effects if isinstance(each, Send)]) == [3]
    core.check()


def test_reentrant_jobs_are_sent_again_in_their_order() -> None:
    core = with_jobs(3, REENTRANT, credit=2)
    core.receive(Accepted(1, [(1, 2)]), 0.0)
    core.receive(Records(1, [JobRecord(1, 1, 1, PROVISIONAL, b"x")], 7), 0.0)
    core.cancel(1, 2)
    core.take()
    core.leave()
    core.join(0.0)
    core.take()
    core.receive(ClusterOpened(1, 100), 0.0)
    effects = core.take()
    assert Silent(1, [1]) in effects
    assert [effect.jobs[0][0]._seq for effect in effects if isinstance(effect, Ended)] == [2]
    assert submitted([each.message for each in effects if isinstance(each, Send)]) == [1, 3]
    core.check()
    core.join(0.0)
    core.receive(ClusterOpened(1, 100, known=True), 0.0)  # what was accepted then is nothing now
    assert submitted(sent(core)) == [1, 3]


def test_jobs_for_one_node_go_to_no_other_at_a_forgetful_broker() -> None:
    core = with_jobs(0, REENTRANT, credit=1)
    core.receive(NodeReady(1, NODE), 0.0)
    for seq in (1, 2):
        pinned = job(seq)
        assert pinned._spec is not None
        pinned._spec.options = JobOptions(node=7)
        core.submit(1, pinned)
        core.take()
    core.submit(1, job(3))
    core.join(0.0)
    core.receive(ClusterOpened(1, 100, known=True), 0.0)
    assert submitted(sent(core)) == [1, 2, 3]
    core.join(0.0)
    core.submit(1, job(4))
    core.receive(ClusterOpened(1, 100), 0.0)
    effects = core.take()
    statuses = [r.status for each in effects if isinstance(each, Ended) for _, r in each.jobs]
    assert statuses == [ABANDONED, ABANDONED]
    assert submitted([each.message for each in effects if isinstance(each, Send)]) == [3, 4]
    core.check()


def test_a_cluster_that_closes_is_closed_at_a_broker_that_comes_back() -> None:
    core = with_jobs(1)
    core.close(1)
    core.take()
    core.leave()
    assert any(isinstance(effect, Closed) for effect in core.take())
    for _ in range(2):
        core.join(0.0)
        assert sent(core) == [CloseCluster(1)]
    core.receive(ClusterClosed(1), 0.0)
    core.join(0.0)
    assert sent(core) == []
    core.check()


def test_a_broker_that_is_away_is_not_waited_for_in_order_to_close() -> None:
    core = with_jobs(1)
    core.unreachable("connection refused")
    core.close(1)
    effects = core.take()
    warned, *rest = effects
    assert isinstance(warned, Warned) and "until it is told" in warned.text
    assert [type(effect) for effect in rest] == [Send, Ended, Closed]
    core.unreachable("")
    core.receive(ClusterClosed(1), 0.0)
    assert not core.state.unclosed


def test_a_broker_that_goes_away_while_a_cluster_closes_is_not_waited_for() -> None:
    core = with_jobs(2)
    core.close(1)
    assert sent(core) == [CloseCluster(1)]
    core.unreachable("silent for 3.5 s")
    warned, jobs, closed = core.take()
    assert isinstance(warned, Warned) and "until it is told" in warned.text
    assert isinstance(jobs, Ended) and {result.status for _, result in jobs.jobs} == {CANCELLED}
    assert isinstance(closed, Closed)
    core.check()
    core.unreachable("")
    core.receive(ClusterClosed(1), 0.0)
    assert not core.state.unclosed


def test_a_lost_cluster_ends_with_the_reason() -> None:
    core = with_jobs(2)
    core.submit(1, job(3))
    core.receive(ClusterLost(1, "it was taken over by ann"), 0.0)
    effects = core.take()
    assert [type(effect) for effect in effects] == [Warned, Ended, Closed]
    assert isinstance(effects[1], Ended) and len(effects[1].jobs) == 3
    assert {result.status for _, result in effects[1].jobs} == {ABANDONED}
    assert b"taken over by ann" in effects[1].jobs[0][1].payload
    core.join(0.0)
    assert sent(core) == []  # it isn't ours to be closed


# -- results, acceptance and rejection ----------------------------------------------------------


def test_results_are_heard_after_they_have_ended_also_duplicates() -> None:
    core = with_jobs(3)
    core.receive(Results(1, 7, [ended(1)], 11), 0.0)
    core.receive(Results(1, 7, [ended(2)], 12), 0.0)
    core.receive(Results(1, 7, [ended(3)]), 0.0)
    effects = core.take()
    assert [type(effect) for effect in effects] == [Ended, Ended, Ended, Send]
    assert effects[-1] == Send(ResultsHeard(1, [11, 12]))
    core.receive(Results(1, 7, [ended(1)], 11), 0.0)
    assert core.take() == [Send(ResultsHeard(1, [11]))]


def test_rejected_jobs_wait_in_their_order_and_that_is_told_once() -> None:
    core = with_jobs(4)
    core.submit(1, job(5, priority=3))
    core.take()
    core.cancel(1, 3)
    core.take()
    core.receive(Rejected(1, [1, 2], "the disk is full", 0), 0.0)
    core.receive(Rejected(1, [3, 4, 5], "the disk is full", 0), 0.0)
    core.submit(1, job(6))
    effects = core.take()
    assert [type(effect) for effect in effects] == [Warned, Ended]  # the cancelled one
    core.check()
    core.explain(1, 1, 1)
    core.receive(Credit(1, 3), 0.0)
    messages = sent(core)
    assert submitted(messages) == [5, 1, 2]
    core.receive(Credit(1, 10), 0.0)
    assert submitted(sent(core)) == [4, 6]
    core.check()
    core.receive(Rejected(1, [6], "the disk is full", 4), 0.0)
    assert [type(effect) for effect in core.take()] == [Warned]  # there was credit meanwhile


def test_jobs_that_are_rejected_while_the_cluster_closes_end() -> None:
    core = with_jobs(2)
    core.close(1)
    core.take()
    core.receive(Rejected(1, [1, 2], "the disk is full", 0), 0.0)
    assert ends(core) == {1: CANCELLED, 2: CANCELLED}
    core.check()


def test_explain_says_that_the_broker_is_away() -> None:
    core = with_jobs(1)
    core.receive(Accepted(1, [(1, 1)]), 0.0)
    core.submit(1, job(2))
    core.take()
    core.unreachable("connection refused")
    core.explain(1, 1, 1)
    core.explain(1, 2, 2)
    core.join(0.0)
    core.explain(1, 3, 2)
    one, two, *_ = [effect for effect in core.take() if isinstance(effect, Answered)]
    assert "the broker has it" in one.text and "connection refused" in one.text
    assert "waits for the connection" in two.text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9))))
def test_ranges_are_a_set(ranges: list[tuple[int, int]]) -> None:
    found, expected = Ranges(), set()
    for first, more in ranges:
        found.add(first, first + more - 1)
        expected |= set(range(first, first + more))
        assert found.count == len(expected)
        assert {n for n in range(80) if n in found} == expected
    gaps = sum(n not in expected and n + 1 in expected for n in range(80))
    assert len(found) == gaps


class DurableBroker:
    """What the core may assume of a broker with a journal, with every liberty that it has."""

    def __init__(self, core: Core, chance: random.Random) -> None:
        self.core = core
        self.chance = chance
        self.calm = False  # nothing goes wrong any more
        self.known = False
        self.kept: dict[int, None] = {}  # jobs on the disk that have not ended
        self.seen: set[int] = set()
        self.unheard: dict[int, Results] = {}
        self.record = 0
        self.limit = 0
        self.lost: list[Body] = []  # said to the core and never arrived
        self.ends: dict[int, list[int]] = {}
        self.runs: dict[int, int] = {}
        self.closed = 0

    def take(self, deaf: bool = False) -> None:
        while effects := self.core.take():
            for effect in effects:
                self.carry_out(effect, deaf)

    def carry_out(self, effect: Effect, deaf: bool) -> None:
        if isinstance(effect, Send) and not deaf:
            self.receive(effect.message)
        elif isinstance(effect, Ended):
            for one, result in effect.jobs:
                self.ends.setdefault(one._seq, []).append(result.status)
        elif isinstance(effect, Closed):
            self.closed += 1

    def say(self, message: Body) -> None:
        self.core.receive(message, 0.0)
        self.core.check()

    def receive(self, message: Body) -> None:
        if isinstance(message, OpenCluster):
            known, self.known = self.known, True
            self.limit = len(self.seen) + self.chance.randrange(8)
            self.say(ClusterOpened(1, self.limit, known=known, durable=True))
            for each in list(self.unheard.values()):
                self.say(each)
        elif isinstance(message, Submit):
            self.submit(message)
        elif isinstance(message, ResultsHeard):
            for record in message.records:
                self.unheard.pop(record, None)
        elif isinstance(message, CancelJobs):
            self.end([seq for seq in message.jobs if seq in self.kept], CANCELLED)
        elif isinstance(message, CloseCluster):
            self.end(list(self.kept), CANCELLED)
            self.known = False
            self.say(ClusterClosed(1))

    def submit(self, message: Submit) -> None:
        seqs = [spec.seq for spec in message.jobs]
        if not self.calm and self.chance.random() < 0.2:
            self.limit = len(self.seen)
            self.say(Rejected(1, [seq for seq in seqs if seq not in self.seen], "full", self.limit))
        else:
            new = [seq for seq in seqs if seq not in self.seen]
            self.seen |= set(new)
            self.kept |= dict.fromkeys(new)
        if self.calm or self.chance.random() < 0.8:
            self.say(Accepted(1, [(seq, seq) for seq in seqs if seq in self.seen]))

    def end(self, seqs: list[int], status: int) -> None:
        if not seqs:
            return
        for seq in seqs:
            del self.kept[seq]
            if status in (FINISHED, TERMINATED):
                self.runs[seq] = self.runs.get(seq, 0) + 1
        self.record += 1
        results = Results(1, 7, [ended(seq, status) for seq in seqs], self.record)
        self.unheard[self.record] = results
        if self.calm or self.chance.random() < 0.7:  # else it is lost with the connection
            self.say(results)

    def work(self) -> None:
        count = min(len(self.kept), self.chance.randrange(4))
        seqs = self.chance.sample(list(self.kept), count)
        self.end(seqs, self.chance.choice([FINISHED, TERMINATED]))

    def restart(self, forget: bool) -> None:
        self.take(deaf=self.chance.random() < 0.5)
        if forget:
            self.known = False
            self.kept.clear()
            self.seen.clear()
            self.unheard.clear()
        if self.chance.random() < 0.5:
            self.core.leave()
            self.take(deaf=True)
        self.core.join(0.0)

    def grant(self) -> None:
        if self.known:
            self.limit = max(self.limit, len(self.seen)) + self.chance.randrange(1, 6)
            self.say(Credit(1, self.limit))


def step(core: Core, broker: DurableBroker, seq: int, chance: random.Random) -> None:
    what = chance.randrange(6)
    if what == 0 and seq:
        core.cancel(1, chance.randint(1, seq))
    elif what in (1, 2):
        broker.work()
    elif what == 3:
        broker.grant()
    elif what == 4 and chance.random() < 0.5:
        broker.restart(forget=chance.random() < 0.2)


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 90), st.booleans())
def test_whatever_the_broker_does_jobs_end_once_and_run_once_unless_reentrant(
    chance: random.Random, steps: int, reentrant: bool
) -> None:
    core = Core()
    broker = DurableBroker(core, chance)
    core.join(0.0)
    core.open(REENTRANT if reentrant else OPENING, 0.0)
    seq = 0
    for _ in range(steps):
        if chance.random() < 0.4:
            seq += 1
            core.submit(1, job(seq, chance.choice([0, 0, 0, 1, -1])))
        step(core, broker, seq, chance)
        core.check()
        broker.take()
        core.check()
    broker.restart(forget=False)
    broker.calm = True
    for _ in range(seq + 1):  # when all goes well at last, everything ends
        broker.take()
        broker.grant()
        broker.take()
        broker.end(list(broker.kept), FINISHED)
    assert not core.clusters[1].unfinished
    core.close(1)
    broker.take()
    core.check()
    assert broker.closed == 1
    assert sorted(broker.ends) == list(range(1, seq + 1))
    assert all(len(statuses) == 1 for statuses in broker.ends.values())
    assert reentrant or all(count == 1 for count in broker.runs.values())
