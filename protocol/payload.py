"""What lies inside the payload of a job and of its result: a few lengths, then the bytes.

The client and the job process read and write these bytes; to everybody between them a payload
is opaque. Pure, and small on purpose: job processes are forked from a process that has this
module loaded, so it imports no more than `struct`, and it never pickles anything itself.

A *pickled object* is one byte n, n flag bytes, then the pickle stream. The n out-of-band
buffers of the stream travel as parts beside it; a flag of 1 says that the buffer was read-only
(it is given back as `bytes`), 0 that it was writable (`bytearray`).

A *layer* of a computation's code is a pickled object, the tuple (names, function, setup,
cleanup). ``names`` maps the names of modules to what is to be defined there: a dictionary of
names and objects. The last three are None where there is none, and in all layers but the first.

The *arguments* of a job are a pickled object, the tuple (args, kwargs), or (args, kwargs, names)
with definitions that only this job needs.

A *piece of a file* that a job sends says which file, where in it, and whether it is the last; a
*piece of output* says of which stream, and where in all that the job has written there.

A *result body* is what a job left: its value or its exception as a pickled object (or nothing),
what it wrote to stdout and stderr, and the text of the exception (empty: it returned).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from .errors import ProtocolError

# A payload of this size or more is the first part, and its place in the header is empty; the
# same limit decides whether a buffer inside an object is worth a part of its own.
INLINE_BYTES = 65536
# A piece of a file of this size or more is a part, which goes only once over a way to many nodes.
PIECE_PART_BYTES = 4096
MAX_BUFFERS = 255  # out-of-band buffers of one object: their number is one byte

Buffer: TypeAlias = "bytes | bytearray | memoryview"

_RESULT = struct.Struct("<4Q")  # lengths of value, stdout, stderr, exception text
_pack_lengths = _RESULT.pack  # looked up once, since job processes are new: see `node.runner`
_FILE = struct.Struct("<BQQdIH")  # last, offset, size of the file, mtime, mode, length of the path
_OUTPUT = struct.Struct("<BQ")  # stream, offset

STDOUT, STDERR = 1, 2  # streams, by their descriptors
PATH_BYTES_MAX = 4096


class ResultBody(NamedTuple):
    """What a job left behind."""

    value: memoryview  # a pickled object; empty: nothing that could be pickled
    stdout: bytes
    stderr: bytes
    exception: str  # for people; empty: the job returned


class FilePiece(NamedTuple):
    """Some bytes of a file that a job sends."""

    path: str  # as the client shall name it; not checked here
    offset: int
    size: int  # of the whole file
    mode: int  # permission bits
    mtime: float  # seconds since the epoch
    last: bool
    data: memoryview


class OutputPiece(NamedTuple):
    """Some bytes that a job has printed."""

    stream: int  # STDOUT or STDERR
    offset: int  # in all that it has written there
    data: memoryview


def pack_object(readonly: Sequence[bool], stream: Buffer) -> bytes:
    """Join a pickle stream and what is to be known of its out-of-band buffers, in order."""
    assert len(readonly) <= MAX_BUFFERS
    return b"".join((bytes((len(readonly), *readonly)), stream))


def unpack_object(data: Buffer) -> tuple[list[bool], memoryview]:
    """Undo `pack_object`; the stream is a view, not a copy."""
    view = memoryview(data)
    count = view[0] if view else 0
    if not count and len(view) > 1:  # most have none, and job processes are in a hurry
        return [], view[1:]
    if len(view) < 2 + count:
        raise ProtocolError("a pickled object is cut off")
    flags = view[1 : 1 + count].tolist()
    if any(flag > 1 for flag in flags):
        raise ProtocolError("a pickled object has a buffer of an unknown kind")
    return [flag == 1 for flag in flags], view[1 + count :]


def pack_result(value: Buffer, stdout: Buffer, stderr: Buffer, exception: str) -> bytes:
    """Join the four things that a job leaves."""
    text = exception.encode("utf-8", "backslashreplace") if exception else b""
    head = _pack_lengths(len(value), len(stdout), len(stderr), len(text))
    return b"".join((head, value, stdout, stderr, text))


def unpack_result(data: Buffer) -> ResultBody:
    """Undo `pack_result`; the value is a view, not a copy."""
    view = memoryview(data)
    if len(view) < _RESULT.size:
        raise ProtocolError("the result of a job is cut off")
    lengths = _RESULT.unpack_from(view)
    if _RESULT.size + sum(lengths) != len(view):
        raise ProtocolError("the lengths in the result of a job do not fit its size")
    value_end = _RESULT.size + lengths[0]
    stdout_end = value_end + lengths[1]
    stderr_end = stdout_end + lengths[2]
    return ResultBody(
        view[_RESULT.size : value_end],
        bytes(view[value_end:stdout_end]),
        bytes(view[stdout_end:stderr_end]),
        _text(view[stderr_end:]),
    )


def pack_file_piece(
    path: str, offset: int, size: int, mode: int, mtime: float, last: bool, data: Buffer
) -> bytes:
    """Join some bytes of a file and what is to be known of it."""
    name = path.encode("utf-8", "surrogateescape")
    assert len(name) <= PATH_BYTES_MAX
    return b"".join((_FILE.pack(last, offset, size, mtime, mode, len(name)), name, data))


def unpack_file_piece(record: Buffer) -> FilePiece:
    """Undo `pack_file_piece`; the data is a view, not a copy."""
    view = memoryview(record)
    if len(view) < _FILE.size:
        raise ProtocolError("a piece of a file is cut off")
    last, offset, size, mtime, mode, length = _FILE.unpack_from(view)
    data = view[_FILE.size + length :]
    if length > PATH_BYTES_MAX or len(view) < _FILE.size + length or offset + len(data) > size:
        raise ProtocolError("a piece of a file doesn't fit its sizes")
    path = bytes(view[_FILE.size : _FILE.size + length]).decode("utf-8", "surrogateescape")
    return FilePiece(path, offset, size, mode & 0o777, mtime, bool(last), data)


def pack_output(stream: int, offset: int, data: Buffer) -> bytes:
    """Join some bytes of output and where they belong."""
    return _OUTPUT.pack(stream, offset) + data


def unpack_output(record: Buffer) -> OutputPiece:
    """Undo `pack_output`; the data is a view, not a copy."""
    view = memoryview(record)
    if len(view) < _OUTPUT.size or view[0] not in (STDOUT, STDERR):
        raise ProtocolError("a piece of output is cut off, or of no stream")
    stream, offset = _OUTPUT.unpack_from(view)
    return OutputPiece(stream, offset, view[_OUTPUT.size :])


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("the exception text of a job is not UTF-8") from None
