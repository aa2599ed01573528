"""What a cluster computes: checked, named and pickled, once for all of its jobs.

Nothing here is sent; it ends in the `JobSpec` that `OpenCluster` carries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from dispy.protocol.messages import JobSpec

from .errors import NotSupportedError
from .pickling import Program, dump_function, find_program


class Computation(NamedTuple):
    """A function as it travels, and what its arguments have to be pickled with."""

    name: str
    code: JobSpec
    program: Program


def check(function: object) -> Callable[..., Any]:
    """Return what the user wants computed; raise `TypeError` for what can't be called."""
    if isinstance(function, str):
        raise NotSupportedError(
            "computation: programs aren't supported yet; pass a function that runs it with "
            "subprocess.run"
        )
    if not callable(function):
        kind = type(function).__name__
        raise TypeError(f"computation must be a function or another callable, not {kind}")
    return function


def pack(function: Callable[..., Any]) -> Computation:
    """Pickle a computation; raise `PicklingError` for what can't be sent."""
    name = _name(function)
    program = find_program(_origins(function))
    pickled = dump_function(function, name, program)
    return Computation(name, JobSpec(0, 0, pickled.payload, pickled.parts), program)


def _name(function: Callable[..., Any]) -> str:
    """Name a callable for people: function, method, partial or object."""
    if isinstance(function, functools.partial):
        return _name(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def _origins(function: Callable[..., Any]) -> list[object]:
    """What has to be looked at to learn whose code this is."""
    if isinstance(function, functools.partial):
        return [*_origins(function.func)]
    owner = getattr(function, "__self__", None)
    return [function, type(function), owner if isinstance(owner, type) else type(owner)]
