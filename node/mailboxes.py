"""The job process's end of the bytes between it and the node: jobs come in, results go out.

The format is that of `jobwire`. The process trusts the node: what it reads is not checked.
"""

from __future__ import annotations

import _socket  # in the place of `socket`: see `runner`
import select
import time
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from dispy.protocol.payload import INLINE_BYTES

from .jobwire import (
    BLOCK,
    BLOCK_BYTES,
    EMPTIED,
    JOB,
    JOB_BYTES,
    OUTBOX_BYTES,
    OUTBOX_HEAD,
    SIZE,
    USED,
    GivenFiles,
    head_of,
)

_unpack_block, _unpack_job = BLOCK.unpack, JOB.unpack_from  # looked up once: see `runner`
FLUSH_S = 0.002  # a result waits at most so long for company, while jobs follow each other
_WAIT = int(_socket.MSG_WAITALL)
SKIP_BYTES = 1 << 20  # parts of dropped jobs are read away in such pieces

Job: TypeAlias = "tuple[int, memoryview, list[int]]"  # number, body, sizes of its parts


class NodeGone(Exception):
    """The node has closed the connection, or the job has."""


class Inbox:
    """Reads the blocks; hands jobs out by number."""

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock
        self._jobs: deque[Job] = deque()
        self._early: dict[int, list[bytearray]] = {}  # parts that were read before their job began
        self.given: dict[int, GivenFiles] = {}  # by job
        self.heard = 0  # records that the client has dealt with
        self.refusals: dict[int, str] = {}  # records that the client did not want, and why

    def take(self, number: int) -> Job:
        """Return the job of this number (0: the next), whose parts are still to be read."""
        while True:
            while not self._jobs:
                self._read_block()
            job = self._jobs.popleft()
            if number in (0, job[0]):
                return job
            self.given.pop(job[0], None)
            if self._early.pop(job[0], None) is None:
                for size in job[2]:
                    self._skip(size)

    def read_parts(
        self, number: int, readonly: list[bool], sizes: list[int]
    ) -> list[bytes | bytearray]:
        """Read the out-of-band buffers of a job, each straight into its final place."""
        if self._early and (parts := self._early.pop(number, None)) is not None:
            return [
                bytes(part) if constant else part
                for constant, part in zip(readonly, parts, strict=True)
            ]
        return [
            self._read(size) if constant else self._read_writable(size)
            for constant, size in zip(readonly, sizes, strict=True)
        ]

    def has_more(self) -> bool:
        """Whether something was read for later jobs."""
        return bool(self._jobs or self._early or self.given)

    def leave(self) -> bytes:
        """Return what was read for later jobs: their process takes it over."""
        import marshal

        jobs = [(number, bytes(body), sizes) for number, body, sizes in self._jobs]
        return marshal.dumps((jobs, self._early, self.given))

    def take_over(self, left: bytes) -> None:
        """Begin with what the process before has left."""
        import marshal

        jobs, early, self.given = marshal.loads(left)
        self._jobs.extend([(number, memoryview(body), sizes) for number, body, sizes in jobs])
        self._early = {
            number: [bytearray(part) for part in parts] for number, parts in early.items()
        }

    def hear(self, seconds: float) -> None:
        """Wait so long for another block, and read it, while a job runs."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        if not poll.poll(seconds * 1000):
            return
        if self._jobs and self._jobs[-1][2] and self._jobs[-1][0] not in self._early:
            number, _, sizes = self._jobs[-1]  # its parts come first
            self._early[number] = [self._read_writable(size) for size in sizes]
        self._read_block()

    def _read_block(self) -> None:
        length, first, count = _unpack_block(self._read(BLOCK_BYTES))
        view = memoryview(self._read(length))
        if not count:
            self._read_note(first, view)
            return
        if count == 1:
            body, parts = _unpack_job(view)
            if not parts:
                self._jobs.append((first, view[JOB_BYTES:], []))
                return
        heads = list(JOB.iter_unpack(view[: count * JOB_BYTES]))
        position = count * JOB_BYTES + heads[-1][1] * SIZE.size
        sizes = [size for (size,) in SIZE.iter_unpack(view[count * JOB_BYTES : position])]
        for number, (body, parts) in enumerate(heads, first):
            self._jobs.append((number, view[position : position + body], sizes if parts else []))
            position += body

    def _read_note(self, number: int, content: memoryview) -> None:
        """Read a block without jobs."""
        import marshal

        if number:
            self.given[number] = marshal.loads(content)
            return
        heard, refusal = marshal.loads(content)
        self.heard = max(self.heard, heard)
        if refusal:
            self.refusals[heard] = refusal

    def _read(self, size: int) -> bytes:
        data = self._socket.recv(size, _WAIT) if size else b""
        if len(data) == size:
            return data
        pieces = [data]  # a signal came in between
        missing = size - len(data)
        while missing:
            pieces.append(self._socket.recv(missing, _WAIT))
            if not pieces[-1]:
                raise NodeGone
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def _read_writable(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view, len(view), _WAIT)
            if not count:
                raise NodeGone
            view = view[count:]
        return data

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._read(min(size, SKIP_BYTES)))


class Outbox:
    """Collects results and sends them together."""

    def __init__(self, sock: _socket.socket, memory: memoryview) -> None:
        self._socket = sock
        self._memory = memory
        self._words = head_of(memory)
        self._end = OUTBOX_HEAD
        self._flushed_at = 0.0

    def put(self, head: bytes, body: bytes, buffers: list[memoryview]) -> None:
        """Take the result of a job; it's out of this process's hands when `put` returns."""
        middle = self._end + len(head)
        end = middle + len(body)
        if buffers or end > OUTBOX_BYTES:
            self.put_at_once(head, body, buffers)
            return
        self._memory[self._end : middle] = head
        self._memory[middle:end] = body
        self._words[USED] = end - OUTBOX_HEAD
        self._end = end

    def put_at_once(self, head: bytes, body: bytes, buffers: list[memoryview]) -> None:
        """Send something behind all that is there."""
        if self._end > OUTBOX_HEAD:
            self.flush()
        if len(body) < INLINE_BYTES:
            self._send([head + body, *buffers])
        else:
            self._send([head, body, *buffers])

    def flush_if_due(self) -> None:
        """Send what is there when the last sending was a while ago."""
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()
            self.restart_clock()

    def restart_clock(self) -> None:
        """Begin the time in which results wait for company."""
        self._flushed_at = time.monotonic()

    def flush(self) -> None:
        """Send what is there."""
        if self._end == OUTBOX_HEAD:
            return
        self._send([self._memory[OUTBOX_HEAD : self._end]])
        self._end = OUTBOX_HEAD
        self._words[USED] = 0
        self._words[EMPTIED] += 1

    def _send(self, buffers: Sequence[bytes | memoryview]) -> None:
        try:
            for buffer in buffers:
                self._socket.sendall(buffer)
        except OSError:
            raise NodeGone from None
