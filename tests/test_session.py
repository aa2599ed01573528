"""The session's thread: whatever happens to it, nobody is left waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dispy.job import DispyJob
from dispy.ledger import Ledger
from dispy.protocol.exchange import Arrival, Event, Joined, Left, Received
from dispy.protocol.messages import (
    Body,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Done,
    Identity,
    JobResult,
    JobSpec,
    OpenCluster,
    Results,
    Submit,
)
from dispy.session import Cancel, Close, Open, Session

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
        elif isinstance(message, Submit) and not self.lazy:
            results = [JobResult(spec.seq, 1, 11, 1.0, 2.0, b"") for spec in message.jobs]
            self.say(Results(message.cluster, 0, results))
        elif isinstance(message, CloseCluster):
            self.say(ClusterClosed(message.cluster))

    def say(self, message: Body) -> None:
        self.said.append(Received("broker", message))

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
    ledger = Ledger(None, None)
    opening = OpenCluster(1, "compute", JobSpec(0, 0, b""), [])
    session.hand_over(Open(opening, ledger))
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
