"""Two links over connections that break, lose and delay: everything arrives once, in order."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispy.protocol.errors import Gap, ProtocolError
from dispy.protocol.link import (
    ACK_ENVELOPES,
    BATCH_FIELDS,
    CRUMB_BYTES,
    PIECE_CHUNKS,
    WINDOW_BYTES,
    Link,
)
from dispy.protocol.messages import (
    PROVISIONAL,
    BlobPiece,
    BlobPieces,
    BlobRange,
    Body,
    Buffer,
    Done,
    Envelope,
    Identity,
    JobRecord,
    JobResult,
    JobSpec,
    Large,
    NeedBlobs,
    Records,
    Run,
    Withdraw,
)
from dispy.protocol.wire import CHUNK_BYTES, HEADER_BYTES, Codec, chunked

PEER = Identity("node", "1", "n", "0", "3", "Linux")
ROUTE = 1


class Side:
    """A link, what is on its way to it, and what it has delivered."""

    def __init__(self, acks_late: bool = False) -> None:
        self.codec = Codec()
        self.link = Link(PEER, "session", self.codec, 0.0, acks_late)
        self.coming: deque[list[Buffer]] = deque()
        self.delivered: list[object] = []

    def take_one(self, now: float) -> None:
        frame, larges = self.codec.decode(self.coming[0][0])
        assert isinstance(frame, Envelope)
        chunks = self.coming.popleft()[1:]
        self.delivered += self.link.receive(frame, larges, chunks, now)
        self.link.check()


class Pair:
    """Both ends of a session."""

    def __init__(self, acks_late: tuple[bool, bool] = (False, False)) -> None:
        self.sides = (Side(acks_late[0]), Side(acks_late[1]))
        self.epoch = 0
        self.now = 0.0
        self.reconnect()

    def reconnect(self) -> None:
        """Lose what is on its way, and go on over another connection."""
        self.epoch += 1
        received = [side.link.received for side in self.sides]
        for side, had in zip(self.sides, reversed(received), strict=True):
            side.coming.clear()
            side.link.connect(ROUTE, self.epoch, had, self.now)

    def flush(self, number: int, room: int = 1_000_000) -> None:
        other = self.sides[1 - number]

        def transmit(frames: list[Buffer]) -> bool:
            nonlocal room
            room -= 1
            if room < 0:
                return False
            other.coming.append(frames)
            return True

        self.sides[number].link.flush(self.now, transmit)

    def do(self, action: str, number: int) -> None:
        """Let something happen on the way to a side, or from it."""
        side = self.sides[number]
        if action == "flush":
            self.flush(number)
        elif action == "stuck":
            self.flush(number, room=1)
        elif action == "reconnect":
            self.reconnect()
        elif action == "lose" and side.coming:
            side.coming.popleft()
        elif action == "take" and side.coming:
            try:
                side.take_one(self.now)
            except Gap:
                self.reconnect()

    def settle(self) -> None:
        """Let everything arrive."""
        for _ in range(1000):
            self.now += 1.5
            for number in (0, 1):
                self.flush(number)
            for side in self.sides:
                while side.coming:
                    side.take_one(self.now)
            if not any(side.link.undelivered() for side in self.sides):
                return
        raise AssertionError("the links never get everything through")


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["send", "large", "flush", "stuck", "take", "lose", "reconnect"]),
        st.integers(0, 1),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS)
def test_everything_arrives_once_and_in_order(actions: list[tuple[str, int]]) -> None:
    pair = Pair()
    sent: tuple[list[object], list[object]] = ([], [])
    for step, (action, number) in enumerate(actions):
        if action in ("send", "large"):
            size = CHUNK_BYTES + step if action == "large" else 1
            message = Run(step, [JobSpec(step, 1, b"", [chunked(bytes(size))])])
            pair.sides[number].link.send(message)
            sent[number].append(message)
        else:
            pair.do(action, number)
        for each in pair.sides:
            each.link.check()
    pair.reconnect()
    pair.settle()
    assert pair.sides[1].delivered == sent[0]
    assert pair.sides[0].delivered == sent[1]


def test_a_lost_last_message_is_missed_at_the_next_sign_of_life() -> None:
    pair = Pair()
    pair.sides[0].link.send(Withdraw(1, 1))
    pair.flush(0)
    pair.sides[1].coming.clear()
    pair.now = 10.0
    pair.flush(0)
    with pytest.raises(Gap):
        pair.sides[1].take_one(pair.now)


def batches(payload: bytes, count: int) -> dict[str, Body]:
    """Make a message for each field where one can be cut."""
    runs = [JobSpec(seq, 0, payload) for seq in range(count)]
    results = [JobResult(seq, 1, 11, 0.0, 1.0, payload) for seq in range(count)]
    records = [JobRecord(seq, 1, 1, PROVISIONAL, payload) for seq in range(count)]
    pieces = [BlobPiece(b"%d" % seq, 0, payload) for seq in range(count)]
    ranges = [BlobRange(payload, seq, 1) for seq in range(count)]
    return {
        "jobs": Run(1, runs),
        "results": Done(1, results),
        "records": Records(1, records, 2),
        "pieces": BlobPieces(1, 2, pieces),
        "ranges": NeedBlobs(1, 2, ranges, 3),
    }


@pytest.mark.parametrize("field", BATCH_FIELDS)
def test_a_batch_that_is_too_long_for_a_header_is_cut(field: str) -> None:
    pair = Pair()
    message = batches(bytes(60_000), 100)[field]
    pair.sides[0].link.send(message)
    pair.flush(0)
    assert all(len(frames[0]) <= HEADER_BYTES for frames in pair.sides[1].coming)
    pair.settle()
    delivered = pair.sides[1].delivered
    assert len(delivered) > 1
    assert [item for part in delivered for item in getattr(part, field)] == getattr(message, field)
    for part in delivered:
        setattr(part, field, [])
    setattr(message, field, [])
    assert all(part == message for part in delivered)  # what isn't cut is in every part


def test_a_message_does_not_wait_for_many_others() -> None:
    """What several messages carry isn't put into one envelope, which would come as a whole."""
    pair = Pair()
    sent = [Run(1, [JobSpec(seq, 1, b"", [chunked(bytes(CHUNK_BYTES))])]) for seq in range(50)]
    for run in sent:
        pair.sides[0].link.send(run)
    pair.flush(0)
    while pair.sides[1].coming:
        pair.sides[1].take_one(pair.now)
    assert len(pair.sides[1].delivered) >= 8  # of so many as a window lets through
    pair.settle()
    assert pair.sides[1].delivered == sent


def test_no_more_is_sent_than_the_window_lets_through() -> None:
    pair = Pair()
    payload = chunked(bytes(3 * WINDOW_BYTES))
    pair.sides[0].link.send(Run(1, [JobSpec(1, 1, b"", [payload])]))
    pair.flush(0)
    on_the_way = sum(len(chunk) for frames in pair.sides[1].coming for chunk in frames[1:])
    assert WINDOW_BYTES <= on_the_way <= WINDOW_BYTES + CHUNK_BYTES
    pair.settle()
    (run,) = pair.sides[1].delivered
    assert isinstance(run, Run) and run.jobs[0].parts[0].size == 3 * WINDOW_BYTES


def test_a_side_that_says_nothing_acknowledges_all_the_same() -> None:
    pair = Pair()
    for number in range(ACK_ENVELOPES):
        pair.sides[0].link.send(Withdraw(number, 0))
        pair.flush(0)
        pair.sides[1].take_one(pair.now)
    pair.flush(1)
    assert pair.sides[0].coming
    pair.sides[0].take_one(pair.now)
    assert not pair.sides[0].link.undelivered()


SIZES = st.lists(st.integers(1, 3 * CHUNK_BYTES), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(
    SIZES, SIZES, st.tuples(st.booleans(), st.booleans()), st.tuples(st.booleans(), st.booleans())
)
def test_no_window_stays_shut_until_the_next_sign_of_life(
    there: list[int], back: list[int], relayed: tuple[bool, bool], late: tuple[bool, bool]
) -> None:
    pair = Pair(late)
    for side, sizes, is_relayed in zip(pair.sides, (there, back), relayed, strict=True):
        side.link.limit(is_relayed)
        for size in sizes:
            side.link.send(Run(1, [JobSpec(1, 1, b"", [chunked(bytes(size))])]))
    for number in (0, 1):
        pair.flush(number)
    while any(side.coming for side in pair.sides):  # meanwhile no time passes
        for number, side in enumerate(pair.sides):
            if side.coming:
                side.take_one(pair.now)
            side.link.confirm()
            if side.link.needs_flush(pair.now):
                pair.flush(number)
    assert [len(side.delivered) for side in pair.sides] == [len(back), len(there)]


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(1, 1, 5, []),  # acknowledges what was never sent
        Envelope(1, 1, -1, []),
    ],
)
def test_what_a_peer_cannot_mean_is_refused(envelope: Envelope) -> None:
    pair = Pair()
    with pytest.raises(ProtocolError):
        pair.sides[0].link.receive(envelope, [], [], 0.0)


def test_sizes_that_do_not_fit_their_chunks_are_refused() -> None:
    pair = Pair()
    codec = Codec()
    run = Run(1, [JobSpec(1, 1, b"", [chunked(b"12345")])])
    header, _ = codec.encode(Envelope(1, 1, 0, [run]))
    for chunks in ([], [b"123"], [b"123456"], [b"12345", b"6"]):
        frame, larges = codec.decode(header)
        assert isinstance(frame, Envelope)
        with pytest.raises(ProtocolError):
            Pair().sides[0].link.receive(frame, larges, [*chunks], 0.0)
    assert pair.sides[0].delivered == []


def test_many_short_payloads_are_several_envelopes() -> None:
    pair = Pair()
    parts = [chunked(b"x" * CRUMB_BYTES) for _ in range(3)] + [chunked(b"y") for _ in range(2000)]
    message = Run(1, [JobSpec(1, 1, b"", parts)])
    pair.sides[0].link.send(message)
    pair.flush(0)
    frames = [len(frames) for frames in pair.sides[1].coming]
    assert max(frames) == 1 + PIECE_CHUNKS and sum(frames) == 2003 + len(frames)
    pair.settle()
    assert pair.sides[1].delivered == [message]


def test_crumbs_are_refused() -> None:
    """Else whoever passes them on would need a thousand frames for nothing."""
    side = Side()
    side.link.connect(ROUTE, 1, 0, 0.0)
    large = Large(3 * CRUMB_BYTES, [])
    with pytest.raises(ProtocolError, match="crumbs"):
        side.link.receive(
            Envelope(1, 1, 0, []), [large], [b"x" * 1024] * (3 * CRUMB_BYTES // 1024), 0.0
        )


def test_what_has_come_in_part_is_counted_until_it_is_whole() -> None:
    side = Side()
    side.link.connect(ROUTE, 1, 0, 0.0)
    side.link.receive(Envelope(1, 1, 0, [], more=True), [], [b"x" * 9, b"x"], 0.0)
    assert side.link.incomplete_bytes > 10 + 2 * 100  # that it is there at all costs something
    side.link.receive(Envelope(1, 2, 0, []), [Large(10, [])], [], 0.0)
    assert side.link.incomplete_bytes == 0
