"""Files in the simulation: what is in them, and a made-up store for those that a node has."""

from __future__ import annotations

from collections import Counter

from dispy.protocol.blobs import digest_of
from dispy.protocol.messages import PIECE_BYTES, BlobPiece, BlobRange, Buffer, FileSpec, Large
from dispy.protocol.payload import PIECE_PART_BYTES

LENGTHS = (0, 10, 3000, 70_000, PIECE_BYTES, 2 * PIECE_BYTES + 5)

CONTENTS: dict[bytes, bytes] = {}  # all that there are, by digest
FILES: list[FileSpec] = []  # shortest first


def _make(length: int) -> None:
    content = bytes([length % 251]) * length
    digest = digest_of(content)
    CONTENTS[digest] = content
    FILES.append(FileSpec(f"file{length}", digest, length))


for _length in LENGTHS:
    _make(_length)


def piece(wanted: BlobRange, error: str = "") -> BlobPiece:
    """Read a piece as the client does."""
    if error:
        return BlobPiece(wanted.digest, wanted.offset, b"", error=error)
    data = CONTENTS[wanted.digest][wanted.offset : wanted.offset + wanted.size]
    if len(data) < PIECE_PART_BYTES:
        return BlobPiece(wanted.digest, wanted.offset, data)
    return BlobPiece(wanted.digest, wanted.offset, b"", [Large(len(data), [data])])


class Store:
    """The blobs of one life of a node."""

    def __init__(self) -> None:
        self.whole: set[bytes] = set()
        self.completed: Counter[bytes] = Counter()  # how often a blob has been fetched
        self._parts: dict[bytes, bytearray] = {}

    def write(self, digest: bytes, offset: int, buffers: list[Buffer]) -> None:
        """Append a piece; at offset 0 the blob is begun anew."""
        if not offset:
            self._parts[digest] = bytearray()
        part = self._parts[digest]
        assert len(part) == offset, "a piece doesn't follow the one before it"
        for buffer in buffers:
            part += buffer

    def commit(self, digest: bytes) -> bool:
        """Give a blob its name; False if it isn't what that says."""
        part = self._parts.pop(digest)
        if digest_of(bytes(part)) != digest:
            return False
        assert digest not in self.whole, "a blob is fetched that is there"
        self.whole.add(digest)
        self.completed[digest] += 1
        return True

    def drop(self, digest: bytes) -> None:
        """Leave nothing of a blob."""
        self._parts.pop(digest, None)
        self.whole.discard(digest)

    def has_all(self, files: list[FileSpec]) -> bool:
        """Whether the contents of all these files are there, whole."""
        return all(file.digest in self.whole for file in files)

    def sweep(self) -> dict[bytes, int]:
        """Leave only what is whole; return how long each of these is."""
        self._parts.clear()
        return {digest: len(CONTENTS[digest]) for digest in sorted(self.whole)}

    @property
    def is_settled(self) -> bool:
        """Whether nothing is there that isn't whole."""
        return not self._parts
