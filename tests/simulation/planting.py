"""Bugs planted in the running program, and the seeds that catch them."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, NamedTuple

PART = int(os.environ.get("DISPY_BUGS", "14"))  # every so many bugs; 1: all of them


class Bug(NamedTuple):
    """What is changed, and where."""

    owner: Any  # a class or a module
    function: str
    line: str
    wrong: str


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Have the bug in the running program for a while."""
    function = inspect.unwrap(getattr(bug.owner, bug.function))
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(bug.line) == 1, f"{bug.function} has no line {bug.line!r} to spoil"
    right, function.__code__ = function.__code__, compiled(bug, source)
    try:
        yield
    finally:
        function.__code__ = right


def compiled(bug: Bug, source: str) -> CodeType:
    """Compile the function with the bug in it."""
    module = compile(source.replace(bug.line, bug.wrong), f"<planted in {bug.function}>", "exec")
    codes = [const for const in module.co_consts if isinstance(const, CodeType)]
    return next(code for code in codes if code.co_name == bug.function)


def catching_seed(
    play: Callable[[int], object],
    seeds: Sequence[int],
    directed: Mapping[int, Callable[[], object]],
) -> int | None:
    """Return the first seed whose run fails; below 0 for the ``directed`` runs, which need none."""
    for seed in (*directed, *seeds):
        try:
            if seed < 0:
                directed[seed]()
            else:
                play(seed)
        except Exception:
            return seed
    return None
