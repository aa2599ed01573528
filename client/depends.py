"""What ``depends`` may list: files, folders and modules become files, the rest is code.

Everything is looked at where the user lists it, so that a mistake raises there, naming the
entry. Files are read only when all of them are known.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from dispy.protocol.messages import FileSpec

from .blobs import BlobSource
from .modules import File, files_of, is_standard, top_of

FILES_MAX = 20_000  # of one computation

KINDS = "a path, a module, a function, a class or an instance of one"


class CodeDepends(NamedTuple):
    """Functions and classes, by the names that they get."""

    named: tuple[tuple[str, object], ...] = ()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.named)


class JobDepends(NamedTuple):
    """What one job needs beside its arguments."""

    files: list[FileSpec]
    code: CodeDepends


class Depends(NamedTuple):
    """What a computation needs beside its function."""

    files: FileList
    modules: list[ModuleType]  # whose files are in ``files``
    code: CodeDepends


class FileList:
    """Files to be sent, by the names that they get. ``what`` names it for people."""

    def __init__(self, blobs: BlobSource, what: str) -> None:
        self._blobs = blobs
        self._what = what
        self._paths: dict[str, list[tuple[str, int]]] = {}
        self._count = 0

    def add(self, path: str, name: str, add_mode: int = 0) -> None:
        """Take a file; the same one again makes no difference."""
        places = self._paths.setdefault(name, [])
        if (path, add_mode) in places:
            return
        places.append((path, add_mode))
        self._count += 1
        if self._count > FILES_MAX:
            raise ValueError(
                f"{self._what} has more than {FILES_MAX} files: pack them into an archive and "
                "unpack it in setup"
            )

    def specs(self) -> list[FileSpec]:
        """Read all files; raise `ValueError` when one name would be two things."""
        for name in self._paths:
            for above in _above(name):
                if above in self._paths:
                    raise ValueError(f"{self._what}: {above!r} would be a file and a folder")
        return [self._spec(name, places) for name, places in self._paths.items()]

    def _spec(self, name: str, places: list[tuple[str, int]]) -> FileSpec:
        specs = [self._blobs.add_file(path, name, add_mode) for path, add_mode in places]
        for place, spec in zip(places, specs, strict=True):
            if spec.digest != specs[0].digest:
                raise ValueError(
                    f"{self._what}: {places[0][0]!r} and {place[0]!r} differ, and both would be "
                    f"called {name!r}"
                )
        return specs[0]


def read(items: object, blobs: BlobSource, what: str = "depends") -> Depends:
    """Read what a computation depends on.

    Raises `TypeError` for what can't be listed, `FileNotFoundError` and other `OSError`s for
    files, `ValueError` for too many files, or different ones of one name.
    """
    files = FileList(blobs, what)
    modules: list[ModuleType] = []
    code: dict[str, object] = {}
    for i, item in enumerate(_as_list(items, what)):
        where = f"{what}[{i}]"
        if isinstance(item, str | os.PathLike):
            for path, name in find_files(item, where):
                files.add(path, name)
        elif isinstance(item, ModuleType):
            modules += _add_module(item, files, where)
        else:
            name, thing = _definition(item, where)
            if code.setdefault(name, thing) is not thing:
                raise ValueError(f"{where}: there is another {name!r} in {what}")
    return Depends(files, modules, CodeDepends(tuple(code.items())))


def read_job_depends(
    items: object, blobs: BlobSource, what: str = "dispy_job_depends"
) -> JobDepends:
    """Read what a job depends on; raises what `read` does."""
    found = read(items, blobs, what)
    return JobDepends(found.files.specs(), found.code)


def read_files(items: object, blobs: BlobSource, what: str = "depends") -> list[FileSpec]:
    """Read a list that may have files, folders and modules; raises what `read` does."""
    found = read(items, blobs, what)
    if found.code:
        raise TypeError(f"{what} can have files and modules only, not {found.code.named[0][0]!r}")
    return found.files.specs()


def find_files(item: str | os.PathLike[str], where: str) -> Iterator[File]:
    """Find the file or, in a folder, all files that a path means, and name them.

    A name is relative to the current folder for what is below it; else it is the base name.
    Links are followed for what the path itself names, and refused below it.
    """
    path = os.fspath(item)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not path:
        raise ValueError(f"{where}: the path of a file is empty")
    mode = _mode(path, where)
    name = name_of(path)
    if stat.S_ISDIR(mode):
        yield from _below(path, name, where)
    elif stat.S_ISREG(mode):
        yield os.path.abspath(path), name
    else:
        raise ValueError(f"{where}: {path!r} is neither a file nor a folder")


def name_of(path: str) -> str:
    """Name a file or folder as a node will have it; "" is the current folder itself."""
    absolute = os.path.abspath(path)
    here = os.getcwd()
    real = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    for candidate in (absolute, real):
        if candidate == here:
            return ""
        if candidate.startswith(here.rstrip("/") + "/"):
            return os.path.relpath(candidate, here)
    return os.path.basename(absolute)


def _below(folder: str, name: str, where: str) -> Iterator[File]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            below = f"{name}/{entry.name}" if name else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, below, where)
            elif entry.is_file(follow_symlinks=False):
                yield os.path.abspath(entry.path), below
            else:
                raise ValueError(
                    f"{where}: {entry.path!r} is a link, a socket or a device; list the files "
                    "that are needed one by one"
                )


def _mode(path: str, where: str) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        there = Path(path).absolute()
        raise FileNotFoundError(2, f"{where}: there is no such file", str(there)) from None
    except ValueError as error:  # NUL in a name
        raise ValueError(f"{where}: {path!r}: {error}") from None


def _add_module(module: ModuleType, files: FileList, where: str) -> list[ModuleType]:
    name = module.__name__
    if name == "__main__":
        raise ValueError(f"{where}: list the functions and classes of the program, not __main__")
    if is_standard(module) or top_of(name) == "dispy":
        return []  # nodes have it
    try:
        found = files_of(module)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for path, place in found:
        files.add(path, place)
    return [module]


def _definition(item: Any, where: str) -> tuple[str, object]:
    """Name a function or class; of an instance it is its class that is needed."""
    if isinstance(item, functools.partial):
        return _definition(item.func, where)
    if isinstance(item, MethodType):
        return _definition(item.__self__, where)
    if isinstance(item, FunctionType) or hasattr(item, "__wrapped__"):
        if item.__name__ == "<lambda>":
            raise TypeError(f"{where} is a lambda and has no name: use def")
        return item.__name__, item
    thing = item if isinstance(item, type) else type(item)
    if thing.__module__ == "builtins":
        raise TypeError(f"{where} must be {KINDS}, not {item!r}")
    return thing.__name__, thing


def _as_list(items: object, what: str) -> list[object]:
    if isinstance(items, str | os.PathLike | ModuleType) or not isinstance(items, Iterable):
        if items is None:
            return []
        raise TypeError(f"{what} must be a list, not {items!r}")
    return list(items)


def _above(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))
