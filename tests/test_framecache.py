"""Frames that were sent before are left out and put back: the same ones, or it is said so."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispy.protocol.errors import ProtocolError
from dispy.protocol.framecache import LONG_BYTES, Kept, Sent, digest_of
from dispy.protocol.messages import Buffer, Cached
from dispy.protocol.shelf import FileShelf
from dispy.protocol.wire import Codec

HEADER = b"header"
LONG = [random.Random(number).randbytes(LONG_BYTES + 1000 * number) for number in range(12)]
SENT_LIMIT = 60_000  # small, so that much is forgotten
MEMORY_LIMIT = 20_000


class RingShelf:
    """A shelf in memory that knows how much was ever used."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.reads = 0
        self.is_full = False

    def write(self, offset: int, data: Buffer) -> None:
        if self.is_full:
            raise OSError("no space left on device")
        self.bytes[len(self.bytes) : offset] = bytes(max(0, offset - len(self.bytes)))
        self.bytes[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        return bytes(self.bytes[offset : offset + size])

    def close(self) -> None:
        self.bytes.clear()


class Pair:
    """Both ends of one connection after another."""

    def __init__(self) -> None:
        self.codec = Codec()
        self.connect()

    def connect(self) -> None:
        """Begin a new connection."""
        self.shelf = RingShelf()
        self.sent, self.kept = Sent(SENT_LIMIT), Kept(self.shelf, MEMORY_LIMIT, SENT_LIMIT)
        self.sent.keeps = True

    def pass_on(self, frames: list[Buffer], is_lost: bool = False) -> list[Buffer] | None:
        """Send a message; return what has come of it."""
        shortened, news = self.sent.shorten(frames)
        self.sent.sent(news)
        self.sent.check()
        if is_lost:
            return None
        return self.receive(shortened)

    def receive(self, frames: list[Buffer]) -> list[Buffer] | None:
        """Have a message arrive."""
        first, _ = self.codec.decode(frames[0]) if frames[0] != HEADER else (None, [])
        if isinstance(first, Cached):
            restored = self.kept.restore(first, frames[1:])
        else:
            restored = self.kept.restore(None, frames)
        self.kept.check()
        if restored is None:
            self.sent.clear()  # as it is told to
        return restored


messages = st.lists(st.integers(-1, len(LONG) - 1), max_size=5)  # -1: a short frame
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("send"), messages),
        st.tuples(st.just("lose"), messages),
        st.tuples(st.just("break"), st.just([])),
    ),
    max_size=60,
)


def made(numbers: list[int]) -> list[Buffer]:
    return [HEADER, *[LONG[number] if number >= 0 else b"short" for number in numbers]]


@settings(max_examples=300, deadline=None)
@given(happenings)
def test_the_same_frames_arrive_or_it_is_said(plan: list[tuple[str, list[int]]]) -> None:
    pair = Pair()
    has_lost = False
    for what, numbers in plan:
        frames = made(numbers)
        if what == "break":
            pair.connect()
            has_lost = False
        elif what == "lose":
            pair.pass_on(frames, is_lost=True)
            has_lost = True
        else:
            restored = pair.pass_on(frames)
            if restored is None:
                assert has_lost, "nothing was lost, and yet something is missed"
                restored = pair.pass_on(frames)  # in full
            assert restored == frames


@settings(max_examples=100, deadline=None)
@given(st.lists(messages, max_size=60), st.randoms(use_true_random=False))
def test_messages_may_overtake_each_other(plan: list[list[int]], chance: random.Random) -> None:
    pair = Pair()
    way: list[tuple[list[Buffer], list[Buffer]]] = []
    for numbers in plan:
        frames = made(numbers)
        shortened, news = pair.sent.shorten(frames)
        pair.sent.sent(news)
        way.append((frames, shortened))
        while way and chance.random() < 0.6:
            frames, shortened = way.pop(chance.randrange(len(way)))
            assert pair.receive(shortened) in (None, frames)


def test_a_long_frame_is_left_out_the_second_time() -> None:
    pair = Pair()
    assert pair.pass_on(made([0, -1, 1])) == made([0, -1, 1])
    shortened, news = pair.sent.shorten(made([1, -1, 2, 0]))
    assert [bytes(frame) for frame in shortened[1:]] == [HEADER, b"short", LONG[2]]
    assert len(news) == 1


def test_nothing_is_remembered_of_what_the_transport_refused() -> None:
    sent = Sent()
    sent.keeps = True
    sent.shorten(made([0]))
    shortened, _ = sent.shorten(made([0]))
    assert LONG[0] in shortened


def test_nothing_is_hashed_before_it_is_worth_it() -> None:
    sent, frames = Sent(), made([0])
    shortened, news = sent.shorten(frames)
    assert shortened is frames and not news


def test_what_is_beyond_memory_comes_from_the_shelf() -> None:
    shelf = RingShelf()
    kept, sent = Kept(shelf, MEMORY_LIMIT), Sent()
    sent.keeps = True
    for numbers in ([*range(12)], [*range(12)]):
        shortened, news = sent.shorten(made(numbers))
        sent.sent(news)
        frame, _ = Codec().decode(shortened[0])
        assert isinstance(frame, Cached)
        assert kept.restore(frame, shortened[1:]) == made(numbers)
    assert shelf.reads > 5


def test_memory_and_shelf_are_bounded() -> None:
    shelf = RingShelf()
    limit = 1 << 20
    kept = Kept(shelf, MEMORY_LIMIT, limit)
    kept.restore(Cached([]), [HEADER])
    chance = random.Random(1)
    for _ in range(2000):
        kept.restore(None, [HEADER, chance.randbytes(chance.randint(LONG_BYTES, 30_000))])
        assert len(shelf.bytes) <= limit
    kept.check()


def test_a_full_disk_only_means_that_frames_are_missed() -> None:
    shelf = RingShelf()
    shelf.is_full = True
    kept = Kept(shelf, MEMORY_LIMIT)
    sent = Sent()
    sent.keeps = True
    shortened, news = sent.shorten(made([*range(12)]))
    sent.sent(news)
    assert kept.restore(Cached([]), shortened[1:]) == made([*range(12)])
    shortened, _ = sent.shorten(made([0]))
    frame, _ = Codec().decode(shortened[0])
    assert isinstance(frame, Cached) and kept.restore(frame, shortened[1:]) is None
    kept.check()


@pytest.mark.parametrize("places", [[0], [5], [-1], [1, 1], [1 << 40]])
def test_places_that_make_no_sense_are_an_offence(places: list[int]) -> None:
    kept = Kept(RingShelf())
    with pytest.raises(ProtocolError):
        kept.restore(Cached([(place, b"x" * 16) for place in places]), [HEADER, b"short"])


def test_a_shelf_in_a_file_has_what_was_put_there() -> None:
    shelf = FileShelf()
    shelf.write(5, b"abc")
    shelf.write(0, memoryview(b"01234"))
    assert shelf.read(0, 8) == b"01234abc"
    shelf.close()
    shelf.close()


def test_a_frame_that_was_forgotten_and_sent_again_counts_as_the_newest() -> None:
    pair = Pair()
    for number in [*range(1, 12)] * 3:
        assert pair.pass_on(made([0])) == made([0])
        assert pair.pass_on(made([number])) == made([number])
        assert pair.pass_on(made([0, number, 0])) == made([0, number, 0])


def test_a_frame_that_occurs_twice_takes_no_room_twice() -> None:
    pair = Pair()
    for numbers in ([0, 3, 9], [6, 7, 11, 6], [3]):
        assert pair.pass_on(made(numbers)) == made(numbers)


def test_a_short_message_can_not_stand_for_a_huge_one() -> None:
    pair = Pair()
    frame = bytes(1 << 20)
    kept = Kept(pair.shelf)
    assert kept.restore(Cached([]), [HEADER, frame]) == [HEADER, frame]
    name = digest_of(frame)
    assert kept.restore(Cached([(1, name), (2, name)]), [HEADER]) == [HEADER, frame, frame]
    with pytest.raises(ProtocolError):
        kept.restore(Cached([(place, name) for place in range(1, 1000)]), [HEADER])


def test_what_the_disk_has_lost_is_missed() -> None:
    shelf = FileShelf()
    kept = Kept(shelf, memory_bytes=0)
    frame = LONG[0]
    assert kept.restore(Cached([]), [HEADER, frame]) == [HEADER, frame]
    assert kept.restore(Cached([(1, digest_of(frame))]), [HEADER]) == [HEADER, frame]
    assert shelf._file is not None
    shelf._file.truncate(len(frame) - 1)
    assert kept.restore(Cached([(1, digest_of(frame))]), [HEADER]) is None
    kept.close()
