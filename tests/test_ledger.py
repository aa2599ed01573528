"""What users see of jobs and nodes: the ledger fills it in and tells callbacks."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable

import pytest

from dispy.callbacks import Listener
from dispy.job import DispyJob
from dispy.ledger import Ledger, fill
from dispy.nodes import DispyNode, DispyNodeAvailInfo, find
from dispy.orders import Follow, Hear, Order
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    OUTPUT,
    PROVISIONAL,
    TERMINATED,
    JobRecord,
    JobResult,
    JobSpec,
    Large,
    NodeInfo,
    Vitals,
)
from dispy.protocol.payload import STDOUT, pack_object, pack_output, pack_result

NODE = NodeInfo(7, "127.0.0.1:9701", "here", 2, "Linux")
PATIENCE_S = 10.0  # nothing takes so long unless it hangs


def job(seq: int, payload: bytes = b"x") -> DispyJob:
    return DispyJob(1, JobSpec(seq, 0, payload), None, (), {})


def returned(seq: int, value: object = None, status: int = FINISHED) -> JobResult:
    body = pack_result(pack_object([], pickle.dumps(value)), b"out", b"err", "")
    return JobResult(seq, 1, status, 10.0, 12.0, body)


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
    buffers: list[pickle.PickleBuffer] = []
    value = (pickle.PickleBuffer(b"x" * 100_000), pickle.PickleBuffer(bytearray(70_000)))
    stream = pickle.dumps(value, 5, buffer_callback=buffers.append)
    body = pack_result(pack_object([True, False], stream), b"", b"", "")
    parts = [Large(len(data), [data]) for data in (body, *[bytes(b) for b in buffers])]
    ledger_with(one).end(7, [(one, JobResult(1, 1, FINISHED, 10.0, 12.0, b"", parts))])
    constant, variable = one.result
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


def test_a_nodes_address_is_the_one_that_the_cluster_names() -> None:
    ledger = ledger_with()
    addresses = ["10.0.0.7:9701", "192.0.2.7:9701"]
    ledger.node_up(NodeInfo(8, addresses[0], "far", 2, "Linux", addresses), 0, addresses[1])
    far = find(ledger.nodes(), "192.0.2.7:9701")
    assert far is not None and far.ip_addr == "192.0.2.7"
    assert find(ledger.nodes(), "10.0.0.7") is far


# -- what running jobs say ----------------------------------------------------------------------


def provisional(seq: int, number: int, value: object) -> JobRecord:
    return JobRecord(seq, 1, number, PROVISIONAL, pack_object([], pickle.dumps(value)))


def test_a_provisional_result_is_shown_then_heard() -> None:
    seen: list[tuple[object, ...]] = []
    orders: list[Order] = []

    def on_job(shown: DispyJob) -> None:
        seen.append(("job", shown.status, shown.result, shown.id))

    def on_cluster(status: int, node: DispyNode | None, about: DispyJob | None) -> None:
        if about is not None:
            seen.append((status, node and node.name, status > 6 and about.result))

    one = job(1)
    ledger = Ledger(on_job, on_cluster, number=1)
    ledger.hand_over = orders.append
    ledger.pending = 1
    ledger.node_up(NODE)
    ledger.provisional(7, one, provisional(1, 1, "so far"))
    assert ledger.listener.drain(PATIENCE_S)
    assert (one.status, one.result, one.host) == (7, "so far", "127.0.0.1")
    assert orders == [Hear(1, 1, 1, 1)]
    assert ledger.jobs_at(ledger.nodes()[0]) == [one]
    ledger.end(7, [(one, returned(1, "at last"))])
    assert ledger.listener.drain(PATIENCE_S)
    assert seen == [
        (6, "here", False),
        ("job", 7, "so far", 1),
        (7, "here", "so far"),
        ("job", 11, "at last", 1),
        (11, "here", "at last"),
    ]
    assert (one.status, one.result) == (11, "at last")
    assert ledger.jobs_at(ledger.nodes()[0]) == [] and ledger.nodes()[0].busy == 0
    assert ledger.nodes()[0].rx > 0


def test_a_provisional_result_that_comes_late_is_still_shown() -> None:
    entered, proceed = threading.Event(), threading.Event()
    seen: list[tuple[int, object]] = []

    def on_job(shown: DispyJob) -> None:
        entered.set()
        proceed.wait(PATIENCE_S)
        seen.append((shown.status, shown.result))

    one = job(1)
    ledger = Ledger(on_job, None)
    ledger.pending = 1
    ledger.provisional(0, one, provisional(1, 1, 1))
    ledger.provisional(0, one, provisional(1, 2, 2))
    assert entered.wait(PATIENCE_S)
    ledger.end(0, [(one, returned(1, 3))])  # while the first is being shown
    assert (one.status, one.result) == (11, 3)
    proceed.set()
    assert ledger.listener.drain(PATIENCE_S)
    assert seen == [(7, 1), (7, 2), (11, 3)]
    assert (one.status, one.result) == (11, 3)


def test_without_a_callback_a_provisional_result_is_heard_at_once() -> None:
    orders: list[Order] = []
    ledger = ledger_with()
    ledger.hand_over = orders.append
    one = job(1)
    ledger.provisional(7, one, provisional(1, 1, 5))
    assert (one.status, one.result) == (DispyJob.ProvisionalResult, 5)
    ledger.provisional(7, one, JobRecord(1, 1, 2, PROVISIONAL, b"\0garbage"))
    assert (one.status, one.result) == (DispyJob.ProvisionalResult, 5)
    first, second = orders
    assert first == Hear(0, 1, 1, 1)
    assert isinstance(second, Hear) and "can't be unpickled" in second.error


def test_a_job_that_waits_again_is_created_again() -> None:
    told: list[int] = []
    one = job(1)
    ledger = Ledger(None, lambda status, node, about: told.append(status))
    ledger.pending = 1
    ledger.node_up(NODE)
    ledger.begin(7, [(one, 9.0)])
    ledger.requeue([one])
    assert (one.status, one.host, one.start_time) == (DispyJob.Created, None, None)
    assert ledger.nodes()[0].busy == 0
    ledger.requeue([one])  # it hadn't begun again
    ledger.begin(7, [(one, 11.0)])
    assert ledger.listener.drain(PATIENCE_S)
    assert told == [4, 6, 5, 6]


def test_a_provisional_result_of_an_earlier_attempt_leaves_the_job_waiting() -> None:
    go_on, one = threading.Event(), job(1)
    told: list[int] = []
    ledger = Ledger(lambda shown: told.append(shown.status), lambda *_: go_on.wait(PATIENCE_S))
    ledger.pending = 1
    ledger.begin(0, [(one, 10.0)])  # its callback waits
    ledger.provisional(0, one, provisional(1, 1, "old"))
    ledger.requeue([one])
    go_on.set()
    assert ledger.listener.drain(PATIENCE_S)
    assert told == [DispyJob.ProvisionalResult]
    assert (one.status, one.result) == (DispyJob.Created, None)


def printed(seq: int, number: int, offset: int, text: bytes) -> JobRecord:
    return JobRecord(seq, 1, number, OUTPUT, pack_output(STDOUT, offset, text))


def test_what_a_job_prints_can_be_followed() -> None:
    orders: list[Order] = []
    ledger = ledger_with()
    ledger.hand_over = orders.append
    one = job(1)
    follower = ledger.follow(one)
    assert orders == [Follow(0, 1)]
    ledger.printed(7, one, printed(1, 1, 0, b"o"))
    assert next(follower) == ("stdout", "o")
    ledger.end(7, [(one, returned(1))])
    assert "".join(text for stream, text in follower if stream == "stdout") == "ut"
    assert Hear(0, 1, 1, 1) in orders
    assert list(ledger.follow(one)) == [("stdout", "out"), ("stderr", "err")]


def test_output_that_nobody_follows_is_heard_at_once() -> None:
    orders: list[Order] = []
    ledger = ledger_with()
    ledger.hand_over = orders.append
    ledger.printed(7, job(1), printed(1, 1, 0, b"o"))
    assert orders == [Hear(0, 1, 1, 1)]


def test_a_callback_gets_all_output_before_the_end() -> None:
    seen: list[object] = []
    one = job(1)
    ledger = Ledger(
        lambda ended: seen.append(ended.status), None, lambda about, stream, text: seen.append(text)
    )
    ledger.pending = 1
    ledger.printed(0, one, printed(1, 1, 0, b"ou"))
    assert ledger.listener.drain(PATIENCE_S)
    ledger.end(0, [(one, returned(1))])
    assert ledger.listener.drain(PATIENCE_S)
    assert seen == ["ou", "t", "err", DispyJob.Finished]


# -- nodes and the rest --------------------------------------------------------------------------


def test_a_node_tells_what_it_has_to_spare() -> None:
    told: list[tuple[int, object]] = []
    ledger = Ledger(
        None, lambda status, node, about: told.append((status, node and node.avail_info))
    )
    ledger.node_up(NODE)
    ledger.node_alive(7, Vitals(99.5, 1 << 30, 1 << 40, 100.0))
    ledger.node_alive(8, Vitals(99.5, 1 << 30, 1 << 40, 100.0))
    assert ledger.listener.drain(PATIENCE_S)
    info = DispyNodeAvailInfo(99.5, 1 << 30, 1 << 40, 100.0)
    assert told[-1] == (DispyNode.AvailInfo, info) and len(told) == 2
    assert ledger.nodes()[0].avail_info == info


def test_an_old_number_of_a_node_does_not_close_the_new_one() -> None:
    ledger = ledger_with()
    ledger.node_up(NodeInfo(8, NODE.address, NODE.name, 2, "Linux"))
    ledger.node_down(7)
    assert ledger.nodes()[0].status == DispyNode.Initialized
    ledger.node_down(8)
    assert ledger.nodes()[0].status == DispyNode.Closed


def test_what_a_program_prints_stays_bytes() -> None:
    one = job(1)
    ledger = Ledger(None, None, binary=True)
    ledger.pending = 1
    ledger.end(0, [(one, returned(1, 3))])
    assert (one.result, one.stdout, one.stderr) == (3, b"out", b"err")
    assert [text for _, text in ledger.follow(one)] == ["out", "err"]


def test_files_go_where_the_program_was_when_it_made_the_cluster() -> None:
    assert Ledger(None, None).folder == os.getcwd()


def test_a_job_can_be_filled_in_without_a_ledger() -> None:
    one = job(1)
    fill(one, returned(1, 4))
    assert one() == 4 and one.explain() == "job 1 is Finished"
    assert list(one.follow()) == [("stdout", "out"), ("stderr", "err")]


class Told(Listener):
    """Notes, whenever something is posted, how the ledger is then."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.seen: list[tuple[int, bool]] = []

    def post(self, function: Callable[..., object], *args: object) -> None:
        self.seen.append((self.ledger.pending, self.ledger.wait_idle(0)))


def test_who_is_told_of_an_end_sees_it_counted_and_the_last_one_is_waited_for() -> None:
    jobs = [job(seq) for seq in (1, 2, 3)]
    ledger = Ledger(lambda job: None, None)
    ledger.pending = len(jobs)
    ledger.listener = told = Told(ledger)
    ledger.end(0, [(one, returned(one._seq)) for one in jobs])
    assert told.seen == [(2, False), (1, False), (0, False)]
    assert ledger.pending == 0 and ledger.wait_idle(0)


def test_a_callback_that_waits_lets_others_be_called() -> None:
    calls: list[str] = []
    one = job(1)
    ledger = Ledger(None, None)
    ledger.pending = 1

    def wait() -> None:
        calls.append("waits")
        calls.append(f"has waited: {ledger.wait_idle(PATIENCE_S)}")

    def end() -> None:
        calls.append("ends")
        ledger.end(0, [(one, returned(1))])

    ledger.listener.post(wait)
    ledger.listener.post(end)
    assert ledger.listener.drain(PATIENCE_S)
    assert calls == ["waits", "ends", "has waited: True"]


def test_a_callback_that_wants_to_exit_does_not_end_the_others() -> None:
    calls: list[str] = []
    ledger = Ledger(None, None)
    ledger.listener.post(sys.exit)
    ledger.listener.post(calls.append, "next")
    assert ledger.listener.drain(PATIENCE_S)
    assert calls == ["next"]


def test_a_callback_that_waits_for_a_job_lets_others_be_called() -> None:
    one = job(1)
    ledger = ledger_with(one)
    results: list[object] = []
    ledger.listener.post(lambda: results.append(one()))
    ledger.listener.post(ledger.end, 7, [(one, returned(1, "end"))])
    assert ledger.listener.drain(PATIENCE_S)
    assert results == ["end"]


def test_what_is_called_inside_a_callback_does_not_hide_that_it_is_not_over() -> None:
    ledger = Ledger(None, None)
    ledger.pending = 1
    waits = threading.Event()
    calls: list[str] = []

    def wait() -> None:
        waits.set()
        assert ledger.wait_idle(PATIENCE_S)
        calls.append("over")

    ledger.listener.post(wait)
    assert waits.wait(PATIENCE_S)
    assert not ledger.listener.drain(0.1)
    ledger.pending = 0
    assert ledger.listener.drain(PATIENCE_S)
    assert calls == ["over"]
