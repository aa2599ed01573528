"""What has to be defined at nodes before a job, and that it is so once, in every thread."""

from __future__ import annotations

import enum
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dispy.depends import CodeDepends
from dispy.layers import Known
from dispy.pickling import PicklingError, load
from dispy.protocol.messages import Code
from dispy.protocol.payload import INLINE_BYTES
from dispy.vocabulary import Vocabulary

LOCK = threading.Lock()


class Thing:
    pass


class Color(enum.Enum):
    RED = 1


class WithLock:
    lock = LOCK


class Around:
    lock = LOCK

    @staticmethod
    def work() -> int:
        return 1


def new_definitions(vocabulary: Vocabulary, *args: object) -> int:
    layers: list[Code] = []
    vocabulary.dump(args, {}, layers.extend)
    return len(layers)


@pytest.mark.parametrize("value", [1, "x", None, [1.5], b"\x93", "\u2013", {"__main__"}, __name__])
def test_plain_values_need_nothing(value: object) -> None:
    assert new_definitions(Vocabulary(Known()), value) == 0


def test_installed_code_needs_nothing() -> None:
    assert new_definitions(Vocabulary(Known()), threading.Thread, CodeDepends(), pytest.raises) == 0


def test_instances_classes_and_functions_are_defined_once() -> None:
    vocabulary = Vocabulary(Known())
    for value in (Thing(), Color.RED, new_definitions):
        assert new_definitions(vocabulary, value) == 1
        assert new_definitions(vocabulary, value, [value]) == 0
    assert new_definitions(vocabulary, Thing, Color, {"x": Thing()}) == 0


def test_by_reference_once_it_is_known() -> None:
    vocabulary = Vocabulary(Known())
    payload, _ = vocabulary.dump((Thing(),), {}, lambda layers: None)
    assert len(payload) < 100 and type(load(payload, [])[0][0]) is Thing


def test_large_arguments_beside_code() -> None:
    vocabulary = Vocabulary(Known())
    for _ in range(2):
        data = bytes(INLINE_BYTES)
        packed = vocabulary.dump((Thing(), data), {}, lambda layers: None)
        assert [part.chunks[0] for part in packed.parts] == [data]


def test_what_could_not_be_sent_is_tried_again() -> None:
    vocabulary = Vocabulary(Known())

    def fail(layers: list[Code]) -> None:
        raise RuntimeError("closed")

    with pytest.raises(RuntimeError, match="closed"):
        vocabulary.dump((Thing(),), {}, fail)
    assert new_definitions(vocabulary, Thing()) == 1


def test_threads_wait_for_the_definition() -> None:
    vocabulary = Vocabulary(Known())
    defined: list[Code] = []
    together = threading.Barrier(8)

    def submit(_: int) -> int:
        together.wait()
        vocabulary.dump((Thing(),), {}, defined.extend)
        return len(defined)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(submit, range(8))) == [1] * 8


def test_a_class_that_can_not_be_sent() -> None:
    with pytest.raises(PicklingError, match=r"WithLock\.lock: _thread\.lock"):
        new_definitions(Vocabulary(Known()), WithLock())


def test_a_lambda_brings_definitions_once() -> None:
    vocabulary = Vocabulary(Known())
    assert new_definitions(vocabulary, lambda: Thing()) == 1
    assert new_definitions(vocabulary, lambda: (Thing(), Color.RED)) == 1
    assert new_definitions(vocabulary, lambda: (Thing(), Color.RED)) == 0


def test_a_function_whose_class_can_not_be_sent_goes_by_value() -> None:
    vocabulary = Vocabulary(Known())
    work = Around.work
    assert new_definitions(vocabulary, lambda: work()) == 0


def test_local_classes_go_by_value() -> None:
    class Local:
        value = 3

    vocabulary = Vocabulary(Known())
    payload, _ = vocabulary.dump((Local(),), {}, lambda layers: None)
    assert load(payload, [])[0][0].value == 3


def test_definitions_of_one_job() -> None:
    vocabulary = Vocabulary(Known(), namespace="somewhere")
    code = CodeDepends((("Thing", Thing),))
    packed = vocabulary.dump_with((Thing(),), {}, code, lambda layers: None)
    (thing,), kwargs, names = load(*packed)
    assert kwargs == {}
    assert names[__name__] == names["somewhere"] == {"Thing": Thing}
    assert isinstance(thing, Thing)  # cloudpickle knows its classes again
    with pytest.raises(PicklingError, match=r"args\[0\]: _thread\.lock"):
        vocabulary.dump_with((LOCK,), {}, code, lambda layers: None)


def test_programs_have_no_definitions() -> None:
    with pytest.raises(TypeError, match="files only"):
        Vocabulary(Known(), is_program=True).dump_with(
            (), {}, CodeDepends((("Thing", Thing),)), lambda layers: None
        )
