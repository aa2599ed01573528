"""Following a job's output: everything once, in order, as text, and bounded."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from dispy.node.output import OUTPUT_BYTES as NODE_OUTPUT_BYTES
from dispy.node.output import cut_mark
from dispy.output import END_UNKNOWN, OUTPUT_BYTES, Feed, Output, whole
from dispy.protocol.messages import OUTPUT, RECORDS_AHEAD, JobRecord, Large
from dispy.protocol.payload import INLINE_BYTES, STDERR, STDOUT, pack_output


class Job:
    """What a node does for a job that is followed: numbers records, and keeps the window."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []
        self.feed = Feed(self.on_heard)
        self.attempt = 1
        self.number = 0
        self.written = {STDOUT: b"", STDERR: b""}

    def on_heard(self, attempt: int, number: int) -> None:
        self.heard.append((attempt, number))

    def record(self, offset: int, data: bytes, stream: int = STDOUT) -> JobRecord:
        self.number += 1
        payload = pack_output(stream, offset, data)
        if len(payload) < INLINE_BYTES:
            return JobRecord(1, self.attempt, self.number, OUTPUT, payload)
        large = Large(len(payload), [payload])
        return JobRecord(1, self.attempt, self.number, OUTPUT, b"", [large])

    def prints(self, data: bytes, stream: int = STDOUT, live: bool = True) -> None:
        offset = len(self.written[stream])
        self.written[stream] += data
        if live:
            self.feed.put(self.record(offset, data, stream))

    def begins_again(self) -> None:
        self.attempt, self.number = self.attempt + 1, 0
        self.written = {STDOUT: b"", STDERR: b""}

    def ends(self) -> None:
        outputs = [
            data if len(data) <= OUTPUT_BYTES else data[:OUTPUT_BYTES] + cut_mark()
            for data in self.written.values()
        ]
        self.feed.end(self.attempt, *outputs)

    def rest(self) -> list[Output]:
        """Follow an output of which no more is to come."""
        return list(self.feed.follow())


@pytest.fixture()
def job() -> Job:
    return Job()


def joined(outputs: list[Output], stream: str = "stdout") -> str:
    return "".join(output.text for output in outputs if output.stream == stream)


def test_both_sides_cut_at_the_same_size() -> None:
    assert OUTPUT_BYTES == NODE_OUTPUT_BYTES


# -- text -----------------------------------------------------------------------------------


def test_pieces_then_the_rest_of_the_result(job: Job) -> None:
    job.prints(b"one\n")
    job.prints(b"oh\n", STDERR)
    job.prints(b"two\n", live=False)
    job.prints(b"dear\n", STDERR, live=False)
    job.ends()
    assert job.rest() == [
        Output("stdout", "one\n"),
        Output("stderr", "oh\n"),
        Output("stdout", "two\n"),
        Output("stderr", "dear\n"),
    ]


def test_a_job_that_prints_nothing(job: Job) -> None:
    job.ends()
    assert job.rest() == []


def test_large_pieces_travel_as_parts(job: Job) -> None:
    job.prints(b"x" * (1 << 18))
    job.ends()
    assert joined(job.rest()) == "x" * (1 << 18)


def test_characters_are_not_torn_by_pieces(job: Job) -> None:
    for byte in "\u00e4\u20ac".encode():
        job.prints(bytes((byte,)))
    job.ends()
    assert job.rest() == [Output("stdout", "\u00e4"), Output("stdout", "\u20ac")]
    assert job.heard == [(1, number) for number in range(1, 6)]


def test_a_character_torn_between_the_last_piece_and_the_result(job: Job) -> None:
    job.prints(b"a\xe2\x82")
    job.prints(b"\xac", live=False)
    job.ends()
    assert joined(job.rest()) == "a\u20ac"


def test_what_is_not_utf8_is_replaced(job: Job) -> None:
    job.prints(b"a\xffb")
    job.prints(b"c\xe2")
    job.ends()
    assert joined(job.rest()) == "a\ufffdbc\ufffd"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_comes_live_everything_is_told_once(seed: int) -> None:
    chance = random.Random(seed)
    job, told = Job(), []
    text = {stream: "".join(chance.choices("a\u00e4\u20ac\U0001f600\n", k=60)) for stream in (1, 2)}
    left = {stream: text[stream].encode() for stream in (1, 2)}
    live = {1: True, 2: True}
    for _ in range(200):
        stream = chance.choice((1, 2))
        count = chance.randrange(1, 9)
        if chance.random() < 0.02:
            live[stream] = False  # from now on, it's in the result only
        data, left[stream] = left[stream][:count], left[stream][count:]
        job.prints(data, stream, live=live[stream])
        if chance.random() < 0.3 or job.number - len(job.heard) == RECORDS_AHEAD:
            told += take_what_is_there(job)
    assert not any(left.values())
    job.ends()
    told += take_what_is_there(job)
    assert joined(told, "stdout") == text[1]
    assert joined(told, "stderr") == text[2]
    assert sorted(set(job.heard)) == job.heard == [(1, n + 1) for n in range(job.number)]


def take_what_is_there(job: Job) -> list[Output]:
    told: list[Output] = []
    job.feed.deliver(lambda job, stream, text: told.append(Output(stream, text)), job)
    return told


# -- what is missing ------------------------------------------------------------------------


def test_a_gap_is_said(job: Job) -> None:
    job.prints(b"a\xe2")
    job.prints(b"123456", live=False)
    job.prints(b"b")
    job.ends()
    assert joined(job.rest()) == "a\ufffd\n[6 bytes of output were not told in time]\nb"


def test_what_comes_twice_is_told_once(job: Job) -> None:
    job.prints(b"abc")
    job.feed.put(job.record(0, b"abc"))
    job.feed.put(job.record(1, b"bcde"))
    assert [output.text for output in take_what_is_there(job)] == ["abc", "de"]
    assert job.heard == [(1, 1), (1, 2), (1, 3)]


def test_the_mark_of_a_cut_output_is_told(job: Job) -> None:
    job.prints(b"x" * 10)
    job.prints(b"y" * OUTPUT_BYTES, live=False)
    job.ends()
    text = joined(job.rest())
    assert text == "x" * 10 + "y" * (OUTPUT_BYTES - 10) + cut_mark().decode()


def test_live_output_beyond_the_limit(job: Job) -> None:
    told = []
    for _ in range(6):
        job.prints(b"x" * (1 << 18))
        told += take_what_is_there(job)
    job.ends()
    told += take_what_is_there(job)
    assert joined(told) == "x" * (6 << 18) + END_UNKNOWN


def test_a_result_without_output_after_live_output(job: Job) -> None:
    job.prints(b"abc")
    job.feed.end(1, b"", b"")  # its node was lost
    assert joined(job.rest()) == "abc"


def test_rubbish_is_logged_and_heard(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    assert not job.feed.put(JobRecord(1, 1, 1, OUTPUT, b"\x07"))
    assert job.heard == [(1, 1)]
    assert "output of a job was dropped" in caplog.text


# -- attempts -------------------------------------------------------------------------------


def test_a_new_attempt_begins_at_its_beginning_and_says_so(job: Job) -> None:
    job.prints(b"first\xe2")
    assert joined(take_what_is_there(job)) == "first"
    job.prints(b"not taken in time")
    job.begins_again()
    job.prints(b"second")
    assert joined(take_what_is_there(job)) == "\n[the job began again: attempt 2]\nsecond"
    assert job.heard == [(1, 1), (1, 2), (2, 1)]


def test_the_result_is_of_a_later_attempt(job: Job) -> None:
    job.prints(b"first")
    take_what_is_there(job)
    job.begins_again()
    job.prints(b"second", live=False)
    job.ends()
    assert joined(take_what_is_there(job)) == "\n[the job began again: attempt 2]\nsecond"


def test_records_of_an_old_attempt_are_heard_and_dropped(job: Job) -> None:
    late = job.record(0, b"late")
    job.begins_again()
    job.prints(b"new")
    assert not job.feed.put(late)
    assert joined(take_what_is_there(job)) == "new"
    assert job.heard == [(1, 1), (2, 1)]


# -- bounds ---------------------------------------------------------------------------------


def test_nothing_is_heard_before_it_is_taken(job: Job) -> None:
    for _ in range(RECORDS_AHEAD):
        job.prints(b"x")
    assert job.heard == []
    with job.feed.follow() as follower:
        for count in range(1, RECORDS_AHEAD + 1):
            next(follower)
            assert len(job.heard) == count


def test_a_node_that_sends_too_much_fills_no_memory(job: Job) -> None:
    for _ in range(100):
        job.prints(b"x")
    assert len(job.feed._pieces) == RECORDS_AHEAD
    assert len(job.heard) == 100 - RECORDS_AHEAD
    job.ends()
    assert joined(job.rest()) == "x" * 100  # the result has what was dropped
    assert len(job.heard) == 100


# -- consumers ------------------------------------------------------------------------------


def test_there_is_one_consumer_at_a_time(job: Job) -> None:
    with job.feed.follow(), pytest.raises(RuntimeError, match="followed already"):
        job.feed.follow()
    job.feed.follow().close()


def test_a_feed_for_a_callback_has_no_other_consumer(job: Job) -> None:
    feed = Feed(job.on_heard, to_callback=True)
    with pytest.raises(RuntimeError, match="followed already"):
        feed.follow()


def test_a_callback_takes_nothing_from_a_follower(job: Job) -> None:
    job.prints(b"x")
    with job.feed.follow() as follower:
        assert take_what_is_there(job) == []
        assert next(follower).text == "x"


def test_a_callback_is_a_consumer(job: Job) -> None:
    job.prints(b"x")
    take_what_is_there(job)
    with pytest.raises(RuntimeError, match="followed already"):
        job.feed.follow()


def test_whoever_leaves_holds_nothing_up(job: Job) -> None:
    for output in follow_some(job):
        assert output.text == "0"
        break
    assert len(job.heard) == 3
    assert not job.feed.put(job.record(3, b"x"))
    assert len(job.heard) == 4


def follow_some(job: Job) -> Any:
    for number in range(3):
        job.prints(b"%d" % number)
    return job.feed.follow()


def test_a_new_consumer_after_one_has_left(job: Job) -> None:
    job.feed.follow().close()
    job.prints(b"unheard")
    follower = job.feed.follow()
    job.prints(b"heard")
    assert next(follower).text == "\n[7 bytes of output were not told in time]\nheard"


def test_an_end_that_nobody_listens_to_keeps_nothing(job: Job) -> None:
    job.feed.follow().close()
    job.prints(b"x", live=False)
    job.ends()
    assert job.feed._final is None
    assert job.rest() == []


def test_closing_after_the_end(job: Job) -> None:
    job.prints(b"x")
    job.ends()
    follower = job.feed.follow()
    assert [output.text for output in follower] == ["x"]
    assert list(follower) == []
    follower.close()
    follower.close()
    assert list(follower) == []


def test_a_waiting_consumer_is_woken_by_each_piece_and_the_end(job: Job) -> None:
    told: list[Output] = []
    taken = threading.Semaphore(0)
    job.feed = Feed(lambda attempt, number: taken.release())

    def consume() -> None:
        told.extend(job.feed.follow())

    thread = threading.Thread(target=consume)
    thread.start()
    for number in range(200):
        job.prints(b"%d," % number)
        if number >= RECORDS_AHEAD:
            assert taken.acquire(timeout=30)
    job.ends()
    thread.join(30)
    assert joined(told) == "".join(f"{number}," for number in range(200))


def test_half_a_character_is_heard_while_the_consumer_waits(job: Job) -> None:
    heard = threading.Semaphore(0)
    job.feed = Feed(lambda attempt, number: heard.release())
    told: list[Output] = []
    follower = job.feed.follow()
    thread = threading.Thread(target=lambda: told.extend(follower))
    thread.start()
    job.prints(b"\xe2\x82")
    assert heard.acquire(timeout=30)
    job.prints(b"\xac")
    job.ends()
    thread.join(30)
    assert joined(told) == "\u20ac"


def test_a_waiting_consumer_is_woken_by_the_end() -> None:
    heard = threading.Semaphore(0)
    for _ in range(50):  # most of them wait when the end comes
        feed = Feed(lambda attempt, number: heard.release())
        told: list[Output] = []
        follower = feed.follow()
        thread = threading.Thread(target=told.extend, args=(follower,))
        thread.start()
        feed.put(JobRecord(1, 1, 1, OUTPUT, pack_output(STDOUT, 0, b"a")))
        assert heard.acquire(timeout=30)
        feed.end(1, b"ab", b"")
        thread.join(30)
        assert joined(told) == "ab"


def test_whoever_leaves_takes_the_rest_along(job: Job) -> None:
    job.prints(b"a", live=False)
    job.prints(b"b", STDERR, live=False)
    job.ends()
    for output in job.feed.follow():
        assert output.text == "a"
        break
    assert job.rest() == []


def test_a_waiting_consumer_is_woken_by_closing(job: Job) -> None:
    follower = job.feed.follow()
    told: list[Output] = []
    thread = threading.Thread(target=lambda: told.extend(follower))
    thread.start()
    follower.close()
    thread.join(30)
    assert not thread.is_alive()
    assert told == []


def test_a_callback_that_raises_is_logged_and_gets_the_rest(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    told = []

    def listener(job: object, stream: str, text: str) -> None:
        told.append(text)
        raise ValueError(text)

    job.prints(b"a")
    job.prints(b"b")
    job.feed.deliver(listener, job)
    assert told == ["a", "b"]
    assert len(job.heard) == 2
    assert "listener raised an exception" in caplog.text


def test_a_callback_is_heard_after_it_returned(job: Job) -> None:
    counts = []
    job.prints(b"a")
    job.prints(b"b")
    job.feed.deliver(lambda job, stream, text: counts.append(len(job.heard)), job)
    assert counts == [0, 1]


def test_put_tells_whether_there_is_something_to_deliver(job: Job) -> None:
    assert job.feed.put(job.record(0, b"a"))
    job.begins_again()
    assert job.feed.put(job.record(0, b"b"))
    job.feed.orphan()
    assert not job.feed.put(job.record(1, b"c"))


def test_in_a_forked_child_everything_ends(job: Job) -> None:
    job.prints(b"x")
    follower = job.feed.follow()
    job.feed.orphan()
    assert list(follower) == []
    follower.close()
    assert job.heard == []


def test_the_whole_output_of_a_job_that_has_ended() -> None:
    assert list(whole("a", "b")) == [Output("stdout", "a"), Output("stderr", "b")]
    assert list(whole("", None)) == []
