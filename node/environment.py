"""What code from a client finds at the node: modules of its program, and names without import.

A template loads one computation, so what it defines, it defines for the whole process. Here is
also known what of it the client has itself: results refer to that by name.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any, TypeAlias

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

Names: TypeAlias = "dict[str, dict[str, Any]]"  # module to what is to be defined there
Loader: TypeAlias = Callable[[bytes], Any]

main = ModuleType("__main__")
_of_client: set[str] = set()  # names in `main` that the client has, too
_hints: list[str] = []  # what may be the cause when something can't be unpickled


class LoadError(Exception):
    """A computation can't be loaded; the text is for the user and says all."""


def open_main() -> None:
    """Give this process a main module in the place of its own, which is not the user's business."""
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main


def offer(names: dict[str, Any]) -> None:
    """Let all code find these, and a few modules, without an import."""
    for name, value in {"os": os, "sys": sys, "time": time, **names}.items():
        setattr(builtins, name, value)


def define(names: Names) -> None:
    """Define things where the client has them."""
    for name, things in names.items():
        module = _module(name)
        for key, value in things.items():
            setattr(module, key, value)
    _of_client.update(names.get("__main__", ()))


def _module(name: str) -> ModuleType:
    """Return a module; an empty one where this node has none of that name."""
    found = sys.modules.get(name)
    if found is None:
        with suppress(ImportError):
            return importlib.import_module(name)
        found = sys.modules[name] = ModuleType(name)
        parent, _, child = name.rpartition(".")
        if parent:
            above = _module(parent)
            above.__dict__.setdefault("__path__", [])
            setattr(above, child, found)
    return found


def execute(source: str) -> None:
    """Define what a source text defines, for a client with another version of Python."""
    before = set(vars(main))
    exec(compile(source, "<the client's program>", "exec"), main.__dict__)
    _of_client.update(set(vars(main)) - before)


def note_version(python: str) -> None:
    """Note that the client has another Python than this process."""
    _hints[:] = [f"the client runs Python {python}, this node {PYTHON}"]


def hint() -> str:
    """Return what may be the cause of what can't be unpickled; often empty."""
    return f" ({_hints[0]})" if _hints else ""


def is_of_client(pickled: bytes) -> bool:
    """Whether all that a pickle refers to by name can be found by the client.

    Pickle refers to nothing in a main module but what is there under its name.
    """
    if b"__main__" not in pickled:
        return True
    present = sys.modules.get("__main__")
    new = vars(present).keys() - _of_client
    return not any(_is_code_of_main(vars(present)[name]) for name in new)


def _is_code_of_main(value: object) -> bool:
    return isinstance(value, (type, FunctionType)) and value.__module__ == "__main__"


class JobNames:
    """Names that only one job needs; they are taken away after it."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._before: list[tuple[ModuleType, str, bool, Any]] = []
        self._modules: set[str] = set()
        self._known = set(_of_client)

    def define(self) -> None:
        """Define them, in the place of what has these names so far."""
        self._modules = set(sys.modules)
        for name, things in self._names.items():
            module = _module(name)
            for key in things:
                there = key in vars(module)
                self._before.append((module, key, there, vars(module).get(key)))
        define(self._names)

    def take_away(self) -> None:
        """Put things back as they were."""
        for module, key, there, value in self._before:
            if there:
                setattr(module, key, value)
            else:
                vars(module).pop(key, None)
        for name in self._names.keys() - self._modules:
            sys.modules.pop(name, None)
        _of_client.intersection_update(self._known)
