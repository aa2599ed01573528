"""Bytes of a job process, taken apart: complete in whatever pieces, strict whatever they say."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.node.jobwire import BLOCK, JOB, RESULT, SIZE
from dispy.node.traffic import Ended, Intake, pack_blocks
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import JobSpec
from dispy.protocol.payload import INLINE_BYTES
from dispy.protocol.wire import CHUNK_BYTES, chunked


def encoded(number: int, body: bytes, parts: Sequence[bytes]) -> bytes:
    head = RESULT.pack(number, 1, 1.5, 2.5, len(body), len(parts))
    return b"".join([head, *(SIZE.pack(len(part)) for part in parts), body, *parts])


def contents(ended: Ended) -> tuple[int, bytes, list[bytes]]:
    parts = [part.tobytes() for part in ended.parts]
    return ended.number, ended.payload, parts


RESULTS = [
    (1, b"", []),
    (2, b"small", []),
    (3, b"x" * INLINE_BYTES, []),
    (4, b"with parts", [b"a" * INLINE_BYTES, b"b" * (CHUNK_BYTES + 1)]),
    (5, b"y" * INLINE_BYTES, [b"c" * (2 * CHUNK_BYTES)]),
    (6, b"last", []),
]
EXPECTED = [
    (number, body, parts) if len(body) < INLINE_BYTES else (number, b"", [body, *parts])
    for number, body, parts in RESULTS
]
STREAM = b"".join(encoded(*result) for result in RESULTS)


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_pieces_make_the_same_results(cuts: list[int]) -> None:
    intake = Intake()
    ended: list[Ended] = []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(edges):
        intake.receive(memoryview(STREAM)[start:end])
        ended += intake.take()
    assert [contents(each) for each in ended] == EXPECTED
    assert all(len(chunk) <= CHUNK_BYTES for e in ended for p in e.parts for chunk in p.chunks)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    with suppress(ProtocolError):
        Intake().receive(memoryview(data))


def test_an_announced_giant_reserves_no_memory() -> None:
    intake = Intake()
    intake.receive(memoryview(RESULT.pack(1, 1, 0.0, 0.0, 8 << 30, 0)))
    assert intake.target is not None and len(intake.target) == CHUNK_BYTES
    with pytest.raises(ProtocolError):
        Intake().receive(memoryview(RESULT.pack(1, 1, 0.0, 0.0, 1 << 60, 0)))


@given(st.lists(st.tuples(st.integers(0, 300_000), st.booleans()), min_size=1, max_size=6))
def test_blocks_hold_all_jobs_in_order(shapes: list[tuple[int, bool]]) -> None:
    jobs = [spec(seq, size, parts) for seq, (size, parts) in enumerate(shapes)]
    data = b"".join(bytes(each) for block in pack_blocks(7, jobs) for each in block.buffers)
    assert unpacked(data) == [
        (7 + seq, b"%d" % seq * size, [b"part" * INLINE_BYTES] if parts else [])
        for seq, (size, parts) in enumerate(shapes)
    ]


def spec(seq: int, size: int, parts: bool) -> JobSpec:
    body = b"%d" % seq * size
    others = [chunked(b"part" * INLINE_BYTES)] if parts else []
    if len(body) < INLINE_BYTES and (body or not others):
        return JobSpec(seq, 1, body, others)
    return JobSpec(seq, 1, b"", [chunked(body), *others])


def unpacked(data: bytes) -> list[tuple[int, bytes, list[bytes]]]:
    """Read blocks as a job process does, but from bytes."""
    found: list[tuple[int, bytes, list[bytes]]] = []
    while data:
        length, first, count = BLOCK.unpack_from(data)
        block, data = data[BLOCK.size : BLOCK.size + length], data[BLOCK.size + length :]
        heads = list(JOB.iter_unpack(block[: count * JOB.size]))
        block = block[count * JOB.size :]
        sizes = [SIZE.unpack_from(block, 8 * each)[0] for each in range(heads[-1][1])]
        block = block[8 * len(sizes) :]
        for number, (body, _) in enumerate(heads, first):
            found.append((number, block[:body], []))
            block = block[body:]
        for size in sizes:
            found[-1][2].append(data[:size])
            data = data[size:]
    return found
