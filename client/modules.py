"""Modules of the user's program: which they are, and which files they consist of.

Nodes have the standard library, dispy, and what is installed like it; what else a program has
imported is the user's own, and has to be sent.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

File = tuple[str, str]  # where it is, and where it goes below a folder on sys.path


def is_of_user(module: ModuleType | None) -> bool:
    """Whether nodes can't be expected to have a module: it isn't installed like others."""
    if not isinstance(module, ModuleType) or top_of(module.__name__) in ("__main__", "dispy"):
        return False  # __main__ goes by value anyway, and nodes have dispy
    places = _places(module)
    return bool(places) and not any(_is_installed(place) for place in places)


def user_modules() -> frozenset[str]:
    """Return the names of all modules of the user that are loaded."""
    modules = list(sys.modules.items())
    return frozenset(
        name for name, module in modules if is_of_user(module) and module.__name__ == name
    )


def is_standard(module: ModuleType) -> bool:
    """Whether every Python has a module."""
    return top_of(module.__name__) in sys.stdlib_module_names


def top_of(name: str) -> str:
    """Return the name of the package that a module belongs to, or its own."""
    return name.partition(".")[0]


def files_of(module: ModuleType) -> list[File]:
    """Return the files of a module or package, and the ``__init__`` files above it.

    Raises `ValueError` for a module that has none.
    """
    *above, name = module.__name__.split(".")
    files: list[File] = []
    for depth in range(1, len(above) + 1):
        files += _own_file(sys.modules.get(".".join(above[:depth])), above[:depth])
    folders = list(getattr(module, "__path__", ()))
    for folder in folders:
        files += _below(str(folder), "/".join((*above, name)))
    files += [] if folders else _own_file(module, above)
    if not files:
        raise ValueError(f"the module {module.__name__!r} has no file that could be sent")
    return files


def own_file(module: ModuleType) -> list[File]:
    """Return the one file of a module; of a package it is its ``__init__``, if it has one."""
    names = module.__name__.split(".")
    return _own_file(module, names if hasattr(module, "__path__") else names[:-1])


class Imported(NamedTuple):
    """Modules by their names: those that are used, and the packages that these lie in."""

    used: set[str]
    around: set[str]

    def has(self, name: str) -> bool:
        """Whether a module is among either."""
        return name in self.used or name in self.around


def with_imported(names: Iterable[str]) -> Imported:
    """Return these modules and those of the user that importing them imports."""
    loaded = user_modules()
    found = Imported(set(names), set())
    waiting = list(found.used)
    while waiting:
        name = waiting.pop()
        package = name.rpartition(".")[0]
        around = {package} & loaded - found.around
        used = (set(_used_by(sys.modules.get(name))) & loaded) - found.used - {name}
        waiting += [one for one in used | around if not found.has(one)]
        found.around.update(around)
        found.used.update(used)
    return found


def _used_by(module: ModuleType | None) -> Iterator[str]:
    """Name the modules that a module has imported, or has imported something from."""
    for value in list(vars(module).values()) if module is not None else ():
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, type | FunctionType) and isinstance(value.__module__, str):
            yield value.__module__


def _own_file(module: ModuleType | None, folders: list[str]) -> list[File]:
    file = getattr(module, "__file__", None)
    if not file or not os.path.isfile(file):
        return []
    return [(os.path.abspath(file), "/".join((*folders, os.path.basename(file))))]


def _below(folder: str, name: str) -> Iterator[File]:
    """What belongs to a package: all files but hidden and compiled ones."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, f"{name}/{entry.name}")
            elif entry.is_file():
                yield os.path.abspath(entry.path), f"{name}/{entry.name}"


def _places(module: ModuleType) -> list[str]:
    known = vars(module)  # not getattr: a lazy module would load itself
    return [str(place) for place in (known.get("__file__"), *known.get("__path__", ())) if place]


@cache
def _is_installed(place: str) -> bool:
    if any(place.startswith(folder) for folder in _installed()):
        return True
    return any(os.path.realpath(place).startswith(folder) for folder in _installed())


@cache
def _installed() -> tuple[str, ...]:
    """The folders of the standard library and of installed packages, with a slash each."""
    import site

    folders = {sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    folders |= {str(Path(folder).resolve()) for folder in folders}
    return tuple(sorted(folder.rstrip("/") + "/" for folder in folders))
