"""Functions and arguments on their way to a job process, and what can't go."""

from __future__ import annotations

import functools
import pickle
import sys
import textwrap
import threading
from dataclasses import dataclass
from typing import Any

import pytest

import dispy.pickling
from dispy.computation import pack
from dispy.depends import CodeDepends
from dispy.layers import Known
from dispy.modules import is_of_user
from dispy.pickling import Pickled, PicklingError, load
from dispy.protocol.errors import DispyError
from dispy.protocol.messages import Code
from dispy.protocol.payload import INLINE_BYTES
from dispy.protocol.wire import CHUNK_BYTES
from dispy.vocabulary import Vocabulary

MEMORY = 1 << 20


def dump_arguments(args: tuple[object, ...], kwargs: dict[str, object]) -> Pickled:
    """Pickle for nodes that know this module: they have its file."""
    return Vocabulary(Known(frozenset({__name__.partition(".")[0]}))).dump(args, kwargs, refuse)


def refuse(layers: list[Code]) -> None:
    raise AssertionError("nothing had to be defined")


@dataclass
class Holder:
    name: str
    lock: object


class Slotted:
    __slots__ = ("inner", "number")

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.number = 1


class Chosen:
    """Says itself what its state is."""

    def __init__(self, state: object) -> None:
        self.state = state

    def __getstate__(self) -> object:
        return {"state": self.state, "other": 1}


class Reduced:
    def __init__(self, part: object) -> None:
        self.part = part

    def __reduce__(self) -> Any:
        return (Reduced, (self.part,))


class Raising:
    def __reduce__(self) -> Any:
        raise RuntimeError("not today")


def round_trip(*args: object, **kwargs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    packed = dump_arguments(args, kwargs)
    if packed.payload:
        return load(packed.payload, packed.parts)  # type: ignore[no-any-return]
    return load(packed.parts[0].tobytes(), packed.parts[1:])  # type: ignore[no-any-return]


# -- arguments ---------------------------------------------------------------------------------


def test_small_arguments_travel_inline() -> None:
    packed = dump_arguments((1, "two", [3.0]), {"x": None})
    assert packed.payload and packed.parts == []
    assert round_trip(1, "two", [3.0], x=None) == ((1, "two", [3.0]), {"x": None})


def test_many_small_objects_make_a_payload_that_travels_alone() -> None:
    numbers = list(range(MEMORY))
    packed = dump_arguments((numbers,), {})
    assert packed.payload == b"" and len(packed.parts) == 1
    assert all(len(chunk) <= CHUNK_BYTES for chunk in packed.parts[0].chunks)
    assert round_trip(numbers) == ((numbers,), {})


def test_large_bytes_are_not_copied() -> None:
    data = bytes(3 * MEMORY + 1)
    packed = dump_arguments((data,), {})
    (part,) = packed.parts
    assert part.size == len(data) and len(part.chunks) == 4
    assert all(isinstance(chunk, memoryview) and chunk.obj is data for chunk in part.chunks)
    (back,), _ = round_trip(data)
    assert type(back) is bytes and back == data


def test_bytes_of_one_chunk_are_the_same_object() -> None:
    data = bytes(INLINE_BYTES)
    assert dump_arguments((data,), {}).parts[0].chunks[0] is data


def test_a_bytearray_is_copied_when_submitted_and_arrives_writable() -> None:
    data = bytearray(b"a" * INLINE_BYTES)
    packed = dump_arguments((data,), {})
    data[0] = 0
    (back,), _ = load(packed.payload, packed.parts)
    assert type(back) is bytearray and back[0] == ord("a")
    back[0] = 1


def test_buffers_inside_objects_go_out_of_band_if_they_are_large() -> None:
    large, small = pickle.PickleBuffer(bytearray(INLINE_BYTES)), pickle.PickleBuffer(b"small")
    packed = dump_arguments(([large, small],), {})
    assert [part.size for part in packed.parts] == [INLINE_BYTES]
    (back,), _ = load(packed.payload, packed.parts)
    assert [bytes(item) for item in back] == [bytes(INLINE_BYTES), b"small"]


def test_more_buffers_than_can_be_counted() -> None:
    args = tuple(bytes([i % 256]) * INLINE_BYTES for i in range(300))
    packed = dump_arguments(args, {})
    assert packed.payload == b"" and len(packed.parts) == 256
    assert round_trip(*args) == (args, {})


def test_the_wrong_number_of_buffers_is_noticed() -> None:
    packed = dump_arguments((bytes(INLINE_BYTES),), {})
    with pytest.raises(ValueError, match="buffers"):
        load(packed.payload, [])


# -- what can't be pickled ------------------------------------------------------------------------

LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ((LOCK,), "args[0]: _thread.lock"),
        ((1, Holder("x", LOCK)), "args[1].lock: _thread.lock"),
        ((1, [2, {"key": (3, LOCK)}]), "args[1][1]['key'][1]: _thread.lock"),
        ((Slotted(Holder("x", LOCK)),), "args[0].inner.lock: _thread.lock"),
        ((Chosen([LOCK]),), "args[0].state[0]: _thread.lock"),
        ((Reduced(LOCK),), "args[0].__reduce__()[0]: _thread.lock"),
        (({LOCK: 1},), "args[0].key("),
        (({LOCK},), "args[0]{...}: _thread.lock"),
        ((functools.partial(print, LOCK),), "_thread.lock"),
        ((Raising(),), "args[0]: "),
        ((lambda: LOCK,), "args[0].<global LOCK>: _thread.lock"),
        ((Holder("x", LOCK).__eq__,), "args[0].__self__.lock: _thread.lock"),
        ((iter([]), (i for i in range(3))), "args[1]: generator"),
    ],
)
def test_the_path_to_the_culprit(args: tuple[object, ...], path: str) -> None:
    with pytest.raises(PicklingError) as caught:
        dump_arguments(args, {})
    assert path in str(caught.value)


def test_a_keyword_argument_is_named() -> None:
    with pytest.raises(PicklingError, match=r"kwargs\['where'\]\.lock: _thread\.lock"):
        dump_arguments((), {"where": Holder("x", LOCK)})


def test_the_error_is_of_all_types_that_a_caller_may_expect() -> None:
    assert issubclass(PicklingError, DispyError)
    assert issubclass(PicklingError, pickle.PicklingError)
    assert issubclass(PicklingError, TypeError)


def test_endless_depth_is_an_error_too() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(PicklingError, match=r"args\[0\]"):
        dump_arguments((nested,), {})
    while nested:  # else freeing it recurses as deeply
        nested = nested[0]  # type: ignore[assignment]


def test_a_closure_names_the_variable() -> None:
    lock = threading.Lock()

    def compute() -> object:
        return lock

    with pytest.raises(PicklingError, match=r"compute\.<closure lock>: _thread\.lock"):
        pack(compute)


def test_what_is_installed_is_not_the_users() -> None:
    for module in (textwrap, pytest, dispy.pickling, sys):
        assert not is_of_user(module)
    assert is_of_user(sys.modules[__name__])
    assert not is_of_user(sys.modules["__main__"]) and not is_of_user(None)


def test_without_definitions_of_its_own_a_job_is_like_any_other() -> None:
    vocabulary = Vocabulary(Known())
    assert vocabulary.dump_with((1,), {}, CodeDepends(), refuse) == vocabulary.dump(
        (1,), {}, refuse
    )
