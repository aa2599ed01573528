"""Python objects to payloads and back.

The plain C pickler does what it can; `CodePickler` does the rest. What neither can pickle raises
here, in the caller. Which definitions nodes have already, the `Vocabulary` knows.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dispy.protocol.errors import DispyError
from dispy.protocol.memory import keep_freed
from dispy.protocol.messages import Buffer, Large
from dispy.protocol.payload import INLINE_BYTES, MAX_BUFFERS, pack_object, unpack_object
from dispy.protocol.wire import chunked

from .culprit import find_culprit

if TYPE_CHECKING:
    from .codepickler import CodePickler

PROTOCOL = 5  # the first with out-of-band buffers
NO_PARTS: list[Large] = []  # shared, so that a small job doesn't need a list of its own
LARGE_TYPES = (bytes, bytearray)
LRU_CACHE = functools._lru_cache_wrapper
DEFINED = (type, FunctionType, LRU_CACHE)  # what goes by its name, or by value as code

Roots: TypeAlias = "Sequence[tuple[str, object]]"  # what is pickled, each with a name for people
MakePickler: TypeAlias = "Callable[[io.BytesIO, int, OutOfBand], CodePickler]"

_registry_lock = threading.RLock()  # of cloudpickle's list of modules to pickle by value


class PicklingError(DispyError, pickle.PicklingError, TypeError):
    """A function or an argument can't be sent to nodes; the message says what is in the way."""


class Pickled(NamedTuple):
    """A pickled object as it travels: see `messages.JobSpec`."""

    payload: bytes
    parts: list[Large]


class OutOfBand(list[pickle.PickleBuffer]):
    """The buffers that pickle leaves out: large ones, as many as can be counted."""

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Return whether pickle shall copy the buffer into its stream."""
        if buffer.raw().nbytes < INLINE_BYTES or len(self) >= MAX_BUFFERS:
            return True
        self.append(buffer)
        return False


class Dumped(NamedTuple):
    """What a pickler has made, and the pickler, which knows what it has met."""

    pickler: CodePickler
    stream: bytes
    buffers: OutOfBand

    def packed(self) -> Pickled:
        """Make a payload of it."""
        return pack(self.stream, self.buffers)


def dump(value: object, buffers: OutOfBand) -> bytes:
    """Pickle by reference; the fastest way. Raises whatever pickling raises."""
    return pickle.dumps(value, PROTOCOL, buffer_callback=buffers)


def dump_by_value(value: object, roots: Roots, make_pickler: MakePickler) -> Dumped:
    """Pickle code as well. Raises `PicklingError`, by the names in ``roots``.

    ``make_pickler`` is given the file, the protocol and what takes the buffers.
    """
    buffers = OutOfBand()
    stream = io.BytesIO()
    pickler = make_pickler(stream, PROTOCOL, buffers)
    with by_value(pickler.by_value):
        try:
            pickler.dump(value)
        except Exception as error:
            culprit = find_culprit(roots, _can_pickle) or f"{roots[0][0]}: {error}"
            raise PicklingError(f"can't pickle {culprit} ({error})") from error
    return Dumped(pickler, stream.getvalue(), buffers)


def leave_out(args: tuple[object, ...]) -> tuple[object, ...]:
    """Let large arguments travel beside the pickle stream."""
    for argument in args:
        if type(argument) in LARGE_TYPES and len(argument) >= INLINE_BYTES:  # type: ignore[arg-type]
            return tuple(map(_leave_out, args))
    return args


def pack(stream: bytes, buffers: OutOfBand) -> Pickled:
    """Make a payload of a pickle stream and the buffers that belong to it."""
    if len(stream) < INLINE_BYTES and not buffers:
        return Pickled(pack_object((), stream), NO_PARTS)
    flags = [buffer.raw().readonly for buffer in buffers]
    parts = [chunked(_snapshot(buffer)) for buffer in buffers]
    packed = pack_object(flags, stream)
    if len(packed) < INLINE_BYTES:
        return Pickled(packed, parts)
    return Pickled(b"", [chunked(packed), *parts])


def load(packed: Buffer, parts: Sequence[Large]) -> Any:
    """Unpickle what a job process has pickled. Raises whatever unpickling raises."""
    flags, stream = unpack_object(packed)
    if not flags and not parts:
        return pickle.loads(stream)
    if len(flags) != len(parts):
        raise ValueError(f"{len(flags)} buffers belong to the result, {len(parts)} came with it")
    keep_freed()  # only who has large results needs it
    buffers = [
        part.tobytes() if read_only else bytearray().join(part.chunks)
        for read_only, part in zip(flags, parts, strict=True)
    ]
    return pickle.loads(stream, buffers=buffers)


def forget() -> None:
    """In a forked child: the lock may be that of a thread which only the parent has."""
    global _registry_lock
    _registry_lock = threading.RLock()


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


def _snapshot(buffer: pickle.PickleBuffer) -> Buffer:
    """Return bytes that nobody can change between now and when they are sent."""
    view = buffer.raw()
    if type(view.obj) is bytes and len(view.obj) == view.nbytes:
        return view.obj
    return bytes(view)


@contextmanager
def by_value(modules: Iterable[str]) -> Iterator[None]:
    """Let cloudpickle pickle these modules by value, for now."""
    import cloudpickle

    with _registry_lock:
        known = cloudpickle.list_registry_pickle_by_value()
        loaded = {name: sys.modules[name] for name in modules if name in sys.modules}
        added = {name: module for name, module in loaded.items() if name not in known}
        for module in added.values():
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in added.values():
                cloudpickle.unregister_pickle_by_value(module)
