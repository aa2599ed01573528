"""What user code leaves to be sent to its client as a pickle: values, and exceptions as text.

Runs beside the user's code, in a job process or a template. Code of the value itself may run
here, and may do anything: what it raises is told in words, in place of the value.
"""

from __future__ import annotations

import os
import pickle
from typing import TypeAlias

from dispy.protocol.payload import INLINE_BYTES, MAX_BUFFERS, pack_object, unpack_object

from . import environment

Packed: TypeAlias = "tuple[bytes, list[memoryview], str]"  # pickled object, its buffers, text

_NO_BUFFERS = pack_object([], b"")
_NONE = _NO_BUFFERS + pickle.dumps(None, 5)
_PLAIN = frozenset((bool, int, float, complex))  # any pickler can pickle these
_OWN_FILES = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Buffers:
    """Collects the buffers that a pickler meets and that are worth a part of their own."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    def offer(self, buffer: pickle.PickleBuffer) -> bool:
        """Tell the pickler whether to keep the buffer in its stream."""
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: has to be copied
            return True
        if len(view) < INLINE_BYTES or len(self.views) == MAX_BUFFERS:
            return True
        self.views.append(view)
        return False


def pack_value(value: object) -> Packed:
    """Pickle what a job returned; the text says why not."""
    if value is None:
        return _NONE, [], ""
    if type(value) in _PLAIN:
        return _NO_BUFFERS + pickle.dumps(value, 5), [], ""
    try:
        stream, views = dump(value)
    except BaseException as error:
        kind = type(value).__name__
        text = f"the result of the job (of type {kind}) can't be pickled"
        return b"", [], f"TypeError: {text}: {type(error).__name__}: {error}"
    return pack_object([view.readonly for view in views], stream), views, ""


def dump(value: object) -> tuple[bytes, list[memoryview]]:
    """Pickle, by value what can't be found by its name, with large buffers left out."""
    if type(value) in (bytes, bytearray) and len(value) >= INLINE_BYTES:  # type: ignore[arg-type]
        value = pickle.PickleBuffer(value)  # type: ignore[arg-type]
    buffers = Buffers()
    try:
        stream = pickle.dumps(value, 5, buffer_callback=buffers.offer)
        if environment.is_of_client(stream):
            return stream, buffers.views
    except Exception:  # cloudpickle will say what is wrong, if it can't do better
        pass
    import cloudpickle

    buffers = Buffers()
    stream = cloudpickle.dumps(value, 5, buffer_callback=buffers.offer)
    return stream, buffers.views


def failure(reason: str, error: BaseException) -> Packed:
    """Describe an exception: itself if it can be pickled, and its traceback without ours."""
    import traceback

    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename.startswith(_OWN_FILES):
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception as second:  # its own __str__ raises
        text = f"{type(error).__name__} (which can't be shown: {type(second).__name__})\n"
    value, views, _ = pack_value(error)
    if not _comes_back(value, views):
        value, views = b"", []
    return value, views, f"{reason}:\n{text}" if reason else text


def _comes_back(value: bytes, views: list[memoryview]) -> bool:
    """Whether a pickled exception can be unpickled: many with an __init__ of their own can't."""
    try:
        pickle.loads(unpack_object(value)[1], buffers=views)
    except BaseException:
        return False
    return True
