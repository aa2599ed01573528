"""The node's end of a job process, with the other end played by hand: every order of events."""

from __future__ import annotations

import mmap
import os
import resource
import socket
import sys
from collections.abc import Iterator

import pytest

from dispy.node.jobprocess import JobProcess
from dispy.node.jobwire import OUTBOX_BYTES, RESULT, TOKEN
from dispy.node.mailboxes import Inbox, Outbox
from dispy.protocol.messages import JobSpec
from dispy.protocol.wire import chunked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs memfd")


class Pair:
    """Both ends of a job process for many jobs."""

    def __init__(self) -> None:
        self.node = JobProcess(1, 1, 0)
        connection, *self.outputs, self.tokens, outbox = self.node.take_passed()
        self.socket = socket.socket(fileno=connection)
        self.memory = mmap.mmap(outbox, OUTBOX_BYTES)
        os.close(outbox)
        self.outbox = Outbox(self.socket, memoryview(self.memory))
        self.inbox = Inbox(self.socket)

    def give(self, *numbers: int) -> None:
        self.node.give([JobSpec(number, 1, b"body %d" % number) for number in numbers])

    def token(self) -> int:
        return int.from_bytes(os.read(self.tokens, TOKEN.size), "little")

    def put(self, number: int) -> None:
        self.outbox.put(RESULT.pack(number, 1, 0.0, 0.0, 0, 0), b"", [])

    def received(self) -> list[int]:
        return [each.seq for each in self.node.receive()]

    def peeked(self) -> list[int]:
        return [each.seq for each in self.node.peek()]

    def close(self) -> None:
        self.node.close()
        self.socket.close()
        for fd in (*self.outputs, self.tokens):
            os.close(fd)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def test_a_job_belongs_to_who_has_its_token(pair: Pair) -> None:
    pair.give(1, 2, 3)
    assert pair.token() == 1 and bytes(pair.inbox.take(1)[1]) == b"body 1"
    assert pair.node.revoke() == 2
    pair.give(12, 13)  # jobs 4 and 5 of this process
    number = pair.token()
    assert number == 4 and bytes(pair.inbox.take(number)[1]) == b"body 12"
    pair.put(1)
    pair.put(4)
    assert pair.peeked() == [1, 12]
    assert pair.node.count_started() == 2 and not pair.node.unfinished


def test_what_waits_is_not_taken_before_what_is_under_way(pair: Pair) -> None:
    pair.give(1, 2, 3)
    for number in (1, 2):
        pair.put(number)
    pair.outbox.flush()
    pair.put(3)
    assert pair.peeked() == [] and not pair.node.fault
    assert pair.received() == [1, 2]
    assert pair.peeked() == [3]


def test_what_was_peeked_is_not_taken_twice(pair: Pair) -> None:
    pair.give(1, 2)
    pair.put(1)
    assert pair.peeked() == [1] and pair.peeked() == []
    pair.put(2)
    pair.outbox.flush()
    assert pair.received() == [2] and not pair.node.fault


@pytest.mark.parametrize("flushed", [0, 1, 2, 3])
def test_all_results_of_a_dead_process_are_found(pair: Pair, flushed: int) -> None:
    pair.give(1, 2, 3, 4)
    for number in (1, 2, 3):
        pair.token()
        pair.put(number)
        if number == flushed:
            pair.outbox.flush()
    pair.socket.close()
    assert [result.seq for result in pair.node.last_results()] == [1, 2, 3]
    assert pair.node.count_started() == 3 and not pair.node.unfinished


def test_a_result_of_no_job_is_a_fault(pair: Pair) -> None:
    pair.give(1)
    pair.put(2)
    pair.outbox.flush()
    assert pair.received() == [] and "doesn't have" in pair.node.fault


@pytest.mark.parametrize("nonsense", [TOKEN.pack(2), TOKEN.pack(7) * 9, b"odd"])
def test_tokens_that_were_put_back_are_a_fault(pair: Pair, nonsense: bytes) -> None:
    pair.give(1, 2, 3)
    assert [pair.token() for _ in range(3)] == [1, 2, 3]
    with open(f"/proc/self/fd/{pair.tokens}", "wb") as pipe:
        pipe.write(nonsense)
    assert pair.node.revoke() == 0 and "pipe" in pair.node.fault
    assert pair.node.count_started() == 3


def test_a_revocation_never_waits(pair: Pair) -> None:
    os.set_blocking(pair.tokens, True)  # whose flags are those of the node's end
    assert pair.node.revoke() == 0


def test_no_process_can_cut_off_the_memory_that_the_node_looks_at() -> None:
    node = JobProcess(1, 1, 0)
    passed = node.take_passed()
    with pytest.raises(PermissionError):
        os.ftruncate(passed[-1], 0)
    node.close()
    for fd in passed:
        os.close(fd)


def test_a_process_that_can_not_be_opened_leaves_nothing_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = range(max(map(int, before)) + 20)
    failures = 0
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            node = JobProcess(1, 1, 0)
        except OSError:
            failures += 1
        else:
            for fd in node.take_passed():
                os.close(fd)
            node.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert set(os.listdir("/proc/self/fd")) == before
    assert 0 < failures < len(limits)


def test_revoked_blocks_that_were_not_begun_are_not_sent(pair: Pair) -> None:
    pair.node.give([JobSpec(1, 1, b"large", [chunked(bytes(1 << 22))])])
    pair.give(2, 3)
    assert pair.token() == 1 and pair.node.revoke() == 2
    job = pair.inbox.take(1)
    os.set_blocking(pair.socket.fileno(), False)
    read = 0
    while pair.node.unsent:
        read += len(pair.socket.recv(1 << 22))
        pair.node.flush()
    assert read < job[2][0] == 1 << 22
    read += len(pair.socket.recv(1 << 22))
    with pytest.raises(BlockingIOError):
        read += len(pair.socket.recv(1 << 22))
    assert read == 1 << 22
