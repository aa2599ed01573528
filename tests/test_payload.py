"""The formats inside payloads: there and back, and no other error than ProtocolError."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.protocol.errors import ProtocolError
from dispy.protocol.payload import (
    MAX_BUFFERS,
    pack_object,
    pack_result,
    unpack_object,
    unpack_result,
)


@given(st.lists(st.booleans(), max_size=MAX_BUFFERS), st.binary(min_size=1))
def test_object_there_and_back(readonly: list[bool], stream: bytes) -> None:
    flags, view = unpack_object(pack_object(readonly, stream))
    assert (flags, bytes(view)) == (readonly, stream)


@given(st.binary(), st.binary(), st.binary(), st.text())
def test_result_there_and_back(value: bytes, stdout: bytes, stderr: bytes, text: str) -> None:
    body = unpack_result(pack_result(value, stdout, stderr, text))
    assert (bytes(body.value), *body[1:]) == (value, stdout, stderr, text)


def test_text_that_utf8_does_not_know_survives() -> None:
    assert unpack_result(pack_result(b"", b"", b"", "\udcff")).exception == "\\udcff"


@given(st.binary(max_size=80))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    with suppress(ProtocolError):
        unpack_object(data)
    with suppress(ProtocolError):
        unpack_result(data)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x02\x00\x01", b"\x01\x07x"])
def test_malformed_objects(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_object(data)


def test_malformed_results() -> None:
    whole = pack_result(b"value", b"out", b"err", "text")
    for data in (b"", whole[:-1], whole + b"x", whole[:10], whole[:-1] + b"\xff"):
        with pytest.raises(ProtocolError):
            unpack_result(data)
