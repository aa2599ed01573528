"""The bytes between the node and a job process, at the node's end.

Pure. What comes from a job process was written beside foreign code: it is read with `struct`
only, memory is reserved for what has arrived and not for what is announced, and anything that
isn't exactly the format described in `jobwire` raises `ProtocolError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import Buffer, JobSpec, Large
from dispy.protocol.payload import INLINE_BYTES, MAX_BUFFERS
from dispy.protocol.wire import CHUNK_BYTES

from . import channel
from .jobwire import BLOCK, FILE, JOB, RESULT, SIZE, GivenFiles

BLOCK_BYTES = 1 << 18  # jobs are put together up to this size; a larger one goes alone
RESULT_BYTES_MAX = 16 << 30  # of one result: a limit for nonsense, not for users


class Block(NamedTuple):
    """Jobs that are written together."""

    first: int  # the number of the first one
    buffers: list[Buffer]


def pack_blocks(first: int, jobs: Sequence[JobSpec], alone: bool = False) -> list[Block]:
    """Prepare jobs for the way to a job process; the first of them gets the number ``first``.

    ``alone``: each has a block of its own.
    """
    blocks = []
    start = size = 0
    for position, job in enumerate(jobs):
        size += len(job.payload)
        if alone or job.parts or size >= BLOCK_BYTES or position == len(jobs) - 1:
            blocks.append(Block(first + start, _pack(first + start, jobs[start : position + 1])))
            start, size = position + 1, 0
    return blocks


def _pack(first: int, jobs: Sequence[JobSpec]) -> list[Buffer]:
    """Pack jobs of which only the last has parts."""
    last = jobs[-1]
    if not last.parts and len(last.payload) < INLINE_BYTES:
        packed = [JOB.pack(len(job.payload), 0) for job in jobs]
        packed += [job.payload for job in jobs]
        return [BLOCK.pack(sum(map(len, packed)), first, len(jobs)) + b"".join(packed)]
    parts = last.parts if last.payload else last.parts[1:]
    body = [last.payload] if last.payload or not last.parts else last.parts[0].chunks
    heads = [JOB.pack(len(job.payload), 0) for job in jobs[:-1]]
    heads.append(JOB.pack(sum(map(len, body)), len(parts)))
    heads += [SIZE.pack(part.size) for part in parts]
    bodies = [job.payload for job in jobs[:-1]]
    length = sum(map(len, heads)) + sum(map(len, bodies)) + sum(map(len, body))
    small = b"".join([BLOCK.pack(length, first, len(jobs)), *heads, *bodies])
    large = [*body, *(chunk for part in parts for chunk in part.chunks)]
    if len(large) == 1 and len(large[0]) < INLINE_BYTES:
        return [small + bytes(large[0])]
    return [small, *large]


def pack_files(number: int, files: GivenFiles) -> bytes:
    """Prepare what a job process is told of the files of the job that follows."""
    content = channel.pack(files)
    return BLOCK.pack(len(content), number, 0) + content


def pack_heard(count: int, refusal: str) -> bytes:
    """Prepare the news that the client has dealt with so many records of the process."""
    content = channel.pack((count, refusal))
    return BLOCK.pack(len(content), 0, 0) + content


class Ended(NamedTuple):
    """A job that has ended by itself, or a record of one that runs."""

    number: int
    kind: int  # FAILED, RETURNED, PROVISIONAL or FILE
    start: float
    end: float
    payload: bytes
    parts: list[Large]


class Intake:
    """Puts the results of one job process together.

    `receive` takes bytes as they come. While `target` is not None, a large payload is on its
    way: the reader may instead receive straight into it and call `filled`.
    """

    def __init__(self) -> None:
        self._rest = b""  # the beginning of a result
        self._ended: list[Ended] = []
        self._large: Ended | None = None  # one whose parts are still to come
        self._part = 0  # which of them
        self._filled = 0  # bytes of its last chunk

    @property
    def target(self) -> memoryview | None:
        """Where the next bytes belong."""
        if self._large is None:
            return None
        chunk = self._large.parts[self._part].chunks[-1]
        return memoryview(chunk)[self._filled :]

    def take(self) -> list[Ended]:
        """Return what is complete, once."""
        ended, self._ended = self._ended, []
        return ended

    def receive(self, data: memoryview) -> None:
        """Take the next bytes. Raises `ProtocolError`."""
        while (target := self.target) is not None and data:
            count = min(len(target), len(data))
            target[:count] = data[:count]
            self.filled(count)
            data = data[count:]
        if not data:
            return
        if self._rest:
            data = memoryview(self._rest + bytes(data))
            self._rest = b""
        position = 0
        while size := self._read_one(data, position):
            position += size
            if self._large is not None:
                self.receive(data[position:])
                return
        self._rest = bytes(data[position:])

    def filled(self, count: int) -> None:
        """Note that so many bytes of the target have been filled."""
        self._filled += count
        large = self._large
        assert large is not None
        part = large.parts[self._part]
        chunk = part.chunks[-1]
        if self._filled < len(chunk):
            return
        missing = part.size - CHUNK_BYTES * (len(part.chunks) - 1) - len(chunk)
        if missing:
            part.chunks.append(bytearray(min(missing, CHUNK_BYTES)))
        else:
            self._part += 1
        self._filled = 0
        if self._part == len(large.parts):
            self._large = None
            self._ended.append(large)
        elif not missing:
            self._begin_part()

    def _begin_part(self) -> None:
        assert self._large is not None
        part = self._large.parts[self._part]
        part.chunks.append(bytearray(min(part.size, CHUNK_BYTES)))

    def _read_one(self, data: memoryview, start: int) -> int:
        """Read what begins here, without parts; return its length, 0: not all of it is here."""
        if len(data) - start < RESULT.size:
            return 0
        number, kind, began, ended, length, parts = RESULT.unpack_from(data, start)
        body = start + RESULT.size + parts * SIZE.size
        if kind > FILE or parts > MAX_BUFFERS or length > RESULT_BYTES_MAX:
            raise ProtocolError("a job process sent something that is no result")
        if len(data) < body:
            return 0
        sizes: list[int] = []
        if parts:
            sizes = [size for (size,) in SIZE.iter_unpack(data[start + RESULT.size : body])]
            if min(sizes) < INLINE_BYTES or sum(sizes) > RESULT_BYTES_MAX:
                raise ProtocolError("a job process sent a result with parts of impossible sizes")
        payload = b""
        end: int = body
        if length < INLINE_BYTES:
            end = body + length
            if len(data) < end:
                return 0
            payload = bytes(data[body:end])
        else:
            sizes.insert(0, length)
        larges = [Large(size, []) for size in sizes] if sizes else []
        said = Ended(number, kind, began, ended, payload, larges)
        if sizes:
            self._large = said
            self._part = self._filled = 0
            self._begin_part()
        else:
            self._ended.append(said)
        return end - start
