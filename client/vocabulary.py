"""The arguments of jobs, pickled by reference to definitions that nodes have.

Code doesn't travel with every job: what nodes don't know yet is sent once, ahead of the first
job that needs it. `Vocabulary` may be used by any thread.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from dispy.protocol.messages import Code

from .definitions import MAIN, Definition, Names, definition_of, names_for
from .depends import CodeDepends
from .layers import Functions, Known, make_layer, own_modules, pickler_for
from .modules import top_of, user_modules
from .pickling import (
    DEFINED,
    PROTOCOL,
    Dumped,
    MakePickler,
    OutOfBand,
    Pickled,
    PicklingError,
    Roots,
    dump,
    dump_by_value,
    leave_out,
    pack,
)

BY_NAME = b"\x93"  # of pickle: something that a module has (or a byte of data)

Define: TypeAlias = Callable[[list[Code]], None]
Arguments: TypeAlias = "tuple[object, ...]"


class Vocabulary:
    """What the nodes of a cluster know. ``namespace``: the module of the computation."""

    def __init__(self, known: Known, namespace: str = MAIN, is_program: bool = False) -> None:
        self._known = known
        self._namespace = namespace
        self._is_program = is_program
        self._lock = threading.Lock()
        self._expects_code = False  # the last arguments had some
        self._modules = -1  # how many were loaded when the next two were found out
        self._ours: frozenset[str] = frozenset()
        self._marks = re.compile(b"")

    def dump(self, args: Arguments, kwargs: dict[str, object], define: Define) -> Pickled:
        """Pickle the arguments of one job.

        ``define`` is called with layers of code that nodes must have before the job. Raises
        `PicklingError` naming the path to the culprit, such as ``args[1].lock``; for programs,
        `TypeError` for keyword arguments.
        """
        if self._is_program:
            args = as_texts(args, kwargs)
        return self.dump_values(args, kwargs, define)

    def dump_values(self, args: Arguments, kwargs: dict[str, object], define: Define) -> Pickled:
        """Do what `dump` does, for the arguments of a function also where jobs are programs."""
        value = (leave_out(args), kwargs)
        buffers = OutOfBand()
        met: list[object] | None = None
        try:
            if self._expects_code:
                stream, met = _dump_and_meet(value, buffers, self._known.definitions)
            else:
                stream = dump(value, buffers)
        except Exception:  # perhaps by value; if not, that raises in its turn
            return self._dump_by_value(args, kwargs, value, define)
        if BY_NAME in stream:
            self._define_unknown(value, stream, met, define)
        else:
            self._expects_code = False
        return pack(stream, buffers)

    def dump_with(
        self, args: Arguments, kwargs: dict[str, object], code: CodeDepends, define: Define
    ) -> Pickled:
        """Pickle the arguments of a job that has definitions of its own; else like `dump`."""
        if not code:
            return self.dump(args, kwargs, define)
        if self._is_program:
            raise TypeError("a program can have files only in dispy_job_depends")
        things = [thing for _, thing in code.named]
        value = (leave_out(args), kwargs, self.names(code))
        roots = [*_roots(args, kwargs), *code.named]
        return dump_by_value(value, roots, self._pickler(things)).packed()

    def names(self, code: CodeDepends) -> Names:
        """Say where definitions go: beside the computation, and into their own modules."""
        self._look_at_modules()
        found = (definition_of(thing) for _, thing in code.named)
        names = names_for(one for one in found if one is not None and one.module in self._ours)
        beside = names.setdefault(self._namespace, {})
        for name, thing in code.named:
            beside.setdefault(name, thing)
        return names

    def _dump_by_value(
        self, args: Arguments, kwargs: dict[str, object], value: object, define: Define
    ) -> Pickled:
        roots = _roots(args, kwargs)
        dumped = dump_by_value(value, roots, self._pickler())
        if not self._define_met(dumped, define):
            return dumped.packed()
        return dump_by_value(value, roots, self._pickler()).packed()

    def _define_met(self, dumped: Dumped, define: Define) -> bool:
        """Define what was met by value; return whether there was anything new."""
        unknown = self._known.unknown(dumped.pickler.found.values())
        if not unknown:
            return False
        try:
            self._define(unknown, define)
        except PicklingError:  # something else in a class around it: let it go by value, then
            return False
        return True

    def _define(self, definitions: list[Definition], define: Define) -> None:
        """Send what is not known yet, ahead of the job."""
        with self._lock:
            unknown = self._known.unknown(definitions)
            if not unknown:
                return
            names = names_for(unknown)
            roots = [(one.top, one.owner) for one in unknown]
            by_value = own_modules(map(top_of, self._ours))
            layer = make_layer(names, Functions(), roots, by_value, self._known)
            define([layer.code])
            self._known.learn(layer)

    def _pickler(self, job_only: Iterable[object] = ()) -> MakePickler:
        self._look_at_modules()
        return pickler_for(own_modules(map(top_of, self._ours)), self._known, job_only)

    def _define_unknown(
        self, value: object, stream: bytes, met: list[object] | None, define: Define
    ) -> None:
        """Define what a stream refers to; ``met`` is None if that is still to be found out."""
        self._look_at_modules()
        self._expects_code = self._marks.search(stream) is not None
        if not self._expects_code:
            return
        if met is None:
            _, met = _dump_and_meet(value, OutOfBand(), self._known.definitions)
        unknown = self._unknown(met) if met else []
        if unknown:
            self._define(unknown, define)

    def _look_at_modules(self) -> None:
        count = len(sys.modules)
        if count == self._modules:
            return
        files = self._known.files
        ours = frozenset(name for name in user_modules() if top_of(name) not in files)
        self._ours = ours | {MAIN}
        self._marks = _marks(self._ours)
        self._modules = count

    def _unknown(self, things: list[object]) -> list[Definition]:
        """Return the definitions among what was met that nodes don't have."""
        unknown = []
        for thing in things:
            definition = definition_of(thing)
            if definition is not None and definition.module in self._ours:
                unknown.append(definition)
            else:  # installed at nodes, or in their files
                self._known.definitions[id(thing)] = thing
        return unknown


class _Meeting(pickle.Pickler):
    """Notes the classes and functions that go by name, except for known ones."""

    known: dict[int, object]
    met: list[object]

    def reducer_override(self, thing: object) -> Any:
        """Look, and leave everything as it is."""
        if isinstance(thing, DEFINED) and id(thing) not in self.known:
            self.met.append(thing)
        return NotImplemented


def _dump_and_meet(
    value: object, buffers: OutOfBand, known: dict[int, object]
) -> tuple[bytes, list[object]]:
    """Pickle by reference; return also the classes and functions that were met."""
    file = io.BytesIO()
    pickler = _Meeting(file, PROTOCOL, buffer_callback=buffers)
    pickler.known = known
    pickler.met = []
    pickler.dump(value)
    return file.getvalue(), pickler.met


def as_texts(args: Arguments, kwargs: dict[str, object]) -> tuple[str, ...]:
    """Return the arguments of a program."""
    if kwargs:
        raise TypeError(f"a program takes no keyword arguments, but {next(iter(kwargs))!r} is one")
    texts = tuple(os.fsdecode(arg) if isinstance(arg, bytes) else str(arg) for arg in args)
    for i, text in enumerate(texts):
        if "\0" in text:
            raise ValueError(f"args[{i}] of a program can't have a NUL in it")
    return texts


def _marks(modules: Iterable[str]) -> re.Pattern[bytes]:
    """Return what finds the names of modules in a pickle stream: short strings."""
    names = [name.encode("utf-8", "surrogatepass") for name in sorted(modules)]
    marks = [re.escape(bytes((len(name),)) + name) for name in names if len(name) < 256]
    return re.compile(b"\x8c(?:" + b"|".join(marks) + b")", re.DOTALL)


def _roots(args: Arguments, kwargs: dict[str, object]) -> Roots:
    roots = [(f"args[{i}]", argument) for i, argument in enumerate(args)]
    return roots + [(f"kwargs[{name!r}]", argument) for name, argument in kwargs.items()]
