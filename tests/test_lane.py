"""Lanes, with real processes: each job has one of its own, and the next is ready before."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispy.protocol.messages import FINISHED, TERMINATED

from .test_launcher import DEADLINE_S, Node, body_of, is_sleep, parent_of, pytestmark, value_of

__all__ = ["pytestmark"]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.launcher.close(10)


def processes_of(node: Node, lane: int) -> set[int]:
    return {pid for pid in node.pids_below() if parent_of(pid) == lane}


def who_am_i() -> tuple[int, int]:
    return os.getpid(), os.getppid()


def test_each_job_has_a_process_of_its_own_and_all_have_the_same_parent(node: Node) -> None:
    node.prepare(who_am_i)
    worker = node.spawn()
    node.give(worker, *[()] * 50)
    pids, parents = zip(*map(value_of, node.results(worker, 50)), strict=True)
    assert len(set(pids)) == 50 and len(set(parents)) == 1


def test_globals_that_a_job_changes_are_new_for_the_next(node: Node) -> None:
    counter = [0]

    def count() -> int:
        counter[0] += 1
        return counter[0]

    node.prepare(count)
    worker = node.spawn()
    node.give(worker, *[()] * 10)
    assert [value_of(result) for result in node.results(worker, 10)] == [1] * 10


def test_what_one_job_prints_is_not_in_the_next(node: Node) -> None:
    def talk(number: int) -> None:
        print(f"out {number}")
        os.write(2, b"err %d" % number)

    node.prepare(talk)
    worker = node.spawn()
    node.give(worker, *[(number,) for number in range(20)])
    for number, result in enumerate(node.results(worker, 20)):
        assert body_of(result)[1:3] == (b"out %d\n" % number, b"err %d" % number)


def test_large_arguments_in_a_row(node: Node) -> None:
    node.prepare(lambda data: bytes(data))
    worker = node.spawn()
    sent = [os.urandom(1 << 20) for _ in range(8)]
    for each in sent:
        node.give(worker, (bytearray(each),))
    results = node.results(worker, len(sent))
    assert all(result.status == FINISHED for result in results)
    assert [value_of(result) for result in results] == sent


def test_what_has_not_begun_can_be_taken_back(node: Node) -> None:
    node.prepare(lambda seconds: time.sleep(seconds))
    worker = node.spawn()
    node.give(worker, (0.3,), (0,), (0,))
    time_of_first = node.jobs - 2
    wait_until_running(node, worker)
    assert node.launcher.workers.revoke(worker) == 2
    assert [result.seq for result in node.results(worker, 1)] == [time_of_first]
    node.give(worker, (0,))
    assert node.results(worker, 1)[0].status == FINISHED  # those taken back were left out


def wait_until_running(node: Node, worker: int) -> None:
    """Wait until the process has taken its first token."""
    read = node.launcher.workers._workers[worker]._tokens[0]
    tokens = 8 * 2
    deadline = time.monotonic() + DEADLINE_S
    while unread(read) > tokens:
        assert time.monotonic() < deadline


def unread(pipe: int) -> int:
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def test_a_process_that_dies_takes_only_its_job_with_it(node: Node) -> None:
    def die_at(number: int) -> int:
        if number == 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        return number

    node.prepare(die_at)
    worker = node.spawn()
    node.give(worker, *[(number,) for number in range(10)])
    assert [value_of(result) for result in node.results(worker, 5)] == [0, 1, 2, 3, 4]
    exited = node.exit(worker)
    assert exited.started == 6 and "SIGSEGV" in exited.reason


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_ends_before_its_job_is_told(node: Node, code: int) -> None:
    node.prepare(os._exit)
    worker = node.spawn()
    node.give(worker, (code,), (code,))
    exited = node.exit(worker)
    assert exited.started == 1 and f"exit code {code}" in exited.reason


def test_how_much_memory_a_killed_process_had_is_told(node: Node) -> None:
    def grow() -> None:
        data = bytearray(200 << 20)
        data[::4096] = b"x" * len(data[::4096])
        os.kill(os.getpid(), signal.SIGKILL)

    node.prepare(grow)
    worker = node.spawn()
    node.give(worker, ())
    reason = node.exit(worker).reason
    assert "likely out of memory" in reason
    assert int(reason.partition("used ")[2].split()[0]) >= 200


def test_a_waiting_process_that_is_killed_is_replaced(node: Node) -> None:
    node.prepare(lambda seconds: time.sleep(seconds) or who_am_i())  # type: ignore[func-returns-value]
    worker = node.spawn()
    node.give(worker, (0,))
    (first,) = node.results(worker, 1)
    lane = value_of(first)[1]
    node.give(worker, (0.5,), (0,))
    os.kill(waiting_process(node, lane, ended=value_of(first)[0]), signal.SIGKILL)
    assert [result.status for result in node.results(worker, 2)] == [FINISHED] * 2


def waiting_process(node: Node, lane: int, ended: int) -> int:
    """Wait until one process of a lane is in the `time.sleep` of its job; return the other."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert time.monotonic() < deadline
        pair = processes_of(node, lane) - {ended}
        awake = [pid for pid in pair if not is_asleep(pid)]
        if len(pair) == 2 and len(awake) == 1:
            return awake[0]


def is_asleep(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()
    return False


def test_what_a_job_leaves_is_ended_before_long_and_nothing_of_the_next_job(node: Node) -> None:
    def leave(stays: bool) -> int:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execlp("sleep", "sleep", "1000")
            os._exit(0)
        os.wait()
        time.sleep(0.5 if stays else 0)
        return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    node.prepare(leave)
    worker = node.spawn()
    node.give(worker, (False,), (True,))
    assert [value_of(result) for result in node.results(worker, 2)] == [1, 1]
    deadline = time.monotonic() + DEADLINE_S
    while any(map(is_sleep, node.pids_below())):
        assert time.monotonic() < deadline


def test_an_interrupt_does_not_reach_what_a_later_job_has_started(node: Node) -> None:
    def start(number: int) -> int:
        import subprocess

        if not number:
            return 0
        return subprocess.run(["sleep", "0.3"]).returncode

    node.prepare(start)
    worker = node.spawn()
    node.give(worker, (0,), (1,))
    process = node.launcher.workers._workers[worker]
    process.mark_interrupt()  # for the first job, which may have ended
    node.results(worker, 1)
    wait_for_sleep(node)
    node.launcher.workers._signal(process, signal.SIGINT)
    (second,) = node.results(worker, 1)
    assert (second.status, value_of(second)) == (FINISHED, 0)


def wait_for_sleep(node: Node) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not any(map(is_sleep, node.pids_below())):
        assert time.monotonic() < deadline


def test_an_interrupt_reaches_what_its_job_has_started(node: Node) -> None:
    def start() -> Any:
        import subprocess

        return subprocess.Popen(["sleep", "1000"]).wait()

    node.prepare(start)
    worker = node.spawn()
    node.give(worker, ())
    wait_for_sleep(node)
    node.launcher.workers.interrupt(worker)
    (result,) = node.results(worker, 1)
    assert result.status == TERMINATED
    assert body_of(result).exception.startswith("the job was cancelled")


class Failing:
    """A function; where it has been loaded, a lane can't fork while this says so."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def __call__(self, value: float) -> float:
        time.sleep(value)
        return value

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        fork, template, calls = os.fork, os.getpid(), [0]

        def fork_or_fail() -> int:
            if os.getpid() != template:
                calls[0] += 1
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                if calls[0] == 3 if self.rule == "third" else children:
                    raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()

        os.fork = fork_or_fail


@pytest.mark.parametrize("rule", ["third", "one at a time"])
@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_a_lane_that_can_not_fork_tries_again(node: Node, rule: str, seconds: float) -> None:
    node.prepare(Failing(rule))
    worker = node.spawn()
    node.give(worker, *[(seconds,)] * 8)
    assert [value_of(result) for result in node.results(worker, 8)] == [seconds] * 8


def test_a_clock_that_goes_backwards_loses_no_result(node: Node) -> None:
    def turn_back() -> int:
        time.time = lambda: 0.0
        return 7

    node.prepare(turn_back)
    worker = node.spawn()
    node.give(worker, (), ())
    assert [value_of(result) for result in node.results(worker, 2)] == [7, 7]


def end_slowly(kind: str) -> str:
    """A: leave a process that ends while ours takes its time to end. B: be the next."""
    if kind == "A":
        read, write = os.pipe()
        if os.fork() == 0:
            if os.fork() == 0:
                os.setsid()
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            os._exit(0)
        os.wait()
        exit_now = os._exit

        def exit_later(code: int) -> None:
            os.close(write)
            time.sleep(0.1)
            exit_now(code)

        os._exit = exit_later  # type: ignore[assignment]
    print(kind, flush=True)
    time.sleep(0.01 if kind == "A" else 0.2)
    print(kind, flush=True)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return kind


def test_a_process_that_takes_long_to_end_does_not_disturb_the_next_job(node: Node) -> None:
    node.prepare(end_slowly)
    worker = node.spawn()
    node.give(worker, ("A",), ("B",), ("B",), ("A",), ("die",))
    outputs = [body_of(result).stdout for result in node.results(worker, 4)]
    assert outputs == [b"A\nA\n", b"B\nB\n", b"B\nB\n", b"A\nA\n"]
    exited = node.exit(worker)
    assert exited.stdout == b"die\ndie\n" and "SIGKILL" in exited.reason
