"""How much a core holds: all that can be reached from it, for seeing that nothing piles up.

The sizes are estimates by entries and bytes, whatever an allocator does; what is shared by all
cores, such as code, isn't looked at.
"""

from __future__ import annotations

import gc
import logging
import random
import sys
import types
from collections import Counter, deque
from typing import Any

import msgspec

APART = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType,
    logging.Logger, random.Random,
)  # fmt: skip
ENTRIES = (dict, list, tuple, set, frozenset, deque)
BYTES = (bytes, bytearray, memoryview, str)
OBJECT_BYTES = 48
ENTRY_BYTES = 8


def held(root: object, *outside: object) -> Counter[str]:
    """Return bytes by type: what ``root`` holds, not what leads to it through ``outside``."""
    seen = {id(each) for each in outside}
    sizes: Counter[str] = Counter()
    found: list[Any] = [root]
    while found:
        value = found.pop()
        if id(value) in seen or isinstance(value, APART):
            continue
        seen.add(id(value))
        sizes[type(value).__name__] += _size(value)
        found += _parts(value)
    return sizes


def _size(value: Any) -> int:
    if isinstance(value, ENTRIES):
        return OBJECT_BYTES + ENTRY_BYTES * len(value)
    if isinstance(value, BYTES):
        return OBJECT_BYTES + len(value)
    return sys.getsizeof(value)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, msgspec.Struct):  # the collector doesn't look into them
        return [getattr(value, name) for name in value.__struct_fields__]
    return gc.get_referents(value)
