"""What a cluster computes: checked, named and pickled, once for all of its jobs.

Nothing here is sent; it ends in the `ComputationSpec` that `OpenCluster` carries, and in what
jobs are pickled with.
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from dispy.protocol.messages import Code, ComputationSpec

from . import depends as dependencies
from .blobs import BlobSource
from .definitions import MAIN
from .depends import CodeDepends, Depends
from .layers import Functions, Known, Layer, make_layer, own_modules
from .modules import files_of, is_of_user, own_file, top_of, with_imported
from .vocabulary import Vocabulary

SCRIPT = b"#!"


class Packed(NamedTuple):
    """A computation as it travels, and what its jobs and nodes will be served from."""

    name: str
    spec: ComputationSpec
    vocabulary: Vocabulary
    blobs: BlobSource
    is_program: bool


class Program(NamedTuple):
    """An executable file."""

    path: str
    name: str  # below the computation's folder
    add_mode: int


def pack(
    computation: object,
    depends: object = (),
    setup: object = None,
    cleanup: object = True,
    *,
    max_file_size: int = 0,
) -> Packed:
    """Check and pickle a computation.

    ``computation`` is a callable, or the path or name of a program; ``setup`` a callable or
    None; ``cleanup`` a callable, True or False; ``max_file_size`` in bytes, 0: no limit.
    Raises `TypeError`, `ValueError`, `OSError` or `PicklingError`, naming the thing.
    """
    program = find_program(computation) if isinstance(computation, str | os.PathLike) else None
    compute = None if program else _callable("computation", computation)
    functions = Functions(
        compute,
        None if setup is None else _callable("setup", setup),
        None if isinstance(cleanup, bool) else _callable("cleanup", cleanup),
    )
    blobs = BlobSource(max_file_size)
    needed = dependencies.read(depends, blobs)
    vocabulary, layers = _pack_code(functions, needed, bool(program))
    if program:
        needed.files.add(*program)
    name = program.name.rpartition("/")[2] if program else _name(computation)
    spec = ComputationSpec(
        name,
        layers,
        needed.files.specs(),
        program=program.name if program else "",
        cleanup=cleanup is not False,
    )
    return Packed(name, spec, vocabulary, blobs, bool(program))


def find_program(given: str | os.PathLike[str]) -> Program:
    """Find an executable file by its path or, if it's a plain name, on PATH.

    Raises `OSError` or `ValueError` naming it and what to do.
    """
    path = os.fspath(given)
    if not path:
        raise ValueError("computation: the name of the program is empty")
    if not os.path.exists(path):
        found = shutil.which(path) if isinstance(given, str) and "/" not in path else None
        if found is None:
            raise FileNotFoundError(
                2, "computation: there is no such file, nor a program of that name on PATH", path
            )
        path = found
    return Program(os.path.abspath(path), dependencies.name_of(path), _mode_to_add(path))


def _mode_to_add(path: str) -> int:
    """Return the permission bits that a program needs beside its own; check that it is one."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"computation: {path!r} is not a file: name the program in it")
    with open(path, "rb") as file:
        is_script = file.read(len(SCRIPT)) == SCRIPT
    if is_script:
        return stat.S_IXUSR
    if path.endswith(".py") or mode & stat.S_IXUSR | mode & stat.S_IXGRP | mode & stat.S_IXOTH:
        return 0
    raise PermissionError(
        13, "computation: not executable; use chmod +x, or begin a script with #!", path
    )


def _pack_code(
    functions: Functions, needed: Depends, is_program: bool
) -> tuple[Vocabulary, list[Code]]:
    """Pickle the first layer; the modules that it turns out to need are added to the files.

    A module that goes as a file doesn't go by value, so both are found out together.
    """
    listed = {module.__name__ for module in needed.modules}
    modules = with_imported(listed)
    while True:
        known = Known(frozenset(map(top_of, (*modules.used, *modules.around))))
        vocabulary = Vocabulary(known, _namespace(functions.compute), is_program)
        layer = _first_layer(functions, needed.code, vocabulary, known)
        if layer is None or layer.used <= modules.used:
            break
        modules = with_imported(modules.used | layer.used)
    for name in sorted((modules.used | modules.around) - listed):
        module = sys.modules[name]
        for path, place in files_of(module) if name in modules.used else own_file(module):
            needed.files.add(path, place)
    if layer is None:
        return vocabulary, []
    known.learn(layer)
    return vocabulary, [layer.code]


def _first_layer(
    functions: Functions, code: CodeDepends, vocabulary: Vocabulary, known: Known
) -> Layer | None:
    given = [(_name(function), function) for function in functions if function is not None]
    roots = [*given, *code.named]
    if not roots:
        return None
    origins = {top for _, thing in roots for top in _origins(thing)} - known.files
    return make_layer(vocabulary.names(code), functions, roots, own_modules(origins), known)


def _callable(what: str, given: object) -> Callable[..., Any]:
    if isinstance(given, type) or callable(given):
        return given
    kinds = {
        "computation": "a function or another callable, or the path of a program",
        "setup": "a function",
        "cleanup": "True, False or a function",
    }
    raise TypeError(f"{what} must be {kinds[what]}, not {given!r}")


def _name(function: object) -> str:
    """Name a callable for people: function, method, partial or object."""
    if isinstance(function, functools.partial):
        return _name(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def _namespace(function: object) -> str:
    """Name the module whose variables a computation sees."""
    if isinstance(function, functools.partial):
        return _namespace(function.func)
    module = getattr(function, "__module__", None) or MAIN
    return module if is_of_user(sys.modules.get(module)) else MAIN


def _origins(function: object) -> set[str]:
    """Name the user's packages and modules that a thing comes from."""
    if isinstance(function, functools.partial):
        return _origins(function.func)
    owner = getattr(function, "__self__", None)
    things = (function, type(function), owner if isinstance(owner, type) else type(owner))
    names = {str(getattr(thing, "__module__", "")) for thing in things}
    return {top_of(name) for name in names if is_of_user(sys.modules.get(name))}
