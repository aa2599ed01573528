"""The formats inside payloads: there and back, and no other error than ProtocolError."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.protocol.errors import ProtocolError
from dispy.protocol.payload import (
    MAX_BUFFERS,
    STDERR,
    STDOUT,
    pack_file_piece,
    pack_object,
    pack_output,
    pack_result,
    unpack_file_piece,
    unpack_object,
    unpack_output,
    unpack_result,
)

# Names of files as `os` gives them: bytes that aren't UTF-8 are surrogates.
names = st.binary(max_size=40).map(lambda name: name.decode("utf-8", "surrogateescape"))


@given(st.lists(st.booleans(), max_size=MAX_BUFFERS), st.binary(min_size=1))
def test_object_there_and_back(readonly: list[bool], stream: bytes) -> None:
    flags, view = unpack_object(pack_object(readonly, stream))
    assert (flags, bytes(view)) == (readonly, stream)


@given(st.binary(), st.binary(), st.binary(), st.text())
def test_result_there_and_back(value: bytes, stdout: bytes, stderr: bytes, text: str) -> None:
    body = unpack_result(pack_result(value, stdout, stderr, text))
    assert (bytes(body.value), *body[1:]) == (value, stdout, stderr, text)


@given(names, st.integers(0, 99), st.integers(0, 99), st.booleans(), st.binary())
def test_piece_of_a_file_there_and_back(
    path: str, offset: int, more: int, last: bool, data: bytes
) -> None:
    size = offset + len(data) + more
    packed = pack_file_piece(path, offset, size, 0o640, 1.5, last, data)
    *fields, view = unpack_file_piece(packed)
    assert (fields, bytes(view)) == ([path, offset, size, 0o640, 1.5, last], data)


@given(st.sampled_from([STDOUT, STDERR]), st.integers(0, 1 << 60), st.binary())
def test_output_there_and_back(stream: int, offset: int, data: bytes) -> None:
    found = unpack_output(pack_output(stream, offset, data))
    assert (found.stream, found.offset, bytes(found.data)) == (stream, offset, data)


def test_text_that_utf8_does_not_know_survives() -> None:
    assert unpack_result(pack_result(b"", b"", b"", "\udcff")).exception == "\\udcff"


@given(st.binary(max_size=80))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    with suppress(ProtocolError):
        unpack_object(data)
    with suppress(ProtocolError):
        unpack_result(data)
    with suppress(ProtocolError):
        unpack_file_piece(data)
    with suppress(ProtocolError):
        unpack_output(data)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x02\x00\x01", b"\x01\x07x"])
def test_malformed_objects(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_object(data)


def test_malformed_results() -> None:
    whole = pack_result(b"value", b"out", b"err", "text")
    for data in (b"", whole[:-1], whole + b"x", whole[:10], whole[:-1] + b"\xff"):
        with pytest.raises(ProtocolError):
            unpack_result(data)


def test_malformed_pieces_of_files() -> None:
    whole = pack_file_piece("name", 0, 4, 0o644, 0.0, True, b"data")
    for data in (b"", whole[:20], whole[:33], whole + b"x"):
        with pytest.raises(ProtocolError):
            unpack_file_piece(data)


def test_malformed_output() -> None:
    whole = pack_output(STDOUT, 0, b"")
    for data in (b"", whole[:-1], b"\x03" + whole[1:]):
        with pytest.raises(ProtocolError):
            unpack_output(data)
