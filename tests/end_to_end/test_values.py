"""Whatever Python can call travels to the node; whatever it takes and returns, too."""

from __future__ import annotations

import functools
import os
import platform
import random
import resource
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dispy import PicklingError

from .conftest import NewCluster, RunProgram
from .processes import NodeProcess
from .waiting import all_ended, finished

MEBIBYTE = 1 << 20
FACTOR = 3


def by_factor(number: int) -> int:
    return number * FACTOR


class Scale:
    """Something with methods."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def apply(self, number: int) -> int:
        return number * self.factor

    @classmethod
    def twice(cls, number: int) -> int:
        return cls(2).apply(number)

    @staticmethod
    def thrice(number: int) -> int:
        return number * 3

    def __call__(self, number: int) -> int:
        return self.apply(number)


def closure(factor: int) -> Callable[[int], int]:
    return lambda number: number * factor


def notebook() -> Callable[[int], int]:
    """Define functions as a notebook does: in a namespace that is no module."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("import math\nfactor = 3\ndef scaled(n):\n    return grow(n)\n", namespace)
    exec("def grow(n):\n    return math.floor(n * factor)\n", namespace)
    found: Callable[[int], int] = namespace["scaled"]
    return found


CALLABLES: dict[str, Callable[..., Any]] = {
    "function with a global": by_factor,
    "lambda": lambda number: number * 3,
    "closure": closure(3),
    "bound method": Scale(3).apply,
    "class method": Scale.twice,
    "static method": Scale.thrice,
    "object": Scale(3),
    "partial": functools.partial(Scale.apply, Scale(3)),
    "notebook": notebook(),
    "builtin": abs,
}


@pytest.mark.parametrize("name", CALLABLES)
def test_anything_that_can_be_called_can_be_a_computation(
    node: NodeProcess, new_cluster: NewCluster, name: str
) -> None:
    function = CALLABLES[name]
    job = finished(new_cluster(function, node).submit(14))
    assert job.result == function(14)


def same(value: Any) -> Any:
    return value


@dataclass
class Order:
    """A value of the user's own."""

    number: int
    parts: list[str]


def test_values_of_the_users_own_classes_come_back_equal(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(same, node)
    value = {"order": Order(3, ["a"]), "nested": [(1, None, {2.5}), b"\0"], "type": Order}
    assert finished(cluster.submit(value)).result == value


def add_byte(data: bytearray) -> bytearray:
    data[0] = 255
    data.append(1)
    return data


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do as they like")
def test_large_results_come_into_memory_that_is_there(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    """Were it given back to the system each time, each page of the next one would be a fault."""
    cluster = new_cluster(bytes, node, max_tasks_per_child=None)
    for _ in range(20):
        finished(cluster.submit(MEBIBYTE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        all_ended([cluster.submit(MEBIBYTE) for _ in range(4)])
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 200 * MEBIBYTE / resource.getpagesize() / 8


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_large_values_travel_both_ways_and_stay_what_they_are(
    node: NodeProcess, new_cluster: NewCluster, max_tasks: int | None
) -> None:
    cluster = new_cluster(same, node, max_tasks_per_child=max_tasks)
    data = random.Random(1).randbytes(32 * MEBIBYTE)
    jobs = [cluster.submit(data), cluster.submit([{"inside": bytearray(data)}])]
    assert finished(jobs[0]).result == data
    assert finished(jobs[1]).result == [{"inside": data}]
    assert type(jobs[0].result) is bytes and type(jobs[1].result[0]["inside"]) is bytearray


def test_a_bytearray_stays_writable_and_the_callers_is_untouched(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(add_byte, node)
    for size in (10, 100_000, 3 * MEBIBYTE):
        ours = bytearray(size)
        job = finished(cluster.submit(ours))
        job.result.append(2)
        assert (len(job.result), job.result[0], ours) == (size + 2, 255, bytearray(size))


def test_an_argument_changed_after_submit_makes_no_difference(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(same, node)
    large, small = bytearray(3 * MEBIBYTE), [1]
    job = cluster.submit((large, small))
    large[0] = 1
    small[0] = 2
    assert finished(job).result == (bytearray(3 * MEBIBYTE), [1])


class Connection:
    """Holds what can't be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_an_argument_that_cannot_be_pickled_is_named_at_submit(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(same, node)
    with pytest.raises(PicklingError, match=r"args\[1\]\.lock"):
        cluster.submit(1, Connection())
    with pytest.raises(PicklingError, match=r"kwargs\['value'\]\[2\]\.lock"):
        cluster.submit(value=[0, 1, Connection()])
    assert finished(cluster.submit(5)).result == 5


PROGRAM = """
import sys
import dispy
import orders


class Invoice:
    def __init__(self, order):
        self.order = order

    def __eq__(self, other):
        return vars(self) == vars(other)


def bill(invoice):
    print("billing")
    return Invoice(invoice.order + 1)


if __name__ == "__main__":
    with dispy.JobCluster(orders.price, nodes=[sys.argv[1]]) as cluster:
        print(cluster.submit(orders.Order(3))())
    with dispy.JobCluster(bill, nodes=[sys.argv[1]]) as cluster:
        job = cluster.submit(Invoice(1))
        assert job() == Invoice(2), job.exception
        print(job.stdout, end="")
"""
MODULE = """
class Order:
    def __init__(self, number):
        self.number = number


def _each(order):
    return 10 * order.number


def price(order):
    return _each(order)
"""


def test_a_programs_own_classes_and_modules_travel_with_it(
    node: NodeProcess, start_program: RunProgram, tmp_path: Path
) -> None:
    (tmp_path / "orders.py").write_text(MODULE)
    program = start_program(PROGRAM, node.address)
    assert program.wait(30) == 0, program.log()
    assert program.output() == "30\nbilling\n"


def names() -> tuple[object, ...]:
    # What the documentation promises to be there without an import.
    return (
        os.getcwd() == dispy_job_path,  # type: ignore[name-defined]  # noqa: F821
        dispy_node_name,  # type: ignore[name-defined]  # noqa: F821
        dispy_node_ip_addr,  # type: ignore[name-defined]  # noqa: F821
    )


def test_a_job_finds_the_names_of_its_surroundings(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    right_folder, name, address = finished(new_cluster(names, node).submit()).result
    assert right_folder and name and address == node.host
