"""Pickles code by value, so that nodes need not have it: what functions and classes are made of.

All functions of a module of the program share that module's dictionary at the node, also with
functions that arrive later. What nodes have already goes by reference. Everything else that is
special about pickling code is left to cloudpickle.
"""

from __future__ import annotations

import importlib
import operator
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from types import CellType, FunctionType, ModuleType
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as from_cloudpickle

from dispy.protocol import functions

from .definitions import MAIN, Definition, Sent, definition_of
from .modules import is_of_user, top_of
from .pickling import LRU_CACHE


class CodePickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Pickles by value what comes from these modules, or from others in their packages.

    ``known`` are definitions that nodes have, ``sent`` also the variables of modules. After
    `dump`, ``found`` has the definitions that were met, and ``used`` the modules of the
    user that went by reference.
    """

    def __init__(
        self,
        file: Any,
        protocol: int,
        buffer_callback: Callable[[pickle.PickleBuffer], bool],
        by_value: Iterable[str],
        known: Mapping[int, object],
        sent: Sent,
        job_only: Iterable[object] = (),
    ) -> None:
        super().__init__(file, protocol, buffer_callback)
        self.by_value = tuple(by_value)
        self._tops = {MAIN, *map(top_of, self.by_value)}
        self._known = known
        self._sent = sent
        self._job_only = {id(thing) for thing in job_only}
        self.found: dict[int, Definition] = {}
        self.used: set[str] = set()
        self.globals: Sent = {}
        for name in (MAIN, *self.by_value):
            module = sys.modules.get(name)
            if module is not None:
                self.globals_ref[id(vars(module))] = Namespace(name)

    def reducer_override(self, thing: Any) -> Any:
        """Reduce functions and classes, and note which ones."""
        if id(thing) in self._known and definition_of(thing) is not None:
            return NotImplemented  # by reference
        if isinstance(thing, ModuleType):
            self._note_module(thing.__name__)
            return _import(thing)
        if isinstance(thing, CellType):
            return functions.make_cell, _contents(thing)
        if type(thing) is LRU_CACHE and self._is_ours(thing):
            self._note(thing)
            return _rebuild_cache(thing)
        reduced = super().reducer_override(thing)
        if isinstance(thing, type | FunctionType):
            return self._reduce_code(thing, reduced)
        return reduced

    def _reduce_code(self, thing: Any, reduced: Any) -> Any:
        """Note a function or a class; improve on how it goes by value."""
        if reduced is NotImplemented:
            self._note_module(str(thing.__module__))
            return reduced
        self._note(thing)
        if isinstance(thing, FunctionType):
            self._drop_known_globals(thing, reduced)
            return _without_cloudpickle(reduced)
        if reduced[0] is from_cloudpickle._builtin_type:
            return functions.builtin_type, reduced[1]
        _keep_slots(thing, reduced)
        return reduced

    def _is_ours(self, thing: Any) -> bool:
        return top_of(str(thing.__module__)) in self._tops

    def _note(self, thing: Any) -> None:
        if self._is_ours(thing) and id(thing) not in self.found:
            definition = definition_of(thing)
            if definition is not None:
                self.found[id(thing)] = definition

    def _note_module(self, name: str) -> None:
        if name in sys.modules and is_of_user(sys.modules[name]):
            self.used.add(name)

    def _drop_known_globals(self, function: FunctionType, reduced: tuple[Any, ...]) -> None:
        """Leave alone the variables that nodes have: setup may have changed them there."""
        space = self.globals_ref.get(id(function.__globals__))
        if not isinstance(space, Namespace):
            return
        variables: dict[str, object] = reduced[2][1]["__globals__"]
        for name, value in list(variables.items()):
            if self._sent.get((space.module, name), self) is value or id(value) in self._job_only:
                del variables[name]
            else:
                self.globals[space.module, name] = value


def _import(module: ModuleType) -> Any:
    """Reduce a module to its name; one that was made up goes by value."""
    if from_cloudpickle._should_pickle_by_reference(module):
        return importlib.import_module, (module.__name__,)
    return NotImplemented


def _contents(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _without_cloudpickle(reduced: tuple[Any, ...]) -> Any:
    """Have a function made by what every node has loaded."""
    make, arguments, state, _, _, set_state = reduced
    assert make is from_cloudpickle._make_function
    assert set_state is from_cloudpickle._function_setstate
    code, space, name, defaults, closure = arguments
    assert name is None and defaults is None, "these come with the state"
    # What `_cloudpickle_submodules` refers to is imported when it is unpickled.
    attributes, special = state
    submodules = special.pop("_cloudpickle_submodules")
    special["__dispy_submodules__"] = submodules
    special["__globals__"].pop("__builtins__", None)  # nodes have their own, with more in them
    return (
        functions.make_function,
        (code, space, closure),
        (attributes, special),
        None,
        None,
        functions.set_state,
    )


def _keep_slots(thing: type, reduced: tuple[Any, ...]) -> None:
    """Have a class made with its slots: cloudpickle gives it a dictionary in their place.

    What instances would say of their state could not be set again where they have none.
    """
    if "__slots__" in vars(thing) and reduced[0] is from_cloudpickle._make_skeleton_class:
        reduced[1][3]["__slots__"] = vars(thing)["__slots__"]


class Namespace(dict[str, object]):
    """Stands for the dictionary of a module, as the node has it."""

    def __init__(self, module: str) -> None:
        super().__init__(__name__=module)  # cloudpickle fills in what is empty
        self.module = module

    def __reduce__(self) -> Any:
        return vars, (_AtNode(self.module),)


class _AtNode:
    """Stands for a module of the program at the node: ``__main__``, or an empty one at first."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> Any:
        if self._name == MAIN:
            return importlib.import_module, (MAIN,)
        known_or_new = operator.methodcaller("setdefault", self._name, _New(self._name))
        return known_or_new, (_Modules(),)


class _New:
    """Stands for a new module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> Any:
        package = getattr(sys.modules.get(self._name), "__package__", None)
        return ModuleType, (self._name,), {"__package__": package}


class _Modules:
    """Stands for the dictionary of all modules."""

    def __reduce__(self) -> Any:
        return operator.attrgetter("modules"), (sys,)


def _rebuild_cache(thing: Any) -> Any:
    """Reduce what `functools.lru_cache` made of a function; its cache is empty at the node."""
    chosen = thing.cache_parameters()
    info = type(thing.cache_info())
    args = (thing.__wrapped__, chosen["maxsize"], chosen["typed"], info)
    return LRU_CACHE, args, dict(vars(thing))
