"""A job as a thing to wait for, by several threads, of which signals may end one's waiting."""

from __future__ import annotations

import threading
import time

import pytest

from dispy.job import DispyJob
from dispy.ledger import fill
from dispy.protocol.messages import FINISHED, JobResult, JobSpec

PATIENCE_S = 10.0


class Gate:
    """A lock that the main thread gets first, just when a signal ends its waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._has_come = threading.Event()  # the signal
        self.waiting = 0

    def acquire(self) -> None:
        self.waiting += 1
        if threading.current_thread() is threading.main_thread():
            self._lock.acquire()
            self._has_come.set()
            raise KeyboardInterrupt
        self._has_come.wait(PATIENCE_S)
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()


@pytest.fixture
def job() -> DispyJob:
    return DispyJob(1, JobSpec(1, 0, b""), None, (), {})


def end(job: DispyJob) -> None:
    fill(job, JobResult(1, 1, FINISHED, 1.0, 2.0, b""))
    job._say_ended()


def end_when(job: DispyJob, gate: Gate, waiting: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while gate.waiting < waiting and time.monotonic() < deadline:
        time.sleep(0.001)
    end(job)


def test_all_who_wait_go_on_at_the_end(job: DispyJob) -> None:
    threads = [threading.Thread(target=job, daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    end(job)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert job.finish.is_set()


def test_nobody_waits_for_one_whose_waiting_a_signal_has_ended(job: DispyJob) -> None:
    gate = Gate()
    job._gate = gate  # type: ignore[assignment]
    other = threading.Thread(target=job, daemon=True)
    other.start()
    threading.Thread(target=end_when, args=(job, gate, 2)).start()
    with pytest.raises(KeyboardInterrupt):
        job()
    other.join(PATIENCE_S)
    assert not other.is_alive()


def test_an_end_that_comes_twice_is_no_trouble(job: DispyJob) -> None:
    waiter = threading.Thread(target=job, daemon=True)
    waiter.start()
    end(job)
    end(job)  # an abandoned job may do so
    waiter.join(PATIENCE_S)
    assert not waiter.is_alive() and job() is None
