"""Files that nodes need: hashed once, then read in pieces as nodes ask for them.

A file must stay as it was when it was hashed; `BlobSource.read` notices when it hasn't. There
are no threads here, but any thread may call.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dispy.protocol import blobs
from dispy.protocol.folders import parts_of
from dispy.protocol.messages import PIECE_BYTES, BlobPiece, BlobRange, FileSpec
from dispy.protocol.payload import PIECE_PART_BYTES
from dispy.protocol.wire import chunked

OPEN_MAX = 16  # files that are kept open for the next piece
KNOWN_MAX = 100_000  # digests that are remembered
SETTLED_S = 2.0  # a file that was changed just before it was read may change unnoticed


class Version(NamedTuple):
    """What changes when a file does."""

    size: int
    mtime_ns: int
    inode: int


class Digests:
    """Digests of files as they are now; the process has one, so that each is read only once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, Version], bytes] = OrderedDict()

    def of(self, path: str) -> tuple[bytes, Version]:
        """Return the digest of a file and the version that it belongs to.

        Raises `OSError` for what can't be read, `ValueError` for a file that is being changed.
        """
        with open(path, "rb", buffering=0) as file:
            version = _version(os.fstat(file.fileno()))
            with self._lock:
                digest = self._known.get((path, version))
            if digest is None:
                digest = _hash(file)
                if _version(os.fstat(file.fileno())) != version:
                    raise ValueError(f"the file {path!r} is being changed")
                self._remember(path, version, digest)
        return digest, version

    def _remember(self, path: str, version: Version, digest: bytes) -> None:
        if abs(time.time() - version.mtime_ns / 1e9) < SETTLED_S:
            return
        with self._lock:
            self._known[path, version] = digest
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)


_digests = Digests()


def forget() -> None:
    """In a forked child: the lock may be that of a thread which only the parent has."""
    global _digests
    _digests = Digests()


class BlobSource:
    """The files of one cluster. ``max_file_size``: bytes, 0: no limit."""

    def __init__(self, max_file_size: int = 0) -> None:
        self._max_file_size = max_file_size
        self._lock = threading.Lock()
        self._files: dict[bytes, dict[str, Version]] = {}  # by digest: whoever has the content
        self._open: OrderedDict[tuple[str, Version], BinaryIO] = OrderedDict()

    def add_file(self, path: str | Path, name: str, add_mode: int = 0) -> FileSpec:
        """Have a file ready for nodes, where it will be ``name`` with ``add_mode`` set as well.

        Raises `OSError` if it can't be read; `ValueError` for what is no regular file, is
        larger than allowed, is being changed, or has a name that can't be sent.
        """
        absolute = os.path.abspath(path)
        status = os.stat(absolute)
        self._check(absolute, status)
        _check_name(name)
        digest, version = _digests.of(absolute)
        with self._lock:
            self._files.setdefault(digest, {})[absolute] = version
        mode = (stat.S_IMODE(status.st_mode) & 0o777) | add_mode
        return FileSpec(name, digest, version.size, mode, version.mtime_ns / 1e9)

    def read(self, wanted: BlobRange) -> BlobPiece:
        """Return a piece of a content, or one that says why it can't be had."""
        piece = BlobPiece(wanted.digest, wanted.offset, b"")
        try:
            data = self._read(wanted)
        except (OSError, ValueError) as error:
            piece.error = str(error)
            return piece
        if len(data) < PIECE_PART_BYTES:
            piece.data = data
        else:
            piece.parts = [chunked(data)]
        return piece

    def close(self) -> None:
        """Close the files that are open; later ones are opened again."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _check(self, path: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path!r} is not a regular file")
        if self._max_file_size and status.st_size > self._max_file_size:
            raise ValueError(
                f"the file {path!r} has {status.st_size} bytes; max_file_size allows "
                f"{self._max_file_size}"
            )

    def _read(self, wanted: BlobRange) -> bytes:
        if not 0 <= wanted.size <= PIECE_BYTES or wanted.offset < 0:
            raise ValueError(f"a piece can't begin at {wanted.offset} and have {wanted.size} bytes")
        with self._lock:
            places = list(self._files.get(wanted.digest, {}).items())
            reason = f"no file of this cluster has the content {blobs.file_name(wanted.digest)}"
            for path, version in places:
                try:
                    return self._read_from(path, version, wanted)
                except (OSError, ValueError) as error:
                    reason = str(error)
        raise ValueError(reason)

    def _read_from(self, path: str, version: Version, wanted: BlobRange) -> bytes:
        file = self._opened(path, version)
        if wanted.offset + wanted.size > version.size:
            raise ValueError(f"the file {path!r} has only {version.size} bytes")
        data = os.pread(file.fileno(), wanted.size, wanted.offset)
        now = os.fstat(file.fileno())
        if len(data) != wanted.size or _version(now) != version:
            raise ValueError(f"the file {path!r} has changed since the cluster was given it")
        return data

    def _opened(self, path: str, version: Version) -> BinaryIO:
        file = self._open.get((path, version))
        if file is None:
            file = open(path, "rb", buffering=0)  # noqa: SIM115
            if _version(os.fstat(file.fileno())) != version:
                file.close()
                raise ValueError(f"the file {path!r} has changed since the cluster was given it")
            self._open[path, version] = file
        self._open.move_to_end((path, version))
        while len(self._open) > OPEN_MAX:
            self._open.popitem(last=False)[1].close()
        return file


def _check_name(name: str) -> None:
    parts_of(name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the file name {name!r} is not valid text") from None


def _version(status: os.stat_result) -> Version:
    return Version(status.st_size, status.st_mtime_ns, status.st_ino)


def _hash(file: BinaryIO) -> bytes:
    hashed = blobs.new_hash()
    piece = bytearray(PIECE_BYTES)
    view = memoryview(piece)
    while count := file.readinto(view):  # type: ignore[attr-defined]
        hashed.update(view[:count])
    digest: bytes = hashed.digest()
    return digest
