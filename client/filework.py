"""The thread that reads and writes files for a session, so that no disk holds the network up.

It reads the pieces of blobs that nodes ask for and writes the files that jobs send, in the order
in which it was asked, and posts what came of each as an order for the session. Errors are texts
in these orders; nothing is raised, a bug is logged. What waits here is bounded by the windows of
the protocol: `RECORDS_AHEAD` records of each job, and the pieces that the broker lets be asked.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from dispy.protocol.messages import PIECE_BYTES, BlobPiece, BlobRange, JobRecord

from . import config
from .incoming import Receiver
from .log import logger

STOP_S = 2.0  # how long the thread may take to end


class Pieces(NamedTuple):
    """Order: send these to a node, as `BlobPieces`."""

    cluster: int
    node: int
    pieces: list[BlobPiece]


class Written(NamedTuple):
    """Order: a piece of a file has been dealt with; ``error`` says why the file is refused."""

    cluster: int
    seq: int
    attempt: int
    number: int
    error: str


FileOrder: TypeAlias = Pieces | Written
Task: TypeAlias = "tuple[Callable[..., None], tuple[Any, ...]]"


class Source(Protocol):
    """Where the contents of blobs come from."""

    def read(self, wanted: BlobRange, /) -> BlobPiece:
        """Return a piece, or the error text in one."""


class FileWork:
    """The thread, its work and what is unfinished; it starts when there is something to do.

    ``post`` takes the orders, in the thread. All methods are for one thread, the session's,
    and wait for nothing but `stop`.
    """

    def __init__(self, post: Callable[[FileOrder], None]) -> None:
        self._post = post
        self._work: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._senders: dict[int, set[int]] = {}  # clusters, and which of their jobs send files
        self._receivers: dict[int, Receiver] = {}  # touched by the thread only

    # -- for the session's thread --------------------------------------------------------

    def read(self, source: Source, cluster: int, node: int, ranges: Sequence[BlobRange]) -> None:
        """Read pieces of blobs; `Pieces` with one answer for each range are posted."""
        self._put(self._read, source, cluster, node, ranges)

    def write(self, cluster: int, record: JobRecord, folder: str | os.PathLike[str]) -> None:
        """Write a piece of a file below ``folder``; one `Written` is posted."""
        self._senders.setdefault(cluster, set()).add(record.seq)
        self._put(self._write, cluster, record, folder)

    def drop_job(self, cluster: int, seq: int) -> None:
        """A job has ended: discard what is unfinished. Costs nothing if it has sent no file."""
        senders = self._senders.get(cluster)
        if senders is not None and seq in senders:
            senders.remove(seq)
            self._put(self._drop_job, cluster, seq)

    def drop(self, cluster: int) -> None:
        """A cluster is over: discard what is unfinished."""
        if self._senders.pop(cluster, None) is not None:
            self._put(self._drop, cluster)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Leave what has not been begun, discard what is unfinished, end the thread.

        From then on, nothing is done.
        """
        self._stopping = True
        if self._thread is not None:
            self._work.put((self._end, ()))
            self._thread.join(timeout_s)

    def forget(self) -> None:
        """In a forked child, which has no such thread; what is unfinished is the parent's."""
        self._work, self._thread = queue.SimpleQueue(), None
        self._senders, self._receivers = {}, {}

    def _put(self, function: Callable[..., None], *args: object) -> None:
        if self._stopping:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dispy-files", daemon=True)
            self._thread.start()
        self._work.put((function, args))

    # -- the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        work = self._work
        while True:
            function, args = work.get()
            if self._stopping and function != self._end:
                continue
            try:
                function(*args)
            except Exception:
                logger.exception("the thread for files failed at something: a bug in dispy")
            if function == self._end:
                return
            del function, args  # while waiting, keep nobody's data alive

    def _read(self, source: Source, cluster: int, node: int, ranges: Sequence[BlobRange]) -> None:
        """Post large pieces one by one and small ones together."""
        pieces: list[BlobPiece] = []
        size = 0
        for wanted in ranges:
            if self._stopping:
                return
            pieces.append(_read_piece(source, wanted))
            size += wanted.size
            if size >= PIECE_BYTES:
                self._post(Pieces(cluster, node, pieces))
                pieces, size = [], 0
        if pieces:
            self._post(Pieces(cluster, node, pieces))

    def _write(self, cluster: int, record: JobRecord, folder: str | os.PathLike[str]) -> None:
        try:
            receiver = self._receivers.get(cluster)
            if receiver is None:
                receiver = self._receivers[cluster] = Receiver(folder, config.MaxFileSize)
            error = receiver.take(record)
        except Exception as bug:
            logger.exception("a file of a job can't be written: a bug in dispy")
            error = f"dispy itself failed: {type(bug).__name__}"
        self._post(Written(cluster, record.seq, record.attempt, record.number, error))

    def _drop_job(self, cluster: int, seq: int) -> None:
        receiver = self._receivers.get(cluster)
        if receiver is not None:
            receiver.drop_job(seq)

    def _drop(self, cluster: int) -> None:
        receiver = self._receivers.pop(cluster, None)
        if receiver is not None:
            receiver.drop()

    def _end(self) -> None:
        for cluster in list(self._receivers):
            self._drop(cluster)


def _read_piece(source: Source, wanted: BlobRange) -> BlobPiece:
    if not 0 <= wanted.size <= PIECE_BYTES or wanted.offset < 0:
        error = f"{wanted.size} bytes from {wanted.offset} are no piece of a file"
        return BlobPiece(wanted.digest, wanted.offset, b"", error=error)
    try:
        return source.read(wanted)
    except Exception as bug:
        logger.exception("a file can't be read: a bug in dispy")
        error = f"dispy itself failed: {type(bug).__name__}"
        return BlobPiece(wanted.digest, wanted.offset, b"", error=error)
