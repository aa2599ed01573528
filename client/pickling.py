"""Python objects to payloads and back.

The plain C pickler does what it can; cloudpickle does the rest, and whatever belongs to the
program itself, which nodes don't have. What neither can pickle raises here, in the caller.
"""

from __future__ import annotations

import pickle
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dispy.protocol.errors import DispyError
from dispy.protocol.messages import Buffer, Large
from dispy.protocol.payload import INLINE_BYTES, MAX_BUFFERS, pack_object, unpack_object
from dispy.protocol.wire import chunked

from .culprit import find_culprit

PROTOCOL = 5  # the first with out-of-band buffers
NO_PARTS: list[Large] = []  # shared, so that a small job doesn't need a list of its own
LARGE_TYPES = (bytes, bytearray)
FIND_MAIN = b"__main__"

_registry_lock = threading.RLock()  # of cloudpickle's list of modules to pickle by value


class PicklingError(DispyError, pickle.PicklingError, TypeError):
    """A function or an argument can't be sent to nodes; the message says what is in the way."""


class Pickled(NamedTuple):
    """A pickled object as it travels: see `messages.JobSpec`."""

    payload: bytes
    parts: list[Large]


class Program(NamedTuple):
    """What belongs to the user's program, so that nodes don't have it: it goes by value."""

    modules: tuple[str, ...]  # beside __main__
    marks: tuple[bytes, ...]  # what gives them away in a pickle


class OutOfBand(list[pickle.PickleBuffer]):
    """The buffers that pickle leaves out: large ones, as many as can be counted."""

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Return whether pickle shall copy the buffer into its stream."""
        if buffer.raw().nbytes < INLINE_BYTES or len(self) >= MAX_BUFFERS:
            return True
        self.append(buffer)
        return False


def dump_arguments(
    args: tuple[object, ...], kwargs: dict[str, object], program: Program
) -> Pickled:
    """Pickle the arguments of one job.

    Raises `PicklingError` naming the path to the culprit, such as ``args[1].lock``.
    """
    value = (args, kwargs)
    for argument in args:
        if type(argument) in LARGE_TYPES and len(argument) >= INLINE_BYTES:  # type: ignore[arg-type]
            value = (tuple(map(_leave_out, args)), kwargs)
            break
    buffers = OutOfBand()
    try:
        stream = pickle.dumps(value, PROTOCOL, buffer_callback=buffers)
    except Exception:  # perhaps cloudpickle can; if not, it raises in its turn
        stream = b""
    for mark in program.marks:
        if not stream or mark in stream:
            return _dump_arguments_by_value(args, kwargs, value, program)
    if len(stream) < INLINE_BYTES and not buffers:
        return Pickled(pack_object((), stream), NO_PARTS)
    return _pack(stream, buffers)


def dump_function(function: object, name: str, program: Program) -> Pickled:
    """Pickle the computation itself. Raises `PicklingError`."""
    return _dump_by_value(function, [(name, function)], program)


def load(packed: Buffer, parts: Sequence[Large]) -> Any:
    """Unpickle what a job process has pickled. Raises whatever unpickling raises."""
    flags, stream = unpack_object(packed)
    if not flags and not parts:
        return pickle.loads(stream)
    if len(flags) != len(parts):
        raise ValueError(f"{len(flags)} buffers belong to the result, {len(parts)} came with it")
    buffers = [
        part.tobytes() if read_only else bytearray().join(part.chunks)
        for read_only, part in zip(flags, parts, strict=True)
    ]
    return pickle.loads(stream, buffers=buffers)


def find_program(functions: Sequence[object]) -> Program:
    """Find the user's modules that these functions or classes come from."""
    names = {str(getattr(function, "__module__", "")) for function in functions}
    names |= {name.partition(".")[0] for name in names}  # its package: that's in there as well
    modules = tuple(sorted(name for name in names if _is_of_user(sys.modules.get(name))))
    return Program(modules, (FIND_MAIN, *(module.encode() for module in modules)))


def _dump_arguments_by_value(
    args: tuple[object, ...], kwargs: dict[str, object], value: object, program: Program
) -> Pickled:
    roots = [(f"args[{i}]", argument) for i, argument in enumerate(args)]
    roots += [(f"kwargs[{name!r}]", argument) for name, argument in kwargs.items()]
    return _dump_by_value(value, roots, program)


def _dump_by_value(value: object, roots: Sequence[tuple[str, object]], program: Program) -> Pickled:
    """Pickle with cloudpickle; explain a failure by the names in ``roots``."""
    import cloudpickle  # 50 ms, and many programs' arguments don't need it

    buffers = OutOfBand()
    with _by_value(program.modules):
        try:
            stream = cloudpickle.dumps(value, PROTOCOL, buffer_callback=buffers)
        except Exception as error:
            culprit = find_culprit(roots, _can_pickle) or f"{roots[0][0]}: {error}"
            raise PicklingError(f"can't pickle {culprit} ({error})") from error
    return _pack(stream, buffers)


def _can_pickle(value: object) -> bool:
    import cloudpickle

    try:
        cloudpickle.dumps(value, PROTOCOL)
    except Exception:
        return False
    return True


def _leave_out(argument: object) -> object:
    """Let a large argument travel beside the pickle stream."""
    if type(argument) in LARGE_TYPES and len(argument) >= INLINE_BYTES:  # type: ignore[arg-type]
        return pickle.PickleBuffer(argument)  # type: ignore[arg-type]
    return argument


def _pack(stream: bytes, buffers: OutOfBand) -> Pickled:
    flags = [buffer.raw().readonly for buffer in buffers]
    parts = [chunked(_snapshot(buffer)) for buffer in buffers]
    packed = pack_object(flags, stream)
    if len(packed) < INLINE_BYTES:
        return Pickled(packed, parts)
    return Pickled(b"", [chunked(packed), *parts])


def _snapshot(buffer: pickle.PickleBuffer) -> Buffer:
    """Return bytes that nobody can change between now and when they are sent."""
    view = buffer.raw()
    if type(view.obj) is bytes and len(view.obj) == view.nbytes:
        return view.obj
    return bytes(view)


@contextmanager
def _by_value(modules: Sequence[str]) -> Iterator[None]:
    """Let cloudpickle pickle these modules by value, for now."""
    import cloudpickle

    with _registry_lock:
        known = cloudpickle.list_registry_pickle_by_value()
        loaded = [sys.modules[name] for name in modules if name in sys.modules]
        added = [module for module in loaded if module.__name__ not in known]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)


def _is_of_user(module: ModuleType | None) -> bool:
    """Whether nodes can't be expected to have a module: it isn't installed like others."""
    if module is None or module.__name__.partition(".")[0] in ("__main__", "dispy"):
        return False  # __main__ goes by value anyway, and nodes have dispy
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    files = [Path(place).resolve() for place in places if place]
    return bool(files) and not any(
        file.is_relative_to(folder) for file in files for folder in _installed()
    )


def _installed() -> list[Path]:
    """The folders of the standard library and of installed packages."""
    import site

    folders = {sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return [Path(folder).resolve() for folder in folders]
