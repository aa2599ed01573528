"""Frames that have gone over a trunk before don't go over it again.

What many nodes need, such as a file, would otherwise cross a slow trunk once for each of them.
The sender remembers the digests of the long frames that it has sent over a connection, and
leaves those out that its receiver still has; that one keeps the frames themselves. Both forget
the oldest first, and the receiver keeps somewhat more. Both are to be made anew with each
connection. Pure, but for the `Shelf`, which is passed in.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from .errors import ProtocolError
from .messages import Buffer, Cached
from .wire import FRAME_BYTES_MAX, Codec

LONG_BYTES = 4096  # shorter frames aren't worth a digest
DIGEST_BYTES = 16
SENT_BYTES = 256 << 20  # of frames that the sender counts on
MEMORY_BYTES = 64 << 20  # of frames that the receiver has in memory
SHELF_BYTES = SENT_BYTES  # ... beyond that, on its shelf
# Of one message, put together; a short one may name the same long frame many times.
RESTORED_BYTES_MAX = 4 * FRAME_BYTES_MAX
MISSED = "a frame is missed that should be there"


class Shelf(Protocol):
    """Room for frames that aren't in memory, as in a file."""

    def write(self, offset: int, data: Buffer) -> None:
        """Put all bytes to a place; those that were there are gone. Raises `OSError`."""

    def read(self, offset: int, size: int) -> bytes:
        """Return what was written. Raises `OSError` when that isn't possible."""

    def close(self) -> None:
        """Give the room back."""


class Sent:
    """The side of the sender: what it has sent.

    Hashing is only worth it when several peers may get the same, so it begins with ``keeps``.
    """

    def __init__(self, limit_bytes: int = SENT_BYTES) -> None:
        self.keeps = False
        self._announced = False  # the receiver knows that it has to keep frames from now on
        self._codec = Codec()
        self._limit_bytes = limit_bytes
        self._sizes: dict[bytes, int] = {}  # by digest, oldest first
        self._bytes = 0

    def shorten(self, frames: list[Buffer]) -> tuple[list[Buffer], dict[bytes, int]]:
        """Leave out what the receiver has; also return what is news to it, for `sent`."""
        if not self.keeps or not any(len(frame) >= LONG_BYTES for frame in frames[1:]):
            return frames, {}
        kept: list[Buffer] = [frames[0]]
        left_out: list[tuple[int, bytes]] = []
        news: dict[bytes, int] = {}
        for position, frame in enumerate(frames[1:], 1):
            if len(frame) < LONG_BYTES:
                kept.append(frame)
                continue
            digest = digest_of(frame)
            if digest in self._sizes:
                left_out.append((position, digest))
                continue
            kept.append(frame)
            news[digest] = len(frame)  # should it occur twice, the first counts
        if left_out or not self._announced:
            header, _ = self._codec.encode(Cached(left_out))
            return [header, *kept], news
        return kept, news

    def sent(self, news: dict[bytes, int]) -> None:
        """The transport has taken a message with these frames."""
        self._announced |= bool(news)
        for digest, size in news.items():
            self._sizes[digest] = size
            self._bytes += size
        while self._bytes > self._limit_bytes:
            self._bytes -= self._sizes.pop(next(iter(self._sizes)))

    def clear(self) -> None:
        """The receiver missed something: count on nothing."""
        self._sizes.clear()
        self._bytes = 0
        self._announced = False

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        assert self._bytes == sum(self._sizes.values()) <= self._limit_bytes


class Kept:
    """The side of the receiver: the frames themselves, the newest in memory."""

    def __init__(
        self,
        shelf: Shelf,
        memory_bytes: int = MEMORY_BYTES,
        shelf_bytes: int = SHELF_BYTES,
    ) -> None:
        self._shelf = shelf
        self._memory_limit = memory_bytes
        self._shelf_limit = shelf_bytes
        self._is_keeping = False
        self._memory: dict[bytes, Buffer] = {}  # oldest first
        self._memory_bytes = 0
        self._places: dict[bytes, tuple[int, int]] = {}  # on the shelf: offset and size
        self._shelved: deque[tuple[bytes, int, int]] = deque()  # the same, and what was replaced
        self._head = 0  # where the next frame goes on the shelf, in a ring

    def restore(self, cached: Cached | None, frames: Sequence[Buffer]) -> list[Buffer] | None:
        """Put back what the sender has left out; None if something of it isn't here.

        To be called with every message, in order, after the `Cached` has been taken off. Raises
        `ProtocolError` if that makes no sense.
        """
        if cached is None:
            if self._is_keeping:
                self._keep(frames)
            return list(frames)
        self._is_keeping = True
        restored = self._put_back(cached, frames)
        self._keep(frames)
        return restored

    def close(self) -> None:
        """Forget all."""
        self._memory.clear()
        self._places.clear()
        self._shelved.clear()
        self._shelf.close()

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        assert self._memory_bytes == sum(map(len, self._memory.values())) <= self._memory_limit
        assert not self._memory.keys() & self._places.keys()
        assert set(self._places) <= {digest for digest, _, _ in self._shelved}
        ends = sorted((offset, offset + size) for _, offset, size in self._shelved)
        assert all(end <= start for (_, end), (start, _) in pairwise(ends))
        assert not ends or ends[-1][1] <= self._shelf_limit

    def _put_back(self, cached: Cached, frames: Sequence[Buffer]) -> list[Buffer] | None:
        total = len(frames) + len(cached.frames)
        restored: list[Buffer] = []
        rest = iter(frames)
        missing = dict(cached.frames)
        if len(missing) != len(cached.frames) or not all(0 < each < total for each in missing):
            raise ProtocolError("frames are left out at places that don't exist")
        size = 0
        for position in range(total):
            digest = missing.get(position)
            frame = next(rest) if digest is None else self._get(digest)
            if frame is None:
                return None
            restored.append(frame)
            size += len(frame)
            if size > RESTORED_BYTES_MAX:
                raise ProtocolError("a message with more in it than anybody sends")
        return restored

    def _get(self, digest: bytes) -> Buffer | None:
        frame = self._memory.get(digest)
        if frame is not None:
            return frame
        place = self._places.get(digest)
        if place is None:
            return None
        try:
            return self._shelf.read(*place)
        except OSError:
            return None

    def _keep(self, frames: Sequence[Buffer]) -> None:
        first: dict[bytes, Buffer] = {}  # of those that occur twice
        for frame in frames[1:]:
            if len(frame) >= LONG_BYTES:
                first.setdefault(digest_of(frame), frame)
        for digest, frame in first.items():
            self._keep_one(digest, frame)

    def _keep_one(self, digest: bytes, frame: Buffer) -> None:
        """Keep a frame as the newest one, even if it has been here before: so does the sender."""
        old = self._memory.pop(digest, b"")
        self._places.pop(digest, None)
        self._memory[digest] = frame
        self._memory_bytes += len(frame) - len(old)
        while self._memory_bytes > self._memory_limit:
            oldest = next(iter(self._memory))
            frame = self._memory.pop(oldest)
            self._memory_bytes -= len(frame)
            self._put_on_shelf(oldest, frame)

    def _put_on_shelf(self, digest: bytes, frame: Buffer) -> None:
        size = len(frame)
        if size > self._shelf_limit:
            return
        if self._head + size > self._shelf_limit:
            while self._shelved and self._shelved[0][1] >= self._head:
                self._drop_oldest()
            self._head = 0
        while self._shelved and self._head <= self._shelved[0][1] < self._head + size:
            self._drop_oldest()
        try:
            self._shelf.write(self._head, frame)
        except OSError:
            return  # no room: should it be left out some day, it is missed and comes again
        self._places[digest] = self._head, size
        self._shelved.append((digest, self._head, size))
        self._head += size

    def _drop_oldest(self) -> None:
        digest, offset, size = self._shelved.popleft()
        if self._places.get(digest) == (offset, size):
            del self._places[digest]


def digest_of(frame: Buffer) -> bytes:
    """Return what names the content of a frame."""
    return hashlib.blake2b(frame, digest_size=DIGEST_BYTES).digest()
