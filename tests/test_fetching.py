"""What is asked for, through whom, in which order, and what happens when it doesn't come."""

from __future__ import annotations

from dispy.protocol import blobs
from dispy.protocol.fetching import (
    BYTES_AHEAD,
    PATIENCE_S,
    PIECES_AHEAD,
    TRIES,
    Claim,
    DropBlob,
    Fetching,
    KeepPiece,
)
from dispy.protocol.messages import PIECE_BYTES, BlobPiece, BlobRange, FileSpec
from dispy.protocol.wire import chunked

AHEAD = BYTES_AHEAD // PIECE_BYTES


def spec(name: str, size: int = 3) -> FileSpec:
    return FileSpec(name, blobs.digest_of(name.encode()), size)


class Bench:
    """A `Fetching` with a shell that writes nothing; every piece is as it was asked for."""

    def __init__(self, store_bytes: int = 1 << 40, max_file_bytes: int = 0) -> None:
        self.fetching = Fetching(store_bytes, max_file_bytes)
        self.now = 100.0
        self.dropped: list[bytes] = []
        self.written: list[tuple[bytes, int]] = []  # digest, offset
        self.spoils: set[bytes] = set()

    def want(self, computation: int, *files: FileSpec) -> Claim:
        claim = Claim(computation, None, files)
        self.refusal = self.fetching.add(claim)
        self.fetching.check()
        return claim

    def drop(self, claim: Claim) -> None:
        self.fetching.drop(claim)
        self.fetching.check()
        self.carry_out()

    def asks(self) -> list[tuple[int, list[BlobRange]]]:
        asked = self.fetching.requests(self.now)
        self.fetching.check()
        return asked

    def answer(self, computation: int, wanted: BlobRange, error: str = "") -> None:
        data = b"" if error else bytes(wanted.size)
        large = [chunked(data)] if len(data) > 100 else []
        piece = BlobPiece(wanted.digest, wanted.offset, b"" if large else data, large, error)
        self.fetching.receive(computation, piece, self.now)
        self.fetching.check()
        self.carry_out()

    def carry_out(self) -> None:
        effects, self.fetching.effects = self.fetching.effects, []
        for effect in effects:
            if isinstance(effect, DropBlob):
                self.dropped.append(effect.digest)
                continue
            assert isinstance(effect, KeepPiece)
            self.written.append((effect.digest, effect.offset))
            if effect.last and effect.digest in self.spoils:
                self.fetching.spoiled(effect.digest)
            elif effect.last:
                self.fetching.kept(effect.digest)
            self.fetching.check()

    def fetch_all(self) -> None:
        while asks := self.asks():
            for computation, ranges in asks:
                for wanted in ranges:
                    self.answer(computation, wanted)

    def settled(self) -> list[tuple[Claim, str]]:
        settled, self.fetching.settled = self.fetching.settled, []
        return settled


def test_a_file_is_asked_for_in_pieces_a_few_ahead_and_in_order() -> None:
    bench = Bench()
    big = spec("big", 20 * PIECE_BYTES + 5)
    claim = bench.want(1, big)
    [(computation, ranges)] = bench.asks()
    assert computation == 1
    assert [wanted.offset for wanted in ranges] == [n * PIECE_BYTES for n in range(AHEAD)]
    assert bench.asks() == []
    bench.answer(1, ranges[0])
    assert bench.asks() == [(1, [BlobRange(big.digest, AHEAD * PIECE_BYTES, PIECE_BYTES)])]
    for wanted in ranges[1:]:
        bench.answer(1, wanted)
    assert bench.settled() == []
    [(_, ranges)] = bench.asks()
    bench.answer(1, BlobRange(big.digest, AHEAD * PIECE_BYTES, PIECE_BYTES))
    for wanted in ranges:
        bench.answer(1, wanted)
    bench.fetch_all()
    assert bench.settled() == [(claim, "")] and not claim.missing
    assert bench.written == [(big.digest, n * PIECE_BYTES) for n in range(21)]
    assert bench.fetching.pieces == 21


def test_many_small_files_are_on_the_way_at_once() -> None:
    bench = Bench()
    claim = bench.want(1, *(spec(f"f{n}") for n in range(200)))
    [(_, ranges)] = bench.asks()
    assert len(ranges) == PIECES_AHEAD
    for wanted in ranges:
        bench.answer(1, wanted)
    bench.fetch_all()
    assert bench.settled() == [(claim, "")]


def test_what_is_there_is_not_fetched_again_even_for_another_cluster() -> None:
    bench = Bench()
    first = bench.want(1, spec("a"))
    bench.fetch_all()
    second = bench.want(2, spec("a"), spec("a"))
    assert not second.missing and bench.asks() == []
    bench.drop(first)
    bench.drop(second)
    third = bench.want(3, spec("a"))
    assert not third.missing and bench.asks() == [] and bench.dropped == []


def test_two_computations_share_a_fetch_and_the_other_goes_on_when_one_is_released() -> None:
    bench = Bench()
    big = spec("big", 4 * PIECE_BYTES)
    first, second = bench.want(1, big), bench.want(2, big)
    [(computation, ranges)] = bench.asks()
    assert computation == 1 and len(ranges) == 4
    bench.answer(1, ranges[0])
    bench.drop(first)
    assert bench.dropped == []
    assert bench.asks() == [(2, ranges[1:])]  # what is here stays
    bench.answer(1, ranges[1])  # comes late, through the old one
    for wanted in ranges[1:]:
        bench.answer(2, wanted)
    assert bench.settled() == [(second, "")]


def test_what_nobody_wants_any_more_is_not_kept_half() -> None:
    bench = Bench()
    big = spec("big", 4 * PIECE_BYTES)
    claim = bench.want(1, big)
    [(_, ranges)] = bench.asks()
    bench.answer(1, ranges[0])
    bench.drop(claim)
    assert bench.dropped == [big.digest]
    bench.answer(1, ranges[1])
    assert len(bench.written) == 1 and bench.asks() == [] and bench.settled() == []


def test_after_a_new_session_what_has_not_come_is_asked_for_again() -> None:
    bench = Bench()
    big = spec("big", 3 * PIECE_BYTES)
    claim = bench.want(1, big, spec("small"))
    [(_, ranges)] = bench.asks()
    bench.answer(1, ranges[0])
    bench.fetching.ask_again()
    assert bench.asks() == [(1, ranges[1:])]
    for wanted in (*ranges[1:], *ranges[1:]):  # some come twice
        bench.answer(1, wanted)
    assert bench.settled() == [(claim, "")]
    assert len(bench.written) == len(ranges)


def test_what_does_not_come_for_long_is_asked_for_again() -> None:
    bench = Bench()
    bench.want(1, spec("a"))
    asked = bench.asks()
    assert bench.fetching.deadline() == bench.now + PATIENCE_S
    bench.fetching.tick(bench.now + PATIENCE_S - 1)
    assert bench.asks() == []
    bench.now += PATIENCE_S
    bench.fetching.tick(bench.now)
    assert bench.asks() == asked
    bench.answer(1, asked[0][1][0])
    assert bench.fetching.deadline() == float("inf")


def test_a_source_that_does_not_answer_holds_nobody_up() -> None:
    bench = Bench()
    bench.want(1, spec("stuck", 100 * PIECE_BYTES))
    bench.asks()
    claim = bench.want(2, spec("other", 3 * PIECE_BYTES))
    bench.fetch_all()
    assert bench.settled() == [(claim, "")]


def test_sources_take_turns() -> None:
    bench = Bench()
    for computation in (1, 2):
        bench.want(computation, spec(f"f{computation}", 100 * PIECE_BYTES))
    assert [(number, len(ranges)) for number, ranges in bench.asks()] == [(1, 4), (2, 4)]


def test_what_one_peer_was_asked_for_is_asked_of_the_one_that_comes_in_its_place() -> None:
    peers = {1: "old", 2: "new"}
    bench = Bench()
    bench.fetching = Fetching(peer_of=peers.get)
    bench.want(1, spec("a", 40 * PIECE_BYTES))
    bench.want(2, spec("b", 40 * PIECE_BYTES))
    asked = dict(bench.asks())
    assert len(asked[1]) == len(asked[2]) == AHEAD
    for wanted in asked[2][: AHEAD // 2]:
        bench.answer(2, wanted)
    peers[1] = "new"  # somebody else has taken the cluster over
    again = dict(bench.asks())
    assert [wanted.offset for wanted in again[1]] == [
        PIECE_BYTES * number for number in range(len(again[1]))
    ]
    for computation, ranges in ((2, asked[2][AHEAD // 2 :]), *again.items()):
        for wanted in ranges:
            bench.answer(computation, wanted)
    bench.fetch_all()
    settled = {claim.computation: error for claim, error in bench.settled()}
    assert settled == {1: "", 2: ""}


def test_an_error_of_the_client_fails_what_waits_for_the_file_and_names_it() -> None:
    bench = Bench()
    claim = bench.want(1, spec("dir/x.txt"), spec("y"))
    [(_, ranges)] = bench.asks()
    bench.answer(1, ranges[0], error="it has changed")
    assert bench.settled() == [(claim, "dir/x.txt: it has changed")]
    bench.answer(1, ranges[1])  # nobody waits for it any more
    assert bench.fetching.settled == []


def test_when_one_client_has_the_file_no_more_another_is_asked() -> None:
    bench = Bench()
    first, second = bench.want(1, spec("x")), bench.want(2, spec("x"))
    [(_, [wanted])] = bench.asks()
    bench.answer(1, wanted, error="it is gone")
    assert bench.settled() == [(first, "x: it is gone")]
    assert bench.asks() == [(2, [wanted])]
    bench.answer(2, wanted)
    assert bench.settled() == [(second, "")]


def test_a_wrong_content_is_fetched_once_more_and_then_refused() -> None:
    bench = Bench()
    claim = bench.want(1, spec("x"))
    bench.spoils.add(spec("x").digest)
    for _ in range(TRIES - 1):
        [(_, [wanted])] = bench.asks()
        bench.answer(1, wanted)
        assert bench.settled() == []
    [(_, [wanted])] = bench.asks()
    bench.answer(1, wanted)
    [(failed, reason)] = bench.settled()
    assert failed is claim and "x: what the client sent is not the file" in reason
    assert bench.asks() == []


def test_a_piece_of_a_wrong_size_is_the_client_s_fault() -> None:
    bench = Bench()
    bench.want(1, spec("x", 30))
    [(_, [wanted])] = bench.asks()
    bench.fetching.receive(1, BlobPiece(wanted.digest, 0, b"short"), bench.now)
    [(_, reason)] = bench.settled()
    assert "another size" in reason


def test_a_full_disk_fails_all_who_wait_for_the_file() -> None:
    bench = Bench()
    claims = [bench.want(number, spec("x")) for number in (1, 2)]
    bench.asks()
    bench.fetching.failed(spec("x").digest, "No space left on device")
    bench.fetching.check()
    assert bench.settled() == [(claim, "x: No space left on device") for claim in claims]
    bench.carry_out()
    assert bench.dropped == [spec("x").digest]


def test_on_a_full_disk_what_nobody_needs_goes_before_anything_fails() -> None:
    bench = Bench()
    unused = bench.want(1, spec("unused"))
    bench.fetch_all()
    assert bench.settled() == [(unused, "")]
    bench.drop(unused)
    claim = bench.want(1, spec("big", 3 * PIECE_BYTES))
    [(_, ranges)] = bench.asks()
    bench.answer(1, ranges[0])
    bench.fetching.failed(spec("big").digest, "No space left on device")
    bench.fetching.check()
    bench.carry_out()
    assert bench.settled() == [] and bench.dropped == [spec("unused").digest]
    bench.answer(1, ranges[1])  # on its way since before
    assert bench.asks() == [(1, ranges)]
    bench.fetching.failed(spec("big").digest, "No space left on device")
    assert bench.settled() == [(claim, "big: No space left on device")]


def test_an_empty_file_needs_nobody() -> None:
    bench = Bench()
    claim = bench.want(1, FileSpec("empty", blobs.digest_of(b""), 0))
    assert bench.asks() == []
    bench.carry_out()
    assert bench.settled() == [(claim, "")]
    bench.spoils.add(spec("liar", 0).digest)
    bench.want(1, spec("liar", 0))
    bench.carry_out()
    [(_, reason)] = bench.settled()
    assert "liar" in reason


def test_files_that_are_too_large_or_make_no_sense_are_refused() -> None:
    bench = Bench(max_file_bytes=100)
    bench.want(1, spec("a"), spec("big", 101))
    assert bench.refusal.startswith("big: it has 101 bytes") and "100" in bench.refusal
    assert bench.asks() == []  # nothing of the others either
    bench.want(1, FileSpec("x", b"short", 1))
    assert "x: its description" in bench.refusal
    bench.want(1, spec("a", 3))
    assert bench.refusal == ""
    bench.want(2, spec("a", 4))
    assert "size" in bench.refusal
    bench.fetch_all()
    bench.want(2, spec("a", 5))
    assert "size" in bench.refusal


def test_the_longest_unused_go_when_the_store_is_full_but_none_that_is_claimed() -> None:
    bench = Bench(store_bytes=10)
    claims = {name: bench.want(1, spec(name, 4)) for name in ("a", "b")}
    bench.fetch_all()
    bench.drop(claims["b"])
    bench.drop(claims["a"])
    held = bench.want(1, spec("b", 4))
    new = bench.want(2, spec("c", 4))
    bench.fetch_all()
    assert bench.dropped == [spec("a").digest] and not held.missing and not new.missing
    more = bench.want(3, spec("d", 100))  # all the others are in use
    bench.fetch_all()
    assert not more.missing and bench.dropped == [spec("a").digest]
    bench.drop(held)
    assert bench.dropped == [spec("a").digest, spec("b").digest]
