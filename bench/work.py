"""The jobs that are measured, and the one shape in which every system under test is driven.

A `Runner` hides whose pool it is, so that all of them do the same work in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

WORKERS = 2

Function: TypeAlias = Callable[[Any], Any]
Wait: TypeAlias = Callable[[], Any]


class Runner(NamedTuple):
    """Something that runs one function with many arguments in ``WORKERS`` processes."""

    submit: Callable[[Any], Wait]  # hands an argument over; what it returns waits for the result


Start: TypeAlias = Callable[[Function], AbstractContextManager[Runner]]


class Scale(NamedTuple):
    """How much of everything is done."""

    quick: bool

    def count(self, full: int) -> int:
        """Return a tenth of the number in a quick run."""
        return max(1, full // 10) if self.quick else full


def no_op(value: Any) -> Any:
    """The smallest job; it gives large arguments back as well."""
    return value


def pause(seconds: float) -> float:
    """A job that takes time but no CPU: it sleeps."""
    time.sleep(seconds)
    return seconds


def warm_up(runner: Runner, argument: Any) -> None:
    """Have all processes started and a first result returned before anything is timed."""
    for wait in [runner.submit(argument) for _ in range(10 * WORKERS)]:
        wait()


def run_all(runner: Runner, arguments: Iterator[Any]) -> list[Any]:
    """Submit everything, then wait for everything."""
    return [wait() for wait in [runner.submit(argument) for argument in arguments]]


def check(right: bool, what: str) -> None:
    """A figure is only worth printing when the work was done."""
    if not right:
        raise RuntimeError(f"wrong results: {what}")
