"""Which hooks of `os.register_at_fork` wait until there are threads, so that a fork stays cheap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_register_at_fork = os.register_at_fork
deferred: list[dict[str, Any]] = []  # hooks that wait


@contextmanager
def deferred_hooks() -> Iterator[None]:
    """Import modules without making each fork dearer than it must be."""
    os.register_at_fork = _defer_hooks
    try:
        yield
    finally:
        os.register_at_fork = _register_at_fork


def _defer_hooks(**hooks: Any) -> None:
    """Stand in for `os.register_at_fork`.

    The hooks of `threading` and `logging` replace locks that another thread may have held. A
    process with one thread has no such locks, and the hooks would double the price of a fork
    by the pages that they touch. So they wait for `register_deferred_hooks`.
    """
    if getattr(hooks.get("after_in_child"), "__module__", "") in ("threading", "logging"):
        deferred.append(hooks)
    else:
        _register_at_fork(**hooks)


def register_deferred_hooks() -> None:
    """Have the hooks run from now on: threads may start, or have been started."""
    while deferred:
        _register_at_fork(**deferred.pop(0))
