"""The client's state machine, and what it makes of jobs. No I/O, no threads, no waiting."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispy.core import BATCH_JOBS, PATIENCE_S, Begun, Closed, Core, Effect, Ended, Send, Warned
from dispy.job import DispyJob
from dispy.ledger import Ledger
from dispy.nodes import DispyNode
from dispy.pickling import Program, dump_arguments
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Credit,
    Done,
    JobResult,
    JobSpec,
    JobsRunning,
    Large,
    NodeGone,
    NodeInfo,
    NodeReady,
    NodeSpec,
    NodeTrouble,
    OpenCluster,
    Results,
    Submit,
)
from dispy.protocol.payload import pack_object, pack_result

OPENING = OpenCluster(1, "compute", JobSpec(0, 0, b""), [NodeSpec("127.0.0.1", 9701)])
NODE = NodeInfo(7, "127.0.0.1:9701", "here", 2, "Linux")


def job(seq: int, payload: bytes = b"x") -> DispyJob:
    return DispyJob(1, JobSpec(seq, 0, payload), None, (), {})


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
    effects = core.take()
    assert Send(OPENING) in effects and Send(CancelJobs(1, [3])) in effects
    core.receive(ClusterOpened(1, 100), 0.0)
    (message,) = sent(core)
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

    def grant(self) -> None:
        if self.opened:
            self.credit += self.chance.randrange(1, 6)
            self.core.receive(Credit(1, self.credit), 0.0)


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_whatever_happens_every_job_ends_once(chance: random.Random, steps: int) -> None:
    core = Core()
    broker = FakeBroker(core, chance)
    core.open(OPENING, 0.0)
    seq = 0
    for _ in range(steps):
        step = chance.randrange(7)
        if step <= 1:
            seq += 1
            core.submit(1, job(seq))
        elif step == 2 and seq:
            core.cancel(1, chance.randint(1, seq))
        elif step == 3:
            broker.finish(chance.randrange(4), chance.choice([FINISHED, TERMINATED, ABANDONED]))
        elif step == 4:
            broker.grant()
        elif step == 5 and chance.random() < 0.3:
            broker.restart()
        elif not core.joined:
            core.join(0.0)
        core.check()
        broker.take()
        core.check()
    core.close(1)
    broker.take()
    assert broker.closed == 1
    assert sorted(broker.ends) == list(range(1, seq + 1))
    for statuses in broker.ends.values():
        assert len(statuses) == 1 or statuses == [ABANDONED, FINISHED]


# -- what jobs look like ------------------------------------------------------------------------


def ledger_with(*jobs: DispyJob) -> Ledger:
    ledger = Ledger(None, None)
    ledger.pending = len(jobs)
    ledger.node_up(NODE)
    return ledger


def test_a_finished_job_has_everything() -> None:
    one = job(1)
    assert one.status == DispyJob.Created and not one.finish.is_set()
    ledger = ledger_with(one)
    ledger.end(7, [(one, returned(1, {"a": 1}))])
    assert one.status == DispyJob.Finished and one.finish.is_set()
    assert (one(), one.stdout, one.stderr, one.exception) == ({"a": 1}, "out", "err", None)
    assert (one.start_time, one.end_time, one.host, one.ip_addr) == (
        10.0,
        12.0,
        "127.0.0.1",
        "127.0.0.1",
    )
    assert ledger.wait_idle(0)
    (node,) = ledger.nodes()
    assert (node.jobs_done, node.cpu_time, node.busy, node.tx) == (1, 2.0, 0, 1)


def test_the_event_may_be_asked_for_only_after_the_end() -> None:
    one = job(1)
    ledger_with(one).end(7, [(one, returned(1))])
    assert one.finish.is_set()
    one(clear=True)
    assert not one.finish.is_set()


def test_a_failed_job_has_the_text_and_the_exception() -> None:
    one = job(1)
    value = pack_object([], pickle.dumps(ValueError("no")))
    body = pack_result(value, b"", b"", "Traceback ... ValueError: no")
    ledger_with(one).end(7, [(one, JobResult(1, 1, TERMINATED, 10.0, 12.0, body))])
    assert one.status == DispyJob.Terminated and one() is None
    assert one.exception == "Traceback ... ValueError: no"
    assert isinstance(one.exc, ValueError) and str(one.exc) == "no"


@pytest.mark.parametrize("status", [CANCELLED, TERMINATED, ABANDONED])
def test_an_end_without_a_word_is_explained(status: int) -> None:
    one = job(1)
    ledger_with(one).end(0, [(one, JobResult(1, 0, status, 0.0, 0.0, b""))])
    assert one.status == status and one.exception and one.start_time is None


@pytest.mark.parametrize(
    "body",
    [
        b"garbage",
        pack_result(b"\0garbage", b"", b"", ""),
        pack_result(pack_object([True], pickle.dumps(1)), b"", b"", ""),
        pack_result(pack_object([], b"cno.such.module\nx\n."), b"", b"", ""),
    ],
)
def test_a_result_that_cannot_be_unpickled_terminates_the_job(body: bytes) -> None:
    one = job(1)
    ledger = ledger_with(one)
    ledger.end(7, [(one, JobResult(1, 1, FINISHED, 10.0, 12.0, body))])
    assert one.status == DispyJob.Terminated and one.result is None
    assert one.exception is not None and "can't be unpickled" in one.exception
    assert ledger.pending == 0


def test_a_large_result_comes_in_parts() -> None:
    one = job(1)
    packed = dump_arguments((b"x" * 100_000, bytearray(70_000)), {}, Program((), ()))
    assert packed.payload and len(packed.parts) == 2
    body = pack_result(packed.payload, b"", b"", "")
    result = JobResult(1, 1, FINISHED, 10.0, 12.0, b"", [Large(len(body), [body]), *packed.parts])
    ledger_with(one).end(7, [(one, result)])
    (constant, variable), _ = one.result
    assert type(constant) is bytes and constant == b"x" * 100_000
    assert type(variable) is bytearray and variable == bytearray(70_000)


def test_abandoned_is_counted_once_and_may_finish() -> None:
    one = job(1)
    ledger = ledger_with(one)
    ledger.begin(7, [(one, 9.0)])
    assert one.status == DispyJob.Running and ledger.nodes()[0].busy == 1
    ledger.end(7, [(one, JobResult(1, 1, ABANDONED, 0.0, 0.0, b""))])
    assert one.status == DispyJob.Abandoned and ledger.pending == 0
    ledger.end(7, [(one, returned(1, 5))])
    assert one.status == DispyJob.Finished and one() == 5
    assert ledger.pending == 0 and ledger.nodes()[0].busy == 0


def test_callbacks_come_in_order_and_survive_exceptions() -> None:
    calls: list[tuple[object, ...]] = []

    def on_job(ended: DispyJob) -> None:
        calls.append(("job", ended.status))
        raise RuntimeError("must be survived")

    def on_cluster(status: int, node: DispyNode | None, about: DispyJob | None) -> None:
        calls.append((status, node and node.name, about and about.id))

    one = job(1)
    ledger = Ledger(on_job, on_cluster)
    ledger.pending = 1
    ledger.created(one)
    ledger.node_up(NODE)
    ledger.end(7, [(one, returned(1))])
    ledger.close()
    assert ledger.listener.drain(10)
    assert calls == [
        (DispyJob.Created, None, 1),
        (DispyNode.Initialized, "here", None),
        (DispyJob.Running, "here", 1),
        ("job", DispyJob.Finished),
        (DispyJob.Finished, "here", 1),
        (DispyNode.Closed, "here", None),
    ]
    ledger.listener.silent = True
    ledger.node_up(NODE)
    assert ledger.listener.drain(10) and len(calls) == 6


def test_a_node_that_comes_back_keeps_its_row() -> None:
    ledger = ledger_with()
    ledger.node_down(7)
    assert ledger.nodes()[0].status == DispyNode.Closed
    ledger.node_up(NodeInfo(8, NODE.address, NODE.name, 4, "Linux"))
    (node,) = ledger.nodes()
    assert node.status == DispyNode.Initialized and node.cpus == 4
