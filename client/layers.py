"""Layers of a computation's code: what functions and definitions are made of, pickled once.

A layer carries bytecode for the client's version of Python and, where that works, source text
for the others. `Known` is what nodes have after the layers so far.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from dispy.protocol.messages import Code, JobSpec

from .definitions import Definition, Names, Sent, complete
from .modules import top_of, user_modules
from .pickling import MakePickler, Roots, dump_by_value
from .sources import write_source

Function: TypeAlias = Callable[..., Any]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class Functions(NamedTuple):
    """What the first layer has beside definitions."""

    compute: Function | None = None
    setup: Function | None = None
    cleanup: Function | None = None


class Known:
    """What nodes have: definitions, variables of modules, and packages as files."""

    def __init__(self, files: frozenset[str] = frozenset()) -> None:
        self.files = files  # top names
        self.definitions: dict[int, object] = {}  # by id; kept, so that ids stay theirs
        self.sent: Sent = {}

    def unknown(self, definitions: Iterable[Definition]) -> list[Definition]:
        """Return those that nodes don't have."""
        return [one for one in definitions if id(one.thing) not in self.definitions]

    def learn(self, layer: Layer) -> None:
        """Nodes will have this layer."""
        self.definitions.update((id(one.thing), one.thing) for one in layer.found)
        self.definitions.update((id(one.owner), one.owner) for one in layer.found)
        self.sent.update(layer.sent)


class Layer(NamedTuple):
    """A layer as it travels, and what nodes know by it."""

    code: Code
    found: list[Definition]
    sent: Sent
    used: set[str]  # modules of the user that it refers to


def own_modules(tops: Iterable[str]) -> list[str]:
    """Return the loaded modules of these packages that are the user's."""
    wanted = frozenset(tops)
    return sorted(name for name in user_modules() if top_of(name) in wanted)


def pickler_for(by_value: Iterable[str], known: Known, job_only: Iterable[object]) -> MakePickler:
    """Return what makes a pickler of code that leaves out what is known."""
    from .codepickler import CodePickler  # it needs cloudpickle: 50 ms that not all programs need

    return partial(
        CodePickler,
        by_value=by_value,
        known=known.definitions,
        sent=known.sent,
        job_only=job_only,
    )


def make_layer(
    names: Names, functions: Functions, roots: Roots, by_value: list[str], known: Known
) -> Layer:
    """Pickle functions, these definitions, and all that they refer to in the program.

    Raises `PicklingError`.
    """
    names = {module: dict(things) for module, things in names.items()}
    make_pickler = pickler_for(by_value, known, ())
    while True:
        dumped = dump_by_value((names, *functions), roots, make_pickler)
        found = list(dumped.pickler.found.values())
        if not complete(names, found):
            break
    packed = dumped.packed()
    source, by_name = write_source(names, functions, found, by_value)
    code = Code(PYTHON, JobSpec(0, 0, packed.payload, packed.parts), source, by_name)
    return Layer(code, found, dumped.pickler.globals, dumped.pickler.used)
