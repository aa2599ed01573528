"""What lies inside the payload of a job and of its result: a few lengths, then the bytes.

The client and the job process read and write these bytes; to everybody between them a payload
is opaque. Pure, and small on purpose: job processes are forked from a process that has this
module loaded, so it imports no more than `struct`, and it never pickles anything itself.

A *pickled object* is one byte n, n flag bytes, then the pickle stream. The n out-of-band
buffers of the stream travel as parts beside it; a flag of 1 says that the buffer was read-only
(it is given back as `bytes`), 0 that it was writable (`bytearray`).

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
MAX_BUFFERS = 255  # out-of-band buffers of one object: their number is one byte

Buffer: TypeAlias = "bytes | bytearray | memoryview"

_RESULT = struct.Struct("<4Q")  # lengths of value, stdout, stderr, exception text


class ResultBody(NamedTuple):
    """What a job left behind."""

    value: memoryview  # a pickled object; empty: nothing that could be pickled
    stdout: bytes
    stderr: bytes
    exception: str  # for people; empty: the job returned


def pack_object(readonly: Sequence[bool], stream: Buffer) -> bytes:
    """Join a pickle stream and what is to be known of its out-of-band buffers, in order."""
    assert len(readonly) <= MAX_BUFFERS
    return b"".join((bytes((len(readonly), *readonly)), stream))


def unpack_object(data: Buffer) -> tuple[list[bool], memoryview]:
    """Undo `pack_object`; the stream is a view, not a copy."""
    view = memoryview(data)
    count = view[0] if view else 0
    if len(view) < 2 + count:
        raise ProtocolError("a pickled object is cut off")
    flags = view[1 : 1 + count].tolist()
    if any(flag > 1 for flag in flags):
        raise ProtocolError("a pickled object has a buffer of an unknown kind")
    return [flag == 1 for flag in flags], view[1 + count :]


def pack_result(value: Buffer, stdout: Buffer, stderr: Buffer, exception: str) -> bytes:
    """Join the four things that a job leaves."""
    text = exception.encode("utf-8", "backslashreplace")
    head = _RESULT.pack(len(value), len(stdout), len(stderr), len(text))
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


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("the exception text of a job is not UTF-8") from None
