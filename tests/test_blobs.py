"""Files as blobs: hashed once, read in pieces, and never another content than was hashed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from dispy.blobs import OPEN_MAX, BlobSource, Digests
from dispy.protocol.folders import FileNameError
from dispy.protocol.messages import PIECE_BYTES, BlobPiece, BlobRange
from dispy.protocol.payload import PIECE_PART_BYTES

LONG_AGO_NS = 1_000_000_000 * 10**9


def content(piece: BlobPiece) -> bytes:
    assert not piece.error
    return piece.data + b"".join(part.tobytes() for part in piece.parts)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return path


def test_a_file_becomes_its_spec(tmp_path: Path) -> None:
    path = written(tmp_path / "file", b"content")
    path.chmod(0o640)
    spec = BlobSource().add_file(path, "data/file", 0o100)
    assert (spec.path, spec.size, spec.mode) == ("data/file", 7, 0o740)
    assert spec.digest == hashlib.sha256(b"content").digest()
    assert spec.mtime == path.stat().st_mtime


def test_pieces_make_the_file(tmp_path: Path) -> None:
    data = os.urandom(2 * PIECE_BYTES + PIECE_PART_BYTES - 1)
    source = BlobSource()
    spec = source.add_file(written(tmp_path / "file", data), "file")
    sizes = [PIECE_BYTES, PIECE_BYTES, PIECE_PART_BYTES - 1]
    offsets = [0, PIECE_BYTES, 2 * PIECE_BYTES]
    pieces = [
        source.read(BlobRange(spec.digest, offset, size))
        for offset, size in zip(offsets, sizes, strict=True)
    ]
    assert [len(piece.parts) for piece in pieces] == [1, 1, 0]
    assert [piece.offset for piece in pieces] == offsets
    assert b"".join(map(content, pieces)) == data


def test_an_empty_file(tmp_path: Path) -> None:
    source = BlobSource()
    spec = source.add_file(written(tmp_path / "file", b""), "file")
    assert content(source.read(BlobRange(spec.digest, 0, 0))) == b""


@pytest.mark.parametrize("seen", [False, True])
def test_a_file_that_changed_is_noticed(tmp_path: Path, seen: bool) -> None:
    source = BlobSource()
    path = written(tmp_path / "file", b"content")
    spec = source.add_file(path, "file")
    if seen:
        assert content(source.read(BlobRange(spec.digest, 0, 7))) == b"content"
    path.write_bytes(b"another")
    piece = source.read(BlobRange(spec.digest, 0, 7))
    assert not piece.data and str(path) in piece.error and "changed" in piece.error


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    source = BlobSource()
    path = written(tmp_path / "file", b"content")
    spec = source.add_file(path, "file")
    path.unlink()
    assert str(path) in source.read(BlobRange(spec.digest, 0, 7)).error


def test_another_file_with_the_same_content_helps_out(tmp_path: Path) -> None:
    source = BlobSource()
    for name in ("one", "two"):
        spec = source.add_file(written(tmp_path / name, b"content"), name)
    (tmp_path / "one").unlink()
    assert content(source.read(BlobRange(spec.digest, 0, 7))) == b"content"


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0, PIECE_BYTES + 1), (4, 4)])
def test_ranges_that_are_none(tmp_path: Path, offset: int, size: int) -> None:
    source = BlobSource()
    spec = source.add_file(written(tmp_path / "file", b"content"), "file")
    assert source.read(BlobRange(spec.digest, offset, size)).error


def test_only_files_that_were_added_are_read() -> None:
    assert "no file" in BlobSource().read(BlobRange(bytes(32), 0, 1)).error


def test_few_files_stay_open(tmp_path: Path) -> None:
    source = BlobSource()
    paths = [written(tmp_path / str(i), str(i).encode()) for i in range(3 * OPEN_MAX)]
    specs = [source.add_file(path, path.name) for path in paths]
    before = len(os.listdir("/proc/self/fd"))
    for spec in specs + specs:
        assert content(source.read(BlobRange(spec.digest, 0, spec.size))) == spec.path.encode()
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_MAX
    source.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert content(source.read(BlobRange(specs[0].digest, 0, 1))) == b"0"


def test_a_file_is_hashed_once(tmp_path: Path) -> None:
    digests = Digests()
    path = written(tmp_path / "file", b"content")
    digest, version = digests.of(str(path))
    with path.open("r+b") as file:  # what no program does: the same time again
        file.write(b"another")
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert digests.of(str(path)) == (digest, version)


def test_a_fresh_file_is_hashed_again(tmp_path: Path) -> None:
    digests = Digests()
    path = tmp_path / "file"
    path.write_bytes(b"content")
    first, version = digests.of(str(path))
    with path.open("r+b") as file:
        file.write(b"another")
    os.utime(path, ns=(version.mtime_ns, version.mtime_ns))
    second, same = digests.of(str(path))
    assert same == version and second != first


def test_what_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "file", b"content")
    with pytest.raises(ValueError, match=r"file.*7 bytes.*max_file_size allows 6"):
        BlobSource(6).add_file(path, "file")
    with pytest.raises(ValueError, match="not a regular file"):
        BlobSource().add_file(tmp_path, "folder")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BlobSource().add_file(tmp_path / "nowhere", "file")
    with pytest.raises(FileNameError):
        BlobSource().add_file(path, "../file")
    with pytest.raises(ValueError, match="not valid text"):
        BlobSource().add_file(path, "\udcff")
