"""The thread for files: what is asked is done in order and answered, whatever goes wrong."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispy import config
from dispy.filework import FileOrder, FileWork, Pieces, Written
from dispy.protocol.blobs import digest_of
from dispy.protocol.messages import FILE, PIECE_BYTES, BlobPiece, BlobRange, JobRecord, Large
from dispy.protocol.payload import pack_file_piece

WAIT_S = 30.0
CONTENT = os.urandom(2 * PIECE_BYTES + 1000)
DIGEST = digest_of(CONTENT)


class Memory:
    """A source of blobs that is one content."""

    def __init__(self) -> None:
        self.broken = False
        self.go = threading.Event()
        self.go.set()

    def read(self, wanted: BlobRange, /) -> BlobPiece:
        assert self.go.wait(WAIT_S)
        if self.broken:
            raise RuntimeError("on purpose")
        if wanted.digest != DIGEST:
            return BlobPiece(wanted.digest, wanted.offset, b"", error="no such blob")
        data = CONTENT[wanted.offset : wanted.offset + wanted.size]
        return BlobPiece(wanted.digest, wanted.offset, b"", [Large(len(data), [data])])


class Orders:
    """What a session takes."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[FileOrder] = queue.SimpleQueue()

    def pieces(self) -> Pieces:
        order = self.queue.get(timeout=WAIT_S)
        assert isinstance(order, Pieces)
        return order

    def written(self) -> Written:
        order = self.queue.get(timeout=WAIT_S)
        assert isinstance(order, Written)
        return order


@pytest.fixture()
def orders() -> Orders:
    return Orders()


@pytest.fixture()
def work(orders: Orders) -> Iterator[FileWork]:
    work = FileWork(orders.queue.put)
    yield work
    work.stop(WAIT_S)
    assert work._thread is None or not work._thread.is_alive()


def record(
    path: str, offset: int, data: bytes, size: int, seq: int = 1, number: int = 1
) -> JobRecord:
    last = offset + len(data) == size
    payload = pack_file_piece(path, offset, size, 0o644, 1.0, last, data)
    return JobRecord(seq, 1, number, FILE, payload)


def ranges(size: int, total: int) -> list[BlobRange]:
    return [
        BlobRange(DIGEST, offset, min(size, total - offset)) for offset in range(0, total, size)
    ]


def content(pieces: list[BlobPiece]) -> bytes:
    return b"".join(part.tobytes() for piece in pieces for part in piece.parts)


# -- reading --------------------------------------------------------------------------------


def test_large_pieces_are_posted_one_by_one(work: FileWork, orders: Orders) -> None:
    work.read(Memory(), 3, 7, ranges(PIECE_BYTES, len(CONTENT)))
    posted = [orders.pieces() for _ in range(3)]
    assert [(order.cluster, order.node, len(order.pieces)) for order in posted] == [(3, 7, 1)] * 3
    assert content([piece for order in posted for piece in order.pieces]) == CONTENT


def test_small_pieces_are_posted_together(work: FileWork, orders: Orders) -> None:
    work.read(Memory(), 3, 7, ranges(100, 1000))
    assert content(orders.pieces().pieces) == CONTENT[:1000]


def test_small_pieces_after_large_ones_are_posted_together(work: FileWork, orders: Orders) -> None:
    work.read(Memory(), 3, 7, ranges(PIECE_BYTES, PIECE_BYTES) + ranges(100, 1000))
    assert [len(orders.pieces().pieces) for _ in range(2)] == [1, 10]


def test_errors_are_texts(work: FileWork, orders: Orders) -> None:
    wanted = [BlobRange(b"?", 0, 1), BlobRange(DIGEST, 0, 10)]
    work.read(Memory(), 1, 1, wanted)
    missing, there = orders.pieces().pieces
    assert missing.error == "no such blob"
    assert content([there]) == CONTENT[:10]


@pytest.mark.parametrize(("offset", "size"), [(0, PIECE_BYTES + 1), (0, -1), (-1, 1), (0, 1 << 60)])
def test_impossible_pieces_are_not_even_tried(
    work: FileWork, orders: Orders, offset: int, size: int
) -> None:
    work.read(Memory(), 1, 1, [BlobRange(DIGEST, offset, size)])
    [piece] = orders.pieces().pieces
    assert "no piece of a file" in piece.error


def test_a_bug_in_reading_is_logged_and_answered(
    work: FileWork, orders: Orders, caplog: pytest.LogCaptureFixture
) -> None:
    source = Memory()
    source.broken = True
    work.read(source, 1, 1, ranges(10, 20))
    first, second = orders.pieces().pieces
    assert first.error == second.error == "dispy itself failed: RuntimeError"
    assert "a bug in dispy" in caplog.text
    source.broken = False
    work.read(source, 1, 1, ranges(10, 10))
    assert orders.pieces().pieces[0].error == ""


# -- writing --------------------------------------------------------------------------------


def test_pieces_are_written_and_answered_in_order(
    work: FileWork, orders: Orders, tmp_path: Path
) -> None:
    work.write(5, record("a/x", 0, b"ab", 4, seq=9, number=1), tmp_path)
    work.write(5, record("a/x", 2, b"cd", 4, seq=9, number=2), tmp_path)
    assert orders.written() == Written(5, 9, 1, 1, "")
    assert orders.written() == Written(5, 9, 1, 2, "")
    assert (tmp_path / "a/x").read_bytes() == b"abcd"


def test_a_refusal_is_the_error_of_its_piece(
    work: FileWork, orders: Orders, tmp_path: Path
) -> None:
    work.write(5, record("../x", 0, b"ab", 2), tmp_path)
    assert "'../x'" in orders.written().error


def test_the_limit_of_the_configuration(
    work: FileWork, orders: Orders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "MaxFileSize", 3)
    work.write(1, record("x", 0, b"abcd", 4), tmp_path)
    assert "MaxFileSize" in orders.written().error


def test_clusters_have_their_own_folders(work: FileWork, orders: Orders, tmp_path: Path) -> None:
    for cluster in (1, 2):
        (tmp_path / str(cluster)).mkdir()
        work.write(cluster, record("x", 0, b"%d" % cluster, 1), tmp_path / str(cluster))
        orders.written()
    assert [(tmp_path / name / "x").read_bytes() for name in ("1", "2")] == [b"1", b"2"]


def test_the_end_of_a_job_or_cluster_discards_what_is_unfinished(
    work: FileWork, orders: Orders, tmp_path: Path
) -> None:
    for cluster, seq in ((1, 1), (1, 2), (2, 1)):
        work.write(cluster, record(f"{cluster}-{seq}", 0, b"a", 2, seq=seq), tmp_path)
    work.drop_job(1, 1)
    work.drop(2)
    for cluster, seq in ((1, 1), (1, 2), (2, 1)):
        work.write(cluster, record(f"{cluster}-{seq}", 1, b"b", 2, seq=seq), tmp_path)
    answers = [orders.written() for _ in range(6)]
    assert [bool(answer.error) for answer in answers] == [False] * 3 + [True, False, True]
    assert os.listdir(tmp_path) == ["1-2"]


def test_nothing_is_kept_of_jobs_and_clusters_that_are_over(
    work: FileWork, orders: Orders, tmp_path: Path
) -> None:
    for seq in range(20):
        work.write(1, record("x", 0, b"a", 2, seq=seq), tmp_path)
        work.drop_job(1, seq)
    assert work._senders == {1: set()}
    work.drop(1)
    work.write(2, record("y", 0, b"", 0), tmp_path)
    for _ in range(21):
        orders.written()
    assert work._senders.keys() == work._receivers.keys() == {2}


def test_a_bug_in_writing_is_logged_and_answered(
    work: FileWork, orders: Orders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nonsense: list[Large] = [None]  # type: ignore[list-item]
    work.write(1, JobRecord(1, 1, 4, FILE, b"", nonsense), tmp_path)
    answer = orders.written()
    assert (answer.number, answer.error) == (4, "dispy itself failed: AttributeError")
    assert "a bug in dispy" in caplog.text


# -- the thread -----------------------------------------------------------------------------


def test_nothing_starts_the_thread_but_work(work: FileWork) -> None:
    work.drop(1)
    work.drop_job(1, 1)
    assert work._thread is None
    work.stop()
    assert work._thread is None


def test_jobs_that_sent_nothing_cost_nothing(work: FileWork, tmp_path: Path) -> None:
    source = Memory()
    source.go.clear()
    work.read(source, 1, 1, ranges(1, 1))
    for seq in range(1000):
        work.drop_job(1, seq)
    assert work._work.qsize() <= 1
    source.go.set()


def test_orders_that_cannot_be_posted_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    posted: queue.SimpleQueue[FileOrder] = queue.SimpleQueue()

    def post(order: FileOrder) -> None:
        posted.put(order)
        if isinstance(order, Written) and order.number == 1:
            raise RuntimeError("on purpose")

    work = FileWork(post)
    for number in (1, 2):
        work.write(1, record("x", 0, b"", 0, number=number), tmp_path)
    numbers = [posted_number(posted) for _ in range(2)]
    work.stop(WAIT_S)
    assert numbers == [1, 2]
    assert "on purpose" in caplog.text


def posted_number(posted: queue.SimpleQueue[FileOrder]) -> int:
    order = posted.get(timeout=WAIT_S)
    assert isinstance(order, Written)
    return order.number


def test_stop_leaves_nothing_unfinished_and_does_not_wait_for_all(
    work: FileWork, orders: Orders, tmp_path: Path
) -> None:
    work.write(1, record("x", 0, b"a", 2), tmp_path)
    orders.written()
    source = Memory()
    source.go.clear()
    work.read(source, 1, 1, ranges(PIECE_BYTES, len(CONTENT)))
    work.write(1, record("y", 0, b"", 0), tmp_path)
    threading.Timer(0.05, source.go.set).start()
    work.stop(WAIT_S)
    assert os.listdir(tmp_path) == []
    work.write(1, record("z", 0, b"", 0), tmp_path)
    assert work._work.qsize() == 0


def test_a_forked_child_has_a_thread_of_its_own_and_touches_nothing(
    work: FileWork, orders: Orders, tmp_path: Path
) -> None:
    work.write(1, record("x", 0, b"a", 2), tmp_path)
    orders.written()
    child = os.fork()
    if not child:
        work.forget()
        orders.queue = queue.SimpleQueue()
        work._post = orders.queue.put
        work.write(2, record("child", 0, b"", 0), tmp_path)
        answer = orders.written()
        work.stop(WAIT_S)
        os._exit(0 if not answer.error else 1)
    assert os.waitpid(child, 0)[1] == 0
    work.write(1, record("x", 1, b"b", 2), tmp_path)
    assert orders.written().error == ""
    assert sorted(os.listdir(tmp_path)) == ["child", "x"]
