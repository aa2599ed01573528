"""Files that jobs send, on their way into the folder where the program ran.

A file arrives in pieces, in order, and gets its name when all of its bytes are there; one that
is refused, or that its job leaves unfinished, leaves nothing. What comes from a job is never
believed: names, sizes and offsets are checked, and all refusals are texts for the job's user.
Used by the thread of `filework` only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from dispy.protocol.errors import DispyError, ProtocolError
from dispy.protocol.folders import NewFile
from dispy.protocol.messages import Buffer, JobRecord
from dispy.protocol.payload import FilePiece, unpack_file_piece

OPEN_MAX = 32  # files that take descriptors (two each); others rest until their next piece
FILES_AT_ONCE_MAX = 64  # that one job may have begun and not ended


class Refused(DispyError):
    """A file isn't taken; the message says why."""


@dataclass(eq=False)
class Incoming:
    """A file that has begun to arrive; without a ``file`` it is refused for ``error``."""

    file: NewFile | None
    size: int
    mtime: float
    received: int = 0  # bytes
    error: str = ""


@dataclass(eq=False)
class Sender:
    """An attempt of a job that is sending files."""

    attempt: int
    files: dict[str, Incoming] = field(default_factory=dict)


class Receiver:
    """All files that the jobs of one cluster send, below ``folder``.

    ``limit`` is the largest size of a file in bytes, 0: any.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = 0) -> None:
        self._folder = folder
        self._limit = limit
        self._senders: dict[int, Sender] = {}  # by seq; only those with files unfinished
        self._open: dict[Incoming, None] = {}  # not resting, the least recently used first

    def take(self, record: JobRecord) -> str:
        """Write a piece of a file; return why that isn't possible, "" when it's done."""
        try:
            piece = unpack_file_piece(_content(record))
            sender = self._sender(record)
        except (ProtocolError, Refused) as error:
            return str(error)
        refusal = self._take(sender, piece)
        if not sender.files:
            del self._senders[record.seq]
        return refusal

    def drop_job(self, seq: int) -> None:
        """The job has ended: discard what it has not finished."""
        sender = self._senders.pop(seq, None)
        if sender is not None:
            for incoming in sender.files.values():
                self._discard(incoming)

    def drop(self) -> None:
        """Discard all that is unfinished."""
        for seq in list(self._senders):
            self.drop_job(seq)

    def _sender(self, record: JobRecord) -> Sender:
        sender = self._senders.get(record.seq)
        if sender is not None and sender.attempt > record.attempt:
            raise Refused("the job was started anew: files of its earlier attempt are not taken")
        if sender is None or sender.attempt < record.attempt:
            self.drop_job(record.seq)
            sender = self._senders[record.seq] = Sender(record.attempt)
        return sender

    def _take(self, sender: Sender, piece: FilePiece) -> str:
        incoming = sender.files.pop(piece.path, None)
        if incoming is not None and piece.offset == 0:  # it's sent again from the beginning
            self._discard(incoming)
            incoming = None
        try:
            if incoming is None:
                incoming = self._begin(sender, piece)
            self._add(incoming, piece)
        except (DispyError, OSError) as error:
            return self._refuse(sender, piece, incoming, _reason(error, piece.path))
        if not piece.last:
            sender.files[piece.path] = incoming
        return ""

    def _begin(self, sender: Sender, piece: FilePiece) -> Incoming:
        if piece.offset:
            raise Refused(f"{_quoted(piece.path)} does not begin with its first byte")
        if self._limit and piece.size > self._limit:
            raise Refused(
                f"{_quoted(piece.path)} has {piece.size} bytes, and the client takes no file of "
                f"more than {self._limit} (dispy.config.MaxFileSize)"
            )
        if len(sender.files) >= FILES_AT_ONCE_MAX:
            raise Refused(f"the job sends more than {FILES_AT_ONCE_MAX} files at the same time")
        return Incoming(NewFile(self._folder, piece.path), piece.size, piece.mtime)

    def _add(self, incoming: Incoming, piece: FilePiece) -> None:
        if incoming.file is None:
            raise Refused(incoming.error)
        if piece.offset != incoming.received:
            raise Refused(
                f"a piece of {_quoted(piece.path)} is missing: byte {piece.offset} came "
                f"after byte {incoming.received}"
            )
        if (piece.size, piece.mtime) != (incoming.size, incoming.mtime):
            raise Refused(f"{_quoted(piece.path)} has changed while it was being sent")
        self._use(incoming, incoming.file)
        _write(incoming.file, piece.data)
        incoming.received += len(piece.data)
        if not piece.last:
            return
        if incoming.received != incoming.size:
            raise Refused(
                f"{_quoted(piece.path)} ended after {incoming.received} of {incoming.size} bytes"
            )
        del self._open[incoming]
        incoming.file.commit(piece.mode, piece.mtime)

    def _use(self, incoming: Incoming, file: NewFile) -> None:
        """Make sure that a file is open, at the cost of that which was used longest ago."""
        if incoming in self._open:
            del self._open[incoming]
        elif file.file.closed:  # it rests
            file.resume()
        self._open[incoming] = None
        if len(self._open) > OPEN_MAX:
            self._lay_to_rest(next(iter(self._open)))

    def _lay_to_rest(self, incoming: Incoming) -> None:
        assert incoming.file is not None
        try:
            incoming.file.rest()
            del self._open[incoming]
        except OSError as error:
            self._discard(incoming)
            incoming.error = f"the client can't keep a file open: {error.strerror or error}"

    def _refuse(
        self, sender: Sender, piece: FilePiece, incoming: Incoming | None, reason: str
    ) -> str:
        """Discard a file, and remember why, as long as pieces of it may follow."""
        if incoming is None:
            incoming = Incoming(None, piece.size, piece.mtime)
        self._discard(incoming)
        incoming.error = reason
        if not piece.last and len(sender.files) < FILES_AT_ONCE_MAX:
            sender.files[piece.path] = incoming
        return reason

    def _discard(self, incoming: Incoming) -> None:
        self._open.pop(incoming, None)
        if incoming.file is not None:
            incoming.file.discard()
            incoming.file = None


def _content(record: JobRecord) -> Buffer:
    if record.payload or not record.parts:
        return record.payload
    return record.parts[0].tobytes()


def _write(file: NewFile, data: memoryview) -> None:
    """Write all of it: the system may take less at a time."""
    while data:
        data = data[file.file.write(data) :]


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, OSError):
        return f"the client can't write {_quoted(path)}: {error.strerror or error}"
    return str(error)


def _quoted(path: str) -> str:
    return repr(path[:200])
