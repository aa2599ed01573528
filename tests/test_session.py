"""The session's thread: whatever happens to it, nobody is left waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dispy.allocate import NodeAllocate
from dispy.blobs import BlobSource
from dispy.job import DispyJob
from dispy.ledger import Ledger
from dispy.nodes import DispyNodeAvailInfo
from dispy.offers import Offers
from dispy.orders import Ask, AskWhy, Cancel, Close, Define, Follow, Open
from dispy.protocol import messages
from dispy.protocol.arrivals import Arrival
from dispy.protocol.events import DialFailed, Event, Joined, Left, Received
from dispy.protocol.messages import (
    DEALLOCATE,
    FILE,
    Allocate,
    Answer,
    BlobPiece,
    BlobPieces,
    BlobRange,
    Body,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Code,
    ComputationSpec,
    Done,
    Heard,
    Identity,
    JobRecord,
    JobResult,
    JobSpec,
    NeedBlobs,
    NodeInfo,
    NodeOffer,
    NodeReady,
    NodeRequest,
    OpenCluster,
    Records,
    RecordsHeard,
    Results,
    ResultsHeard,
    Submit,
    Vitals,
)
from dispy.protocol.payload import pack_file_piece
from dispy.requests import Reply
from dispy.session import Session

PATIENCE_S = 10.0  # nothing takes so long unless it hangs
BROKER = Identity("broker", "instance", "name", "0", "3", "here")


class Wire:
    """Bus and exchange in one: a broker that runs jobs at once, unless it is told not to."""

    def __init__(self) -> None:
        self.said: list[Event] = [Joined("broker", BROKER, [], "")]
        self.woken = threading.Event()
        self.lazy = False  # don't run jobs
        self.broken = False  # raise, as a bug would
        self.farewell = ""
        self.sent: list[Body] = []
        self.opened = threading.Event()  # there is a cluster
        self.came = threading.Event()  # something is in ``sent``
        self.closed = False

    def poll(self, timeout_s: float) -> list[Arrival]:
        if not self.said:
            self.woken.wait(timeout_s)
        self.woken.clear()
        if self.broken:
            raise RuntimeError("a bug")
        return [None] if self.said else []  # type: ignore[list-item]

    def wake(self) -> None:
        self.woken.set()

    def close(self) -> None:
        self.closed = True

    def receive(self, arrival: Arrival, now: float) -> list[Event]:
        said, self.said = self.said, []
        return said

    def send(self, peer: str, message: Body) -> None:
        if isinstance(message, OpenCluster):
            self.say(ClusterOpened(message.cluster, 1_000_000))
            self.opened.set()
        elif isinstance(message, Submit) and not self.lazy:
            results = [JobResult(spec.seq, 1, 11, 1.0, 2.0, b"") for spec in message.jobs]
            self.say(Results(message.cluster, 0, results))
        elif isinstance(message, NodeRequest):
            self.say(Answer(message.cluster, message.request, 2, "done"))
        elif isinstance(
            message, BlobPieces | RecordsHeard | ResultsHeard | messages.Define | Allocate
        ):
            self.sent.append(message)
            self.came.set()
        elif isinstance(message, CloseCluster):
            self.say(ClusterClosed(message.cluster))

    def say(self, message: Body) -> None:
        self.said.append(Received("broker", message))

    def tell(self, message: Body) -> None:
        """Say something by itself, from the test's thread."""
        assert self.opened.wait(PATIENCE_S)
        self.say(message)
        self.wake()

    def dial(self, address: str) -> None: ...

    def flush(self, now: float) -> None: ...

    def tick(self, now: float) -> list[Event]:
        return []

    def deadline(self) -> float:
        return float("inf")

    def goodbye(self, peer: str, reason: str) -> None:
        self.farewell = reason


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def session(wire: Wire) -> Iterator[Session]:
    exchange: Any = wire
    opened = Session("inproc://test", wire, exchange)
    opened.start()
    yield opened
    opened.stop(PATIENCE_S)
    assert not opened.alive() and wire.closed and wire.farewell


@pytest.fixture
def ledger(session: Session) -> Ledger:
    ledger = Ledger(None, None, number=1)
    ledger.hand_over = session.hand_over
    opening = OpenCluster(1, ComputationSpec("compute", []), [])
    session.open(Open(opening, ledger))
    return ledger


def submit(session: Session, ledger: Ledger) -> DispyJob:
    with ledger.lock:
        ledger.last_seq += 1
        ledger.pending += 1
        job = DispyJob(1, JobSpec(ledger.last_seq, 0, b"x"), None, (), {})
        session.hand_over(job)
    return job


def test_jobs_go_and_come_back(session: Session, ledger: Ledger) -> None:
    jobs = [submit(session, ledger) for _ in range(1000)]
    assert ledger.wait_idle(PATIENCE_S)
    assert {job.status for job in jobs} == {DispyJob.Finished}
    last = submit(session, ledger)  # to a session that sleeps by now
    assert last.finish.wait(PATIENCE_S)
    session.hand_over(Close(1))
    assert ledger.wait_closed(PATIENCE_S)
    assert not session.is_used()


def test_a_waiting_thread_is_woken_by_cancel(session: Session, ledger: Ledger, wire: Wire) -> None:
    wire.lazy = True
    job = submit(session, ledger)
    session.hand_over(Cancel(1, job._seq))
    session.hand_over(Close(1))
    assert job.finish.wait(PATIENCE_S) and job.status == DispyJob.Cancelled


def test_a_bug_in_the_thread_ends_every_job_with_the_reason(
    session: Session, ledger: Ledger, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.lazy = True
    job = submit(session, ledger)
    wire.broken = True
    wire.wake()
    assert job.finish.wait(PATIENCE_S)
    assert job.status == DispyJob.Terminated
    assert job.exception is not None and "RuntimeError: a bug" in job.exception
    assert ledger.wait_closed(PATIENCE_S) and not ledger.accepting
    assert "a bug in dispy" in caplog.text


def test_stopping_ends_every_job(session: Session, ledger: Ledger, wire: Wire) -> None:
    wire.lazy = True
    jobs = [submit(session, ledger) for _ in range(10)]
    session.stop(PATIENCE_S)
    assert all(job.finish.is_set() for job in jobs)
    assert ledger.closed and not ledger.accepting


def test_a_message_that_makes_no_sense_is_survived(
    session: Session, ledger: Ledger, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.said.append(Received("broker", Done(1, [])))
    wire.wake()
    job = submit(session, ledger)
    assert job.finish.wait(PATIENCE_S) and job.status == DispyJob.Finished
    assert "takes no Done" in caplog.text


def test_a_broker_that_leaves_and_comes_back_gets_the_jobs_again(
    session: Session, ledger: Ledger, wire: Wire
) -> None:
    wire.lazy = True
    job = submit(session, ledger)
    wire.lazy = False
    wire.said += [Left("broker", "restarted"), Joined("broker", BROKER, [], "")]
    wire.wake()
    assert job.finish.wait(PATIENCE_S) and job.status == DispyJob.Finished


def test_a_shared_broker_that_goes_is_waited_for_and_users_are_told(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    exchange: Any = wire
    wire.said = [DialFailed("here:1", "connection refused: nothing listens there")] * 2
    shared = Session("here:1", wire, exchange, shared=True)
    mine = Ledger(None, None, number=1)
    shared.open(Open(OpenCluster(1, ComputationSpec("compute", []), []), mine))
    shared.start()
    wire.lazy = True
    job = submit(shared, mine)
    wire.said += [Joined("broker", BROKER, [], ""), Left("broker", "it is being stopped")]
    wire.wake()
    until_said(caplog, "wait for it to come back")
    assert caplog.text.count("is dispy-broker running there?") == 1
    assert not mine.closed
    wire.lazy = False
    wire.said += [Joined("broker", BROKER, [], "")]
    wire.wake()
    assert job.finish.wait(PATIENCE_S) and job.status == DispyJob.Finished
    shared.stop(PATIENCE_S)


def test_a_broker_that_nobody_needs_any_more_may_go_unnoticed(
    session: Session, ledger: Ledger, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    assert wire.opened.wait(PATIENCE_S)
    ledger.stop_accepting(even_if_pending=False)
    session.hand_over(Close(1))
    assert ledger.wait_closed(PATIENCE_S)
    wire.said += [Left("broker", "it was stopped"), DialFailed("here:1", "connection refused")]
    other = Ledger(None, None, number=2)
    wire.opened.clear()
    wire.wake()
    until(lambda: not wire.said)
    assert "still trying" not in caplog.text
    session.open(Open(OpenCluster(2, ComputationSpec("compute", []), []), other))
    wire.said += [DialFailed("here:1", "connection refused")]
    wire.wake()
    until_said(caplog, "still trying")
    wire.said += [Joined("broker", BROKER, [], "")]
    wire.wake()


def until_said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    until(lambda: text in caplog.text)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_results_are_heard_after_the_jobs_have_ended(
    session: Session, ledger: Ledger, wire: Wire
) -> None:
    wire.lazy = True
    job = submit(session, ledger)
    session.hand_over(Define(1, [Code("3", JobSpec(0, 0, b""))]))
    assert wire.came.wait(PATIENCE_S)  # so the job has been submitted
    wire.came.clear()
    wire.tell(Results(1, 0, [JobResult(job._seq, 1, 11, 1.0, 2.0, b"")], 5))
    assert wire.came.wait(PATIENCE_S)
    assert wire.sent[-1] == ResultsHeard(1, [5])
    assert job.finish.is_set()


def test_a_forked_child_can_submit_nothing(session: Session, ledger: Ledger) -> None:
    session.orphan()
    assert not ledger.accepting and ledger.wait_closed(0)
    ledger.closed = False  # so that the fixture has something to stop


def test_jobs_of_many_threads_all_end(session: Session, ledger: Ledger) -> None:
    jobs: list[DispyJob] = []
    threads = [
        threading.Thread(target=lambda: jobs.extend(submit(session, ledger) for _ in range(500)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert ledger.wait_idle(PATIENCE_S)
    assert len(jobs) == 4000 and all(job.finish.is_set() for job in jobs)


def test_a_request_is_answered_in_the_thread_that_asks(session: Session, ledger: Ledger) -> None:
    reply = ledger.requests.ask(
        lambda number: session.hand_over(Ask(NodeRequest(1, number, DEALLOCATE, 7))), PATIENCE_S
    )
    assert reply == Reply(2, "done")
    session.hand_over(Close(1))
    assert ledger.wait_closed(PATIENCE_S)
    assert ledger.requests.ask(lambda number: None, PATIENCE_S).code == -1


def test_nodes_get_the_pieces_of_files_that_they_ask_for(
    session: Session, ledger: Ledger, wire: Wire, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"0123456789")
    ledger.blobs = BlobSource()
    spec = ledger.blobs.add_file(path, "data")
    wire.tell(NodeReady(1, NodeInfo(7, "127.0.0.1:9701", "here", 2, "Linux")))
    wire.tell(NeedBlobs(1, 7, [BlobRange(spec.digest, 2, 3)]))
    assert wire.came.wait(PATIENCE_S)
    assert wire.sent == [BlobPieces(1, 7, [BlobPiece(spec.digest, 2, b"234")])]
    assert [node.tx for node in ledger.nodes()] == [3]


def test_a_file_of_a_job_is_written_and_then_heard(
    session: Session, ledger: Ledger, wire: Wire, tmp_path: Path
) -> None:
    wire.lazy = True
    ledger.folder = str(tmp_path)
    job = submit(session, ledger)
    session.hand_over(Follow(1, job._seq))  # so that it has been submitted when this is done
    piece = pack_file_piece("below/data", 0, 3, 0o644, 1.0, True, b"abc")
    session.hand_over(Define(1, [Code("3", JobSpec(0, 0, b""))]))
    assert wire.came.wait(PATIENCE_S)
    wire.came.clear()
    wire.tell(Records(1, [JobRecord(job._seq, 1, 1, FILE, piece)], 7))
    assert wire.came.wait(PATIENCE_S)
    assert (tmp_path / "below" / "data").read_bytes() == b"abc"
    assert wire.sent[-1] == RecordsHeard(1, [Heard(job._seq, 1, 1)])


@pytest.mark.parametrize(
    ("host", "port", "ip_addr"),
    [
        ("*", 9701, "127.0.0.1"),
        ("10.0.0.7", 9801, "10.0.0.7"),
        ("10.0.0.*", 9801, "10.0.0.7"),
        ("10.1.*", 9801, "127.0.0.1"),
    ],
)
def test_a_node_is_offered_to_the_users_allocate(
    session: Session, ledger: Ledger, wire: Wire, host: str, port: int, ip_addr: str
) -> None:
    asked: list[tuple[object, ...]] = []

    class Mine(NodeAllocate):
        def allocate(self, *args: Any, **kwargs: Any) -> int:
            asked.append(args)
            self.setup_args = (1,)
            return 1

    class Broken(NodeAllocate):
        def allocate(self, *args: Any, **kwargs: Any) -> int:
            raise RuntimeError("must be survived")

    cluster: Any = "the cluster"
    args = JobSpec(0, 0, b"args")
    entries = [NodeAllocate("*", port=1), Broken("*"), Mine(host, port=port)]
    ledger.offers = Offers(cluster, 1, entries, lambda entry: ([], args), session.hand_over)
    addresses = ["127.0.0.1:9701", "10.0.0.7:9801"]
    node = NodeInfo(7, addresses[0], "here", 2, "Linux", addresses)
    wire.tell(NodeOffer(1, node, Vitals(1.0, 2, 3, 4.0)))
    assert wire.came.wait(PATIENCE_S)
    assert wire.sent == [Allocate(1, 7, 1, [], args)]
    info = DispyNodeAvailInfo(1.0, 2, 3, 4.0)
    assert asked == [("the cluster", ip_addr, "here", 2, info, "Linux")]


def test_a_bug_in_one_cluster_leaves_nobody_else_waiting(
    session: Session, ledger: Ledger, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.lazy = True
    others = Ledger(None, None, number=2)
    job = DispyJob(2, JobSpec(1, 0, b"x"), None, (), {})
    others.pending = 1
    session.open(Open(OpenCluster(2, ComputationSpec("compute", []), []), others))
    session.hand_over(job)

    def fail(node: int, jobs: list[tuple[DispyJob, JobResult]]) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ledger, "end", fail)
    mine = submit(session, ledger)
    session.hand_over(Define(1, [Code("3", JobSpec(0, 0, b""))]))
    assert wire.came.wait(PATIENCE_S)  # so the job has been submitted
    result = JobResult(mine._seq, 1, 11, 1.0, 2.0, b"")
    assert mine._seq == job._seq
    wire.said += [Received("broker", Results(number, 0, [result])) for number in (1, 2)]
    wire.wake()
    assert job.finish.wait(PATIENCE_S) and job.status == DispyJob.Finished
    assert others.wait_closed(PATIENCE_S) and ledger.wait_closed(PATIENCE_S)


def test_a_cluster_counts_before_the_thread_has_seen_it(wire: Wire) -> None:
    exchange: Any = wire
    session = Session("inproc://test", wire, exchange)
    ledger = Ledger(None, None, number=1)
    assert not session.is_used()
    session.open(Open(OpenCluster(1, ComputationSpec("compute", []), []), ledger))
    assert session.is_used() and session.unfinished() == []
    ledger.pending = 1
    assert session.unfinished() == [ledger]


def test_a_question_that_comes_too_late_is_survived(session: Session, ledger: Ledger) -> None:
    session.hand_over(Close(1))
    assert ledger.wait_closed(PATIENCE_S)
    session.hand_over(Ask(NodeRequest(1, 1, DEALLOCATE, 7)))
    session.hand_over(AskWhy(1, 2, 1))
    after = Ledger(None, None, number=2)
    session.open(Open(OpenCluster(2, ComputationSpec("compute", []), []), after))
    session.hand_over(Close(2))
    assert after.wait_closed(PATIENCE_S)
    assert session.alive()
