"""Blobs on a disk: written piece by piece, verified, and only then there by their name.

Which blobs are fetched and which may go is decided in `fetching`. After an error nothing is left
of a blob. One writer, and readers that open a whole blob by its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from . import blobs
from .messages import BlobRange, Buffer

PART = ".part"  # how the name of a blob ends that isn't whole
SHARE = 0.5  # of the free space that blobs may take which nobody needs now


class SpoiledBlob(Exception):
    """What has been written is not what the name says."""


class Part:
    """The beginning of a blob; ``path`` is its temporary file."""

    def __init__(self, path: Path) -> None:
        """Make an empty file. Raises `OSError`."""
        self.path = path
        self.size = 0
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file: BinaryIO = os.fdopen(fd, "wb", buffering=0)
        self._hash: Any = blobs.new_hash()

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Write and hash more of it. Raises `OSError`."""
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._hash.update(buffer)
            self.size += len(buffer)

    def digest(self) -> bytes:
        """Return the name of what has been written."""
        digest: bytes = self._hash.digest()
        return digest

    def sync(self) -> None:
        """Have it on the disk and not only in the system's memory. Raises `OSError`."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write no more. Raises `OSError` for what the disk tells only now."""
        self._file.close()

    def discard(self) -> None:
        """Leave nothing of it."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink()


class Store:
    """A folder of blobs; it is made when it isn't there.

    ``synced``: what has its name is on the disk then, and a loss of power doesn't change that.
    """

    def __init__(self, folder: Path, synced: bool = False) -> None:
        self.folder = folder
        self._synced = synced
        self._parts: dict[bytes, Part] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: bytes) -> Path:
        """Return where a blob is, or would be."""
        return self.folder / blobs.file_name(digest)

    def write(self, digest: bytes, offset: int, buffers: Sequence[Buffer]) -> None:
        """Append a piece; at offset 0 the blob is begun anew. Raises `OSError`."""
        if not offset:
            self.drop(digest)
            self._parts[digest] = Part(self.path(digest).with_suffix(PART))
        part = self._parts[digest]
        assert part.size == offset
        try:
            part.append(buffers)
        except OSError:
            self.drop(digest)
            raise

    def commit(self, digest: bytes) -> None:
        """Give the blob its name. Raises `SpoiledBlob` or `OSError`."""
        part = self._parts.pop(digest)
        try:
            if self._synced:
                part.sync()
            part.close()
            if part.digest() != digest:
                raise SpoiledBlob
            part.path.replace(self.path(digest))
            if self._synced:
                _sync_names(self.folder)
        except (OSError, SpoiledBlob):
            part.discard()
            raise

    def drop(self, digest: bytes) -> None:
        """Leave nothing of a blob, whether it is whole or not."""
        part = self._parts.pop(digest, None)
        if part is not None:
            part.discard()
        with suppress(OSError):  # most often it isn't there
            self.path(digest).unlink()

    def read(self, piece: BlobRange) -> bytes:
        """Return a piece of a whole blob. Raises `OSError`, also when there isn't that much."""
        with self.path(piece.digest).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), piece.size, piece.offset)
        if len(data) != piece.size:
            raise OSError(f"the store has {len(data)} bytes at {piece.offset}, not {piece.size}")
        return data

    def sweep(self) -> dict[bytes, int]:
        """Remove what is no whole blob; return the sizes of those that are. Raises `OSError`."""
        sizes: dict[bytes, int] = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                digest = blobs.digest_in(entry.name)
                if digest is not None and entry.is_file(follow_symlinks=False):
                    sizes[digest] = entry.stat(follow_symlinks=False).st_size
                elif entry.name.endswith(PART):
                    os.unlink(entry.path)
        return sizes

    def has_begun(self, digest: bytes) -> bool:
        """Whether pieces can be appended."""
        return digest in self._parts

    def close(self) -> None:
        """Leave nothing that isn't whole."""
        for digest in list(self._parts):
            self.drop(digest)


def _sync_names(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def idle_bytes(folder: Path, limit: int) -> int:
    """Return how much the store may keep that nobody needs: ``limit``, or less on a full disk."""
    system = os.statvfs(folder)
    return min(limit, int(system.f_bavail * system.f_frsize * SHARE))
