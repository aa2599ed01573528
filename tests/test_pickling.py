"""Functions and arguments on their way to a job process, and what can't go."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dispy.computation import check, pack
from dispy.errors import NotSupportedError
from dispy.pickling import PicklingError, Program, dump_arguments, find_program, load
from dispy.protocol.errors import DispyError
from dispy.protocol.payload import INLINE_BYTES
from dispy.protocol.wire import CHUNK_BYTES

NOBODY = Program((), (b"__main__",))
MEMORY = 1 << 20


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
    packed = dump_arguments(args, kwargs, NOBODY)
    if packed.payload:
        return load(packed.payload, packed.parts)  # type: ignore[no-any-return]
    return load(packed.parts[0].tobytes(), packed.parts[1:])  # type: ignore[no-any-return]


# -- arguments ---------------------------------------------------------------------------------


def test_small_arguments_travel_inline() -> None:
    packed = dump_arguments((1, "two", [3.0]), {"x": None}, NOBODY)
    assert packed.payload and packed.parts == []
    assert round_trip(1, "two", [3.0], x=None) == ((1, "two", [3.0]), {"x": None})


def test_many_small_objects_make_a_payload_that_travels_alone() -> None:
    numbers = list(range(MEMORY))
    packed = dump_arguments((numbers,), {}, NOBODY)
    assert packed.payload == b"" and len(packed.parts) == 1
    assert all(len(chunk) <= CHUNK_BYTES for chunk in packed.parts[0].chunks)
    assert round_trip(numbers) == ((numbers,), {})


def test_large_bytes_are_not_copied() -> None:
    data = bytes(3 * MEMORY + 1)
    packed = dump_arguments((data,), {}, NOBODY)
    (part,) = packed.parts
    assert part.size == len(data) and len(part.chunks) == 4
    assert all(isinstance(chunk, memoryview) and chunk.obj is data for chunk in part.chunks)
    (back,), _ = round_trip(data)
    assert type(back) is bytes and back == data


def test_bytes_of_one_chunk_are_the_same_object() -> None:
    data = bytes(INLINE_BYTES)
    assert dump_arguments((data,), {}, NOBODY).parts[0].chunks[0] is data


def test_a_bytearray_is_copied_when_submitted_and_arrives_writable() -> None:
    data = bytearray(b"a" * INLINE_BYTES)
    packed = dump_arguments((data,), {}, NOBODY)
    data[0] = 0
    (back,), _ = load(packed.payload, packed.parts)
    assert type(back) is bytearray and back[0] == ord("a")
    back[0] = 1


def test_buffers_inside_objects_go_out_of_band_if_they_are_large() -> None:
    large, small = pickle.PickleBuffer(bytearray(INLINE_BYTES)), pickle.PickleBuffer(b"small")
    packed = dump_arguments(([large, small],), {}, NOBODY)
    assert [part.size for part in packed.parts] == [INLINE_BYTES]
    (back,), _ = load(packed.payload, packed.parts)
    assert [bytes(item) for item in back] == [bytes(INLINE_BYTES), b"small"]


def test_more_buffers_than_can_be_counted() -> None:
    args = tuple(bytes([i % 256]) * INLINE_BYTES for i in range(300))
    packed = dump_arguments(args, {}, NOBODY)
    assert packed.payload == b"" and len(packed.parts) == 256
    assert round_trip(*args) == (args, {})


def test_the_wrong_number_of_buffers_is_noticed() -> None:
    packed = dump_arguments((bytes(INLINE_BYTES),), {}, NOBODY)
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
        dump_arguments(args, {}, NOBODY)
    assert path in str(caught.value)


def test_a_keyword_argument_is_named() -> None:
    with pytest.raises(PicklingError, match=r"kwargs\['where'\]\.lock: _thread\.lock"):
        dump_arguments((), {"where": Holder("x", LOCK)}, NOBODY)


def test_the_error_is_of_all_types_that_a_caller_may_expect() -> None:
    assert issubclass(PicklingError, DispyError)
    assert issubclass(PicklingError, pickle.PicklingError)
    assert issubclass(PicklingError, TypeError)


def test_endless_depth_is_an_error_too() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(PicklingError, match=r"args\[0\]"):
        dump_arguments((nested,), {}, NOBODY)
    while nested:  # else freeing it recurses as deeply
        nested = nested[0]  # type: ignore[assignment]


def test_a_closure_names_the_variable() -> None:
    lock = threading.Lock()

    def compute() -> object:
        return lock

    with pytest.raises(PicklingError, match=r"compute\.<closure lock>: _thread\.lock"):
        pack(compute)


# -- functions ---------------------------------------------------------------------------------


def double(x: int) -> int:
    return x * FACTOR


FACTOR = 2


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def apply(self, x: int) -> int:
        return x * self.factor

    def __call__(self, x: int) -> int:
        return self.apply(x)

    @classmethod
    def made(cls, x: int) -> int:
        return cls(3).apply(x)


def closure() -> Any:
    factor = 5
    return lambda x: x * factor


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (double, "double", 20),
        (closure(), "<lambda>", 50),
        (Scale(4).apply, "apply", 40),
        (Scale(4), "Scale", 40),
        (Scale.made, "made", 30),
        (functools.partial(pow, 2), "pow", 1024),
    ],
)
def test_every_kind_of_function_travels_by_value(
    function: Any, name: str, expected: int, tmp_path: Path
) -> None:
    packed = pack(function)
    assert packed.name == name
    (tmp_path / "code").write_bytes(packed.code.payload)
    # In a process that doesn't have this module, as on a node.
    script = """
        import pickle, sys
        data = open(sys.argv[1], "rb").read()
        print(pickle.loads(data[1:])(10))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "code"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout == f"{expected}\n", done.stderr


def test_what_is_installed_goes_by_reference() -> None:
    assert find_program([textwrap.dedent, pytest.fixture, DispyError]).modules == ()
    assert __name__ in find_program([double]).modules


def test_the_registry_is_left_as_it_was() -> None:
    import cloudpickle

    before = cloudpickle.list_registry_pickle_by_value()
    pack(double)
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_arguments_of_the_programs_own_classes_go_by_value() -> None:
    program = find_program([double])
    packed = dump_arguments((Scale(3),), {}, program)
    code = "import sys, pickle; print(pickle.loads(sys.stdin.buffer.read()[1:])[0][0].apply(5))"
    done = subprocess.run([sys.executable, "-c", code], input=packed.payload, capture_output=True)
    assert done.stdout == b"15\n", done.stderr


def test_a_program_is_refused_with_a_way_out() -> None:
    with pytest.raises(NotSupportedError, match=r"subprocess\.run"):
        check("/bin/true")
    with pytest.raises(TypeError, match="computation must be"):
        check(3)
